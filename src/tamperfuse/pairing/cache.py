"""Results kept by text, a batch at a time: after a kill, or with another threshold, what is there is not computed again.

What a kill can cost is what was being computed at that moment: one batch, or one for each process that computes.
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
Batch = tuple[Sequence[int], Vectors]  # places among the texts that were asked for, and the vectors of these
Compute = Callable[[Sequence[str]], Iterable[Batch]]  # batches as they are done, in any order, every place once


def parts(texts: int) -> list[range]:
    """Places 0 to `texts` in runs of :data:`BATCH`."""
    return [range(start, min(start + BATCH, texts)) for start in range(0, texts, BATCH)]


def in_batches(function: Callable[[Sequence[str]], Vectors]) -> Compute:
    """Make a function from texts to vectors one that gives a batch at a time."""

    def compute(texts: Sequence[str]) -> Iterator[Batch]:
        for part in parts(len(texts)):
            yield part, function([texts[at] for at in part])

    return compute


class VectorCache:
    """Vectors by the hash of their text, in one SQLite file for each way of computing them.

    Processes may share the file. Texts are known by 128 bits, so that no two of them meet.

    Attributes:
        computed: texts that were computed since the cache was opened; the rest was there.
    """

    def __init__(self, folder: Path, identity: object, doing: str = "encoding") -> None:
        """Open or create.

        Args:
            folder: where the caches lie.
            doing: what computing is called on the progress bar.
            identity: all that the vectors depend on beside the text (JSON-able); another identity, another file.

        Raises:
            UserError: the folder cannot be written, or the file is damaged.
        """
        self._doing = doing
        self._path = folder / f"{content_hash(identity)[:16]}.sqlite"
        with self._failing_as_sentence():
            folder.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(self._path, timeout=60)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=NORMAL")
            self._base.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
        self.computed = 0

    @contextmanager
    def _failing_as_sentence(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"The cache {self._path} cannot be used ({error}): free space, remove the file if it is damaged, or set "
                "TAMPERFUSE_CACHE to another folder."
            ) from error

    def get(self, texts: Sequence[str], compute: Compute) -> Vectors:
        """Vectors of texts, computed where they are not known; every batch is on disk before the next is asked for.

        Args:
            texts: any number of strings.
            compute: gives the vectors of texts, all of one length, in batches.

        Returns:
            Shape (texts, dimensions), in the order of `texts`.
        """
        if not texts:
            return np.zeros((0, 0), dtype=np.float32)
        keys = [xxhash.xxh3_128_digest(text.encode()) for text in texts]
        known = self._lookup(sorted(set(keys)))
        new = list({key: text for key, text in zip(keys, texts, strict=True) if key not in known}.items())
        new.sort(key=lambda item: len(item[1]))  # batches of like length, whatever order they were drawn in
        with progress(self._doing, len(new)) as advance:
            for places, vectors in compute([text for _, text in new]) if new else ():
                whole = np.ascontiguousarray(vectors, dtype=np.float32)
                rows = [(new[place][0], vector.tobytes()) for place, vector in zip(places, whole, strict=True)]
                with self._failing_as_sentence(), self._base:
                    self._base.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
                known.update(rows)
                self.computed += len(rows)
                advance(len(rows))
        return np.stack([np.frombuffer(known[key], dtype=np.float32) for key in keys])

    def _lookup(self, keys: list[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), _PER_QUERY):
            part = keys[start : start + _PER_QUERY]
            marks = ",".join("?" * len(part))
            with self._failing_as_sentence():
                found.update(self._base.execute(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", part))
        return found

    def close(self) -> None:
        """Close the file."""
        self._base.close()
