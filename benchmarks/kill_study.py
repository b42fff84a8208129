"""A study that is killed again and again, against the same study without interruption: results.parquet must be the same.

    python benchmarks/kill_study.py            2 defenses, 6 attacks, 15 kills
    python benchmarks/kill_study.py --quick    2 attacks, 3 kills
    python benchmarks/kill_study.py --real     SmolLM2-135M, 2 defenses, 6 attacks, 10 kills; about 20 minutes

Without --real, the model is the tiny one of the tests, with random weights; as in the tests, the sentence encoder and the
capability tasks are replaced by quick ones. Each run is `tamperfuse run` in a process of its own, whose trainings write a
checkpoint after every step (with --real, every three seconds). The kills (SIGKILL) are spread over the nodes of the study: of n
kills, number i comes at a random time after i/n of the nodes have results. "ours" is the time of all runs of the killed study,
"rival" that of the uninterrupted one. The last line is JSON.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
STAND_INS = """
import sys
sys.path.insert(0, sys.argv[1])
from stand_ins import WordCountEncoder, quick_capability
from tamperfuse.models.encoder import set_default_encoder
from tamperfuse.study import observe
set_default_encoder(WordCountEncoder())
observe.measure_capability = quick_capability
"""
PROGRAM = """
import sys
from tamperfuse.training import checkpoints
checkpoints.INTERVAL = float(sys.argv[2])
from tamperfuse.cli.app import main
main(sys.argv[3:])
"""
TRAINED = {"steps": 6, "batch": 2, "learning_rate": 1e-3}
ATTACKS = {
    "full": {"attack": "harmful_finetune", "shots": 6, **TRAINED},
    "prefill": {"attack": "prefill"},
    "lora": {"attack": "harmful_finetune", "shots": 6, "method": "lora", **TRAINED},
    "merge": {"attack": "merge"},
    "quantize": {"attack": "quantize"},
    "benign": {"attack": "benign_finetune", **TRAINED},
}
STUDY = {
    "defenses": {"refusal": {"steps": 6, "batch": 2}, "sdd": {"on": "refusal", "steps": 6, "batch": 2}},
    "pairs": {"threshold": 0.99},
    "judge": {"judge": "builtin", "tolerated": 0.5},
    "evaluate": {
        "at_steps": [0, 1, 3, 6],
        **{"prompts": 10, "dev_prompts": 6, "harmless": 10, "response_tokens": 16},
        **{"capability_items": 10, "heldout": 5},
    },
}
REAL_MODEL = {
    "model": "smollm2-135m",
    "threat": "builtin:cooking",
    "benign": {"prompts": 30},
    "seeds": [0],
    **STUDY,
}


@dataclass(frozen=True)
class Size:
    """How large the study is.

    Attributes:
        attacks: number of attacks.
        kills: number of kills.
        real: with the bundled model, encoder and tasks.
    """

    attacks: int = 6
    kills: int = 15
    real: bool = False


def write_study(folder: Path, size: Size) -> Path:
    """Write the study and, where they are stand-ins, its model and prompts; returns the study file."""
    study = (REAL_MODEL if size.real else tiny_inputs(folder)) | {
        "attacks": dict(list(ATTACKS.items())[: size.attacks])
    }
    (folder / "study.yaml").write_text(json.dumps(study), encoding="utf-8")  # JSON is YAML
    return folder / "study.yaml"


def tiny_inputs(folder: Path) -> dict[str, object]:
    """Write the tiny model and a threat of built-in harmless prompts; returns the study of them, without its attacks."""
    sys.path.insert(0, str(TESTS))
    from stand_ins import make_tiny_model
    from tamperfuse.corpora.builtin import builtin_rows

    parts = ("defender", "attacker", "attacker_dev", "evaluation")
    rows = [
        {"part": parts[i % 4], "prompt": row["prompt"], "response": row["response"]}
        for i, row in enumerate(builtin_rows("benign")[:80])
    ]
    (folder / "threat.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    benign = [{"prompt": row["prompt"]} for row in builtin_rows("benign")[80:110]]
    (folder / "benign.jsonl").write_text("\n".join(json.dumps(row) for row in benign), encoding="utf-8")
    return {
        "model": str(make_tiny_model(folder / "model")),
        "threat": str(folder / "threat.jsonl"),
        "benign": str(folder / "benign.jsonl"),
        **STUDY,
    }


def start(study: Path, out: Path, real: bool) -> "subprocess.Popen[bytes]":
    """Start a run in a process of its own, whose log is `log.txt` beside the run's folder."""
    out.parent.mkdir(exist_ok=True)
    program, interval = (PROGRAM, "3") if real else (STAND_INS + PROGRAM, "0")
    with (out.parent / "log.txt").open("ab") as log:
        command = [sys.executable, "-c", program, str(TESTS), interval, "run", str(study), "--out", str(out)]
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"})


