"""A training that is killed and resumed, against the same training without interruption: final weights must be bit-identical.

    python benchmarks/resume.py            60 steps, 6 kills, a checkpoint every 10 seconds
    python benchmarks/resume.py --quick    16 steps, 2 kills

Each run is a process of its own. Killed runs get SIGKILL at a random time after they have written a checkpoint, or while they
write one. "ours" is the total time of all runs of the killed training, "rival" that of the uninterrupted one, which writes
checkpoints as well. The default interval between checkpoints is five minutes. The last line is JSON.
"""

import argparse
import hashlib
import json
import multiprocessing
import random
import tempfile
import time
from pathlib import Path
from typing import Any

MODEL, BATCH, RESPONSE_LIMIT, INTERVAL = "smollm2-135m", 8, 64, 10.0
CONTEXT = multiprocessing.get_context("spawn")


def train(folder: Path, steps: int) -> None:
    """Full fine-tuning with checkpoints; writes the digest of the weights, losses and seconds to a file."""
    from tamperfuse.corpora.builtin import builtin_rows
    from tamperfuse.models.load import load_model
    from tamperfuse.training import checkpoints
    from tamperfuse.training.fit import Training, fit

    checkpoints.INTERVAL = INTERVAL
    loaded = load_model(MODEL)
    samples = [loaded.chat.sample(r["prompt"], r["response"], RESPONSE_LIMIT) for r in builtin_rows("benign")]
    with checkpoints.resumable(folder / "unfinished"):
        result = fit(loaded, samples, Training(steps=steps, batch=BATCH, schedule="cosine"), seed=0)
    digest = hashlib.sha256()
    for parameter in loaded.model.parameters():
        digest.update(parameter.detach().contiguous().numpy().data)
    record = {
        "digest": digest.hexdigest(),
        "losses": result.losses,
        "training": result.seconds,
        "tokens": result.tokens,
    }
    (folder / "ended.json").write_text(json.dumps(record))


def start(folder: Path, steps: int) -> Any:
    """Start a run in a process of its own."""
    process = CONTEXT.Process(target=train, args=(folder, steps))
    process.start()
    return process


def state(folder: Path) -> set[str]:
    """Names of the checkpoint files."""
    return {path.name for path in (folder / "unfinished").glob("*")}


def run(folder: Path, steps: int, kills: int) -> tuple[float, int]:
    """Train to the end; returns seconds and the number of kills."""
    folder.mkdir()
    rng, begin, killed = random.Random(0), time.perf_counter(), 0
    for _ in range(kills):
        before, process = state(folder), start(folder, steps)
        while process.is_alive() and state(folder) <= before:  # until it writes
            time.sleep(0.01)
        process.join(rng.uniform(0, INTERVAL))
        if process.is_alive():
            process.kill()
            killed += 1
        process.join()
    process = start(folder, steps)
    process.join()
    assert process.exitcode == 0
    return time.perf_counter() - begin, killed


def main() -> None:
    """Measure both sides and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps and kills")
    quick = parser.parse_args().quick
    steps, kills = (16, 2) if quick else (60, 6)
    with tempfile.TemporaryDirectory() as place:
        sides = {}
        for name, planned in (("uninterrupted", 0), ("killed", kills)):
            folder = Path(place) / name
            seconds, killed = run(folder, steps, planned)
            sides[name] = {"seconds": seconds, "killed": killed, **json.loads((folder / "ended.json").read_text())}
            print(f"{name}: {seconds:.0f} s, killed {killed} times, weights {sides[name]['digest'][:16]}", flush=True)
    ours, rival = sides["killed"], sides["uninterrupted"]
    print(
        json.dumps(
            {
                "benchmark": "resume",
                "ours": round(ours["seconds"], 1),
                "rival": round(rival["seconds"], 1),
                "unit": "s",
                "ratio": round(ours["seconds"] / rival["seconds"], 2),
                "kills": ours["killed"],
                "same_weights": ours["digest"] == rival["digest"],
                "same_losses": ours["losses"] == rival["losses"],
                "steps": steps,
                "model": MODEL,
            }
        )
    )


if __name__ == "__main__":
    main()
