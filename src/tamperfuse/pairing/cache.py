"""A cache of vectors by text, written a batch at a time, so that a killed run or another threshold recomputes little.

A kill loses at most the batch that was being computed, or one batch for each process that computes.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from tamperfuse.records.errors import UserError
from tamperfuse.records.files import content_hash
from tamperfuse.records.progress import progress

BATCH = 64  # texts computed together and committed together
_PER_QUERY = 500  # SQLite's oldest limit on variables is 999

Vectors = NDArray[np.float32]
Batch = tuple[Sequence[int], Vectors]  # indices of texts, and their vectors
Compute = Callable[[Sequence[str]], Iterable[Batch]]  # batches as they are done, in any order, every index once


def batch_ranges(texts: int) -> list[range]:
    """The indices below `texts` in runs of :data:`BATCH`."""
    return [range(start, min(start + BATCH, texts)) for start in range(0, texts, BATCH)]


def in_batches(function: Callable[[Sequence[str]], Vectors]) -> Compute:
    """Apply a function from texts to vectors to one batch after another."""

    def compute(texts: Sequence[str]) -> Iterator[Batch]:
        for batch in batch_ranges(len(texts)):
            yield batch, function([texts[index] for index in batch])

    return compute


class VectorCache:
    """Vectors by the 128-bit hash of their text, in one SQLite file for each way of computing them.

    Several processes may use the file at once.

    Attributes:
        computed: number of texts that were computed since the cache was opened.
    """

    def __init__(self, folder: Path, identity: object, doing: str = "encoding") -> None:
        """Open or create the file.

        Args:
            folder: the folder of the caches.
            identity: everything that the vectors depend on apart from the text (JSON-able); it decides the file.
            doing: label of the progress bar.

        Raises:
            UserError: the folder cannot be written, or the file is damaged.
        """
        self._doing = doing
        self._path = folder / f"{content_hash(identity)[:16]}.sqlite"
        with self._as_user_error():
            folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self._path, timeout=60)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID"
            )
        self.computed = 0

    @contextmanager
    def _as_user_error(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"The cache {self._path} cannot be used ({error}): free space, remove the file if it is damaged, or set "
                "TAMPERFUSE_CACHE to another folder."
            ) from error

    def get(self, texts: Sequence[str], compute: Compute) -> Vectors:
        """Look texts up and compute those that are not in the file; every batch is written before the next is computed.

        Args:
            texts: any number of strings.
            compute: computes vectors of texts, all of one length, in batches.

        Returns:
            Shape (texts, dimensions), in the order of `texts`.
        """
        if not texts:
            return np.zeros((0, 0), dtype=np.float32)
        keys = [xxhash.xxh3_128_digest(text.encode()) for text in texts]
        vectors = self._lookup(sorted(set(keys)))
        new = list({key: text for key, text in zip(keys, texts, strict=True) if key not in vectors}.items())
        new.sort(key=lambda item: len(item[1]))  # batches of similar lengths
        with progress(self._doing, len(new)) as advance:
            for indices, batch in compute([text for _, text in new]) if new else ():
                contiguous = np.ascontiguousarray(batch, dtype=np.float32)
                rows = [(new[index][0], vector.tobytes()) for index, vector in zip(indices, contiguous, strict=True)]
                with self._as_user_error(), self._database:
                    self._database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
                vectors.update(rows)
                self.computed += len(rows)
                advance(len(rows))
        return np.stack([np.frombuffer(vectors[key], dtype=np.float32) for key in keys])

    def _lookup(self, keys: list[bytes]) -> dict[bytes, bytes]:
        vectors: dict[bytes, bytes] = {}
        for start in range(0, len(keys), _PER_QUERY):
            queried = keys[start : start + _PER_QUERY]
            marks = ",".join("?" * len(queried))
            with self._as_user_error():
                vectors.update(
                    self._database.execute(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", queried)
                )
        return vectors

    def close(self) -> None:
        """Close the file."""
        self._database.close()
