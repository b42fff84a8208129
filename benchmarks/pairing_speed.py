"""How fast pairs are made, against the way the public re-implementation makes them.

Run: python benchmarks/pairing_speed.py [--quick] [--threads N]

Rival: the whole pool of responses is encoded in batches, each prompt alone. Ours: prompts in batches, only responses that
are drawn; in float32, and with the fast encoder (bfloat16). All three make the same draw, so their pairs can be compared.
`ratio` is the fast one's; `equal_float32` and `equal_fast` are shares of pairs equal to the rival's.
"""

import argparse
import json
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tamperfuse.corpora.examples import Example
from tamperfuse.corpora.sources import read_source
from tamperfuse.models.encoder import SentenceEncoder
from tamperfuse.pairing import make_pairs


def corpora(prompts: int, pool: int) -> tuple[list[Example], list[Example]]:
    """Texts of the sizes that BeaverTails' prompts and Alpaca's outputs have, from words of the built-in data."""
    rng = np.random.default_rng(0)
    words = np.array(" ".join(row.response for row in read_source("builtin:benign")).split())
    lengths = rng.lognormal(np.log(40), 0.8, pool).clip(3, 300).astype(int)
    starts = rng.integers(0, len(words) - 300, pool)
    responses = [
        Example("", f"{rng.choice(words)} {' '.join(words[at : at + n])}", "", str(i))
        for i, (at, n) in enumerate(zip(starts, lengths, strict=True))
    ]
    instructions = [row.prompt for row in read_source("builtin:instructions")]
    picks = rng.integers(0, len(instructions), (prompts, 2))
    return [Example(f"{instructions[a]} {instructions[b].lower()} ({i})") for i, (a, b) in enumerate(picks)], responses


class WholePool:
    """The rival's vectors, computed beforehand: each prompt alone, the pool in batches of 32."""

    name = "all-MiniLM-L6-v2"

    def __init__(self, prompts: Sequence[Example], responses: Sequence[Example]) -> None:
        """Encode everything, and take the time."""
        alone, batches = SentenceEncoder(batch_size=1), SentenceEncoder(batch_size=32)
        alone.encode(["warm up"])
        batches.encode(["warm up"])
        start = time.perf_counter()
        pool = batches.encode([row.response for row in responses])
        self._vectors = {row.response: vector for row, vector in zip(responses, pool, strict=True)}
        for row in prompts:
            self._vectors[row.prompt] = alone.encode([row.prompt])[0]
        self.seconds = time.perf_counter() - start

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Look up."""
        return np.stack([self._vectors[text] for text in texts]) if texts else np.zeros((0, 384), np.float32)


def main() -> None:
    """Measure all three in one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,000 × 6,500 in place of 8,000 × 52,000")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    prompts, responses = corpora(*((1000, 6500) if args.quick else (8000, 52000)))
    seconds, pair_sets = {}, {}
    for dtype in ("bfloat16", "float32"):
        encoder = SentenceEncoder(dtype=dtype)
        encoder.encode(["warm up"] * 8)
        start = time.perf_counter()
        pair_sets[dtype] = make_pairs(prompts, responses, encoder, filters=None)
        seconds[dtype] = time.perf_counter() - start
        print(f"ours, {dtype}: {seconds[dtype]:.1f} s, {pair_sets[dtype].redraws} redraws", flush=True)
    whole = WholePool(prompts, responses)
    start = time.perf_counter()
    rival_pairs = {(pair.prompt, pair.response) for pair in make_pairs(prompts, responses, whole, filters=None).pairs}
    rival = whole.seconds + time.perf_counter() - start
    equal = {
        dtype: len(rival_pairs & {(pair.prompt, pair.response) for pair in pair_set.pairs}) / len(rival_pairs)
        for dtype, pair_set in pair_sets.items()
    }
    result = {
        "benchmark": "pairing_speed",
        "ours": round(seconds["bfloat16"], 2),
        "rival": round(rival, 2),
        "unit": "seconds",
        "ratio": round(rival / seconds["bfloat16"], 2),
        "ours_float32": round(seconds["float32"], 2),
        "ratio_float32": round(rival / seconds["float32"], 2),
        "equal_float32": equal["float32"],
        "equal_fast": equal["bfloat16"],
        "prompts": len(prompts),
        "pool": len(responses),
        "redraws": pair_sets["float32"].redraws,
        "threads": args.threads,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
