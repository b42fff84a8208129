"""Results kept by text: a run that was killed, or one with another threshold, encodes and scores nothing twice."""

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from tamperfuse.records.files import content_hash

_AT_ONCE = 1024  # texts computed between two commits: what a kill can cost at most
_PER_QUERY = 500  # SQLite's oldest limit on variables is 999


class VectorCache:
    """Vectors by the hash of their text, in one SQLite file for each way of computing them.

    Processes may share the file. Texts are known by 128 bits, so that no two of them meet.

    Attributes:
        computed: texts that were computed since the cache was opened; the rest was there.
    """

    def __init__(self, folder: Path, identity: object) -> None:
        """Open or create.

        Args:
            folder: where the caches lie.
            identity: all that the vectors depend on beside the text (JSON-able); another identity, another file.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._base = sqlite3.connect(folder / f"{content_hash(identity)[:16]}.sqlite", timeout=60)
        self._base.execute("PRAGMA journal_mode=WAL")
        self._base.execute("PRAGMA synchronous=NORMAL")
        self._base.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
        self.computed = 0

    def get(self, texts: Sequence[str], compute: Callable[[Sequence[str]], NDArray[np.float32]]) -> NDArray[np.float32]:
        """Vectors of texts, computed where they are not known.

        Args:
            texts: any number of strings.
            compute: from texts to an array of shape (texts, dimensions), float32.

        Returns:
            Shape (texts, dimensions), in the order of `texts`.
        """
        keys = [xxhash.xxh3_128_digest(text.encode()) for text in texts]
        known = self._lookup(sorted(set(keys)))
        new = list({key: text for key, text in zip(keys, texts, strict=True) if key not in known}.items())
        new.sort(key=lambda item: len(item[1]))  # batches of like length, whatever order they were drawn in
        for start in range(0, len(new), _AT_ONCE):
            part = new[start : start + _AT_ONCE]
            vectors = np.ascontiguousarray(compute([text for _, text in part]), dtype=np.float32)
            rows = [(key, vector.tobytes()) for (key, _), vector in zip(part, vectors, strict=True)]
            with self._base:
                self._base.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
            known.update(rows)
            self.computed += len(part)
        if not keys:
            return compute([])
        return np.stack([np.frombuffer(known[key], dtype=np.float32) for key in keys])

    def _lookup(self, keys: list[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), _PER_QUERY):
            part = keys[start : start + _PER_QUERY]
            marks = ",".join("?" * len(part))
            found.update(self._base.execute(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", part))
        return found

    def close(self) -> None:
        """Close the file."""
        self._base.close()