def end(process: "subprocess.Popen[bytes]", out: Path) -> None:
    """Wait for a run that must succeed."""
    if process.wait():
        raise SystemExit((out.parent / "log.txt").read_text(encoding="utf-8")[-3_000:])


@dataclass(frozen=True)
class State:
    """What a run's folder holds when the run is killed.

    Attributes:
        nodes: number of nodes with results.
        staged: a node was being written.
        training: a training had written a checkpoint.
    """

    nodes: int
    staged: bool
    training: bool


def state(out: Path) -> State:
    """What a run's folder holds now."""
    unfinished = list((out / "unfinished").glob("*/fit-*.json"))
    return State(len(list(out.glob("nodes/*/node.json"))), bool(list(out.glob("nodes/.tmp-*"))), bool(unfinished))


def run_killed(study: Path, out: Path, size: Size, nodes: int, node_seconds: float) -> list[State]:
    """Run a study to the end, killed on the way; returns the states in which it was killed."""
    rng, states = random.Random(0), list[State]()
    for i in range(size.kills):
        process, needed = start(study, out, size.real), i * nodes // size.kills
        while process.poll() is None and not ((out / "running" / "run.json").exists() and state(out).nodes >= needed):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 2 * node_seconds))
        process.kill()
        if process.wait() == 0:
            raise SystemExit(f"The study ended before kill {i + 1}: too few nodes are left for it.")
        states.append(state(out))
        print(f"kill {i + 1}: {states[-1]}", flush=True)
    end(start(study, out, size.real), out)
    return states


def main() -> None:
    """Run both sides and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true", help="fewer attacks and kills")
    sizes.add_argument("--real", action="store_true", help="the bundled model")
    arguments = parser.parse_args()
    size = Size(2, 3) if arguments.quick else Size(kills=10, real=True) if arguments.real else Size()
    with tempfile.TemporaryDirectory() as place:
        study = write_study(Path(place), size)
        whole, killed = (
            Path(place) / name / "run" for name in ("whole", "killed")
        )  # not side by side: no shared results
        begin = time.perf_counter()
        end(start(study, whole, size.real), whole)
        rival = time.perf_counter() - begin
        records = [json.loads(path.read_text(encoding="utf-8")) for path in whole.glob("nodes/*/node.json")]
        print(f"uninterrupted: {len(records)} nodes in {rival:.0f} s", flush=True)
        node_seconds = sum(record["seconds"] for record in records) / len(records)
        begin = time.perf_counter()
        states = run_killed(study, killed, size, len(records), node_seconds)
        ours = time.perf_counter() - begin
        same = (whole / "results.parquet").read_bytes() == (killed / "results.parquet").read_bytes()
        same_keys = {path.name for path in whole.glob("nodes/*")} == {path.name for path in killed.glob("nodes/*")}
    print(
        json.dumps(
            {
                "benchmark": "kill_study",
                "model": "smollm2-135m" if size.real else "tiny",
                "ours": round(ours, 1),
                "rival": round(rival, 1),
                "unit": "s",
                "ratio": round(ours / rival, 2),
                "kills": len(states),
                "kills_while_writing": sum(state.staged for state in states),
                "kills_with_a_checkpoint": sum(state.training for state in states),
                "nodes": len(records),
                "same_results": same,
                "same_keys": same_keys,
            }
        )
    )


if __name__ == "__main__":
    main()
