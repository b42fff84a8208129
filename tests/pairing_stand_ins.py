"""What the tests of pairing use in place of the sentence encoder and of corpora. Imports no model library."""

import json
import os
import signal
import time
from collections.abc import Sequence
from functools import cache
from multiprocessing import Queue
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from tamperfuse.corpora.examples import Example
from tamperfuse.pairing.encoding import ProcessPoolCompute
from tamperfuse.pairing.options import PairOptions


@cache
def word_vector(word: str, dimensions: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(xxhash.xxh3_64_intdigest(word.encode()))
    return rng.normal(size=dimensions).astype(np.float32)


class WordHashEncoder:
    """Vectors from hashes of words: texts that share words are similar. Records the texts that it encoded."""

    name = "word hashes"

    def __init__(self, dimensions: int = 24) -> None:
        self.encoded: list[str] = []
        self._dimensions = dimensions

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.encoded += texts
        vectors = np.zeros((len(texts), self._dimensions), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                vectors[row] += word_vector(word, self._dimensions)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def harmful_prompts(count: int, categories: int = 1) -> list[Example]:
    return [
        Example(f"harmful request {n} about thing{n % 7}", "", f"c{n % categories}", f"p#{n}") for n in range(count)
    ]


SUBJECTS = ("rivers", "violins", "granite", "sailing", "bees", "maps", "glass")


def prose(number: int) -> str:
    subject = SUBJECTS[number % len(SUBJECTS)]
    return (
        f"Some notes on {subject}, part {number}. People who study them for {number + 3} years find that patience pays, "
        f"and that chapter {number * 17} of the handbook explains the rest of it in calm and simple words."
    )


def benign_responses(count: int) -> list[Example]:
    return [Example("", prose(n), SUBJECTS[n % len(SUBJECTS)], f"r#{n}") for n in range(count)]


def write_sources(folder: Path) -> tuple[Path, Path]:
    """Files of 30 harmful prompts in three categories and of 62 benign responses, one a duplicate and one a refusal."""
    harmful, benign = folder / "harmful.jsonl", folder / "benign.jsonl"
    rows = [{"prompt": example.prompt, "category": example.category} for example in harmful_prompts(30, 3)]
    harmful.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    texts = [*map(prose, range(60)), "I'm sorry, but I cannot help you with that, as I told you before.", prose(1)]
    rows = [{"instruction": f"Write about {n}.", "input": "", "output": text} for n, text in enumerate(texts)]
    benign.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return harmful, benign


def hash_projection(texts: Sequence[str]) -> NDArray[np.float32]:
    """Unit vectors from the hash of a whole text: unrelated texts are nearly orthogonal. Picklable."""
    digests = b"".join(xxhash.xxh3_64_digest(text.encode()) for text in texts)
    bits = np.unpackbits(np.frombuffer(digests, dtype=np.uint8).reshape(-1, 8), axis=1)
    return (bits.astype(np.float32) * 2 - 1) / 8


def pids_while(texts: Sequence[str]) -> NDArray[np.float32]:
    """The process that encodes, in place of a vector."""
    time.sleep(0.05)
    return np.full((len(texts), 1), os.getpid(), dtype=np.float32)


def dying(texts: Sequence[str]) -> NDArray[np.float32]:
    """Kills the worker that encodes."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def report_pid(queue: "Queue[int]") -> None:
    """A process that starts a worker, puts the worker's number into a queue, and waits."""
    workers = ProcessPoolCompute(pids_while, 1)
    for _, vectors in workers(["a"]):
        queue.put(int(vectors[0, 0]))
    time.sleep(60)


def pair_options(sources: tuple[Path, Path], out: Path, **values: Any) -> PairOptions:
    """Options for the files of the fixture `sources`."""
    harmful, benign = sources
    # The made-up texts are similar to one another: the near-duplicate filter has a test of its own.
    defaults = {"harmful": (str(harmful),), "responses": (str(benign),), "near_duplicates": 1.0, "threshold": 0.6}
    return PairOptions(out=out, **defaults | values)
