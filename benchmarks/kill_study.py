"""A study that is killed again and again, against the same study without interruption: results.parquet must be the same.

    python benchmarks/kill_study.py            2 defenses, 6 attacks, 15 kills
    python benchmarks/kill_study.py --quick    2 attacks, 3 kills

The model is the tiny one of the tests, with random weights; as in the tests, the sentence encoder and the capability tasks are
replaced by quick ones. Each run is `tamperfuse run` in a process of its own, whose trainings write a checkpoint after every step.
The kills (SIGKILL) are spread over the nodes of the study: number i comes at a random time after i fifteenths (with --quick,
thirds) of them have results. "ours" is the time of all runs of the killed study, "rival" that of the uninterrupted one; most of
the difference is the start of Python. The last line is JSON.
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
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from stand_ins import WordCountEncoder, quick_capability
from tamperfuse.models.encoder import set_default_encoder
from tamperfuse.study import observe
from tamperfuse.training import checkpoints
set_default_encoder(WordCountEncoder())
observe.measure_capability = quick_capability
checkpoints.INTERVAL = 0.0
from tamperfuse.cli.app import main
main(sys.argv[2:])
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


def write_inputs(folder: Path, attacks: int) -> Path:
    """Write the model, a threat of built-in harmless prompts, and the study; returns the study file."""
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
    study = {
        "model": str(make_tiny_model(folder / "model")),
        "threat": str(folder / "threat.jsonl"),
        "benign": str(folder / "benign.jsonl"),
        **STUDY,
        "attacks": dict(list(ATTACKS.items())[:attacks]),
    }
    (folder / "study.yaml").write_text(json.dumps(study), encoding="utf-8")  # JSON is YAML
    return folder / "study.yaml"


def start(study: Path, out: Path) -> "subprocess.Popen[bytes]":
    """Start a run in a process of its own, whose log is `log.txt` beside the run's folder."""
    out.parent.mkdir(exist_ok=True)
    with (out.parent / "log.txt").open("ab") as log:
        command = [sys.executable, "-c", PROGRAM, str(TESTS), "run", str(study), "--out", str(out)]
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


def run_killed(study: Path, out: Path, kills: int, nodes: int, node_seconds: float) -> list[State]:
    """Run a study to the end, killed on the way; returns the states in which it was killed."""
    rng, states = random.Random(0), list[State]()
    for i in range(kills):
        process, needed = start(study, out), i * nodes // kills
        while process.poll() is None and not ((out / "running" / "run.json").exists() and state(out).nodes >= needed):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 2 * node_seconds))
        process.kill()
        if process.wait() == 0:
            raise SystemExit(f"The study ended before kill {i + 1}: too few nodes are left for it.")
        states.append(state(out))
        print(f"kill {i + 1}: {states[-1]}", flush=True)
    end(start(study, out), out)
    return states


def main() -> None:
    """Run both sides and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer attacks and kills")
    attacks, kills = (2, 3) if parser.parse_args().quick else (6, 15)
    with tempfile.TemporaryDirectory() as place:
        study = write_inputs(Path(place), attacks)
        whole, killed = (
            Path(place) / name / "run" for name in ("whole", "killed")
        )  # not side by side: no shared results
        begin = time.perf_counter()
        end(start(study, whole), whole)
        rival = time.perf_counter() - begin
        records = [json.loads(path.read_text(encoding="utf-8")) for path in whole.glob("nodes/*/node.json")]
        print(f"uninterrupted: {len(records)} nodes in {rival:.0f} s", flush=True)
        node_seconds = sum(record["seconds"] for record in records) / len(records)
        begin = time.perf_counter()
        states = run_killed(study, killed, kills, len(records), node_seconds)
        ours = time.perf_counter() - begin
        same = (whole / "results.parquet").read_bytes() == (killed / "results.parquet").read_bytes()
        same_keys = {path.name for path in whole.glob("nodes/*")} == {path.name for path in killed.glob("nodes/*")}
    print(
        json.dumps(
            {
                "benchmark": "kill_study",
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
