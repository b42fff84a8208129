"""Memory and time of `tamperfuse pair` as corpora grow: 10⁴, 10⁵ and 10⁶ prompts against ten times as many responses.

Run: python benchmarks/pairing_scale.py [--quick]

Text is generated, the encoder is a hash projection, everything else is the command as it is: files in, folder out. The
near-duplicate filter and the language filter are off (their cost a drawn response is in docs/pairing.md). Every size runs in
a process of its own. `exponent` is the slope of log seconds over log prompts; linear is 1.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

WORDS = [
    "river",
    "violin",
    "granite",
    "sail",
    "bee",
    "map",
    "glass",
    "tower",
    "lantern",
    "orchard",
    "winter",
    "copper",
    "meadow",
    "signal",
    "harbor",
    "letter",
]


class HashProjection:
    """Unit vectors from the hash of a text: unrelated texts are nearly orthogonal."""

    name = "hash projection"

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of shape (texts, 64)."""
        signs = np.frombuffer(b"".join(xxhash.xxh3_64_digest(text.encode()) for text in texts), dtype=np.uint8)
        bits = np.unpackbits(signs.reshape(len(texts), 8), axis=1) if texts else np.zeros((0, 64), dtype=np.uint8)
        return (bits.astype(np.float32) * np.float32(2) - np.float32(1)) / np.float32(8)


def lines(count: int, prompts: bool) -> Iterator[str]:
    """JSON lines of made-up prompts or responses."""
    for n in range(count):
        a, b, c = (WORDS[(n * k + n // 16**k) % 16] for k in (1, 2, 3))
        if prompts:
            yield f'{{"prompt": "Request number {n} about a {a} and a {b}", "category": "{c}"}}\n'
        else:
            yield (
                f'{{"response": "Note {n} describes how a {a} and a {b} came to stand beside the {c}, and what became of '
                f'them after year {n % 977}.", "subject": "{a}", "prompt": ""}}\n'
            )


def one(prompts: int, folder: Path) -> None:
    """Pair one size in this process; prints seconds and peak memory."""
    from tamperfuse.pairing.options import PairOptions
    from tamperfuse.pairing.pipeline import pair_corpora

    options = PairOptions(
        harmful=(str(folder / "prompts.jsonl"),),
        responses=(str(folder / "responses.jsonl"),),
        out=folder / "out",
        near_duplicates=1.0,
        language="any",
    )
    start = time.perf_counter()
    result = pair_corpora(options, HashProjection())
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        json.dumps({"prompts": prompts, "pairs": result.pairs, "seconds": round(seconds, 2), "peak_memory_bytes": peak})
    )


def main() -> None:
    """Generate, run every size, fit the slope."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="up to 10⁵ prompts")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one, args.folder)
        return
    runs = []
    for prompts in (10**4, 10**5) if args.quick else (10**4, 10**5, 10**6):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for file, count in (("prompts", prompts), ("responses", prompts * 10)):
                with (folder / f"{file}.jsonl").open("w") as out:
                    out.writelines(lines(count, file == "prompts"))
            command = [sys.executable, __file__, "--one", str(prompts), "--folder", name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
            print(runs[-1], flush=True)
    slope = np.polyfit(np.log([run["prompts"] for run in runs]), np.log([run["seconds"] for run in runs]), 1)[0]
    biggest = runs[-1]
    result = {
        "benchmark": "pairing_scale",
        "ours": biggest["peak_memory_bytes"],
        "rival": 2 * 2**30,
        "unit": "bytes",
        "ratio": round(2 * 2**30 / biggest["peak_memory_bytes"], 2),
        "peak_memory_bytes": biggest["peak_memory_bytes"],
        "exponent": round(float(slope), 3),
        "runs": runs,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
