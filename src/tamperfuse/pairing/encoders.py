"""Encoders for `tamperfuse pair`: with a cache, over processes, over a Ray cluster."""

from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tamperfuse.models.encoder import SentenceEncoder
from tamperfuse.pairing.cache import VectorCache
from tamperfuse.pairing.match import Encoder
from tamperfuse.records.errors import UserError

Vectors = NDArray[np.float32]


class CachedEncoder:
    """An encoder that remembers every text it has seen."""

    def __init__(self, encoder: Encoder, folder: Path, dtype: str = "float32") -> None:
        """Keep what `encoder` computes in `folder`."""
        self.name = encoder.name
        self._encoder = encoder
        self.cache = VectorCache(folder, ["encoder", encoder.name, dtype])

    def encode(self, texts: Sequence[str]) -> Vectors:
        """See :class:`tamperfuse.pairing.match.Encoder`."""
        return self.cache.get(texts, self._encoder.encode)


class RayEncoder:
    """Encodes over Ray Data: a batch of texts a task, an encoder loaded once an actor.

    The cluster is the one that `ray.init()` finds: RAY_ADDRESS, or a new one on this machine.
    """

    def __init__(self, name: str, dtype: Literal["float32", "bfloat16"], workers: int) -> None:
        """Set up.

        Args:
            name: the sentence-transformers model, which every machine must be able to load.
            dtype: its precision.
            workers: actors, at least 1.

        Raises:
            UserError: Ray is not installed.
        """
        self.name, self._dtype, self._workers = name, dtype, workers
        if find_spec("ray") is None:
            raise UserError("--executor ray needs Ray: pip install 'tamperfuse[ray]'.")

    def encode(self, texts: Sequence[str]) -> Vectors:
        """See :class:`tamperfuse.pairing.match.Encoder`."""
        import ray.data

        if not texts:
            return np.zeros((0, 0), dtype=np.float32)
        rows = ray.data.from_items([{"at": at, "text": text} for at, text in enumerate(texts)])
        done = rows.map_batches(
            _RayActor,
            fn_constructor_args=(self.name, self._dtype),
            compute=ray.data.ActorPoolStrategy(size=self._workers),
            batch_size=min(256, max(1, len(texts) // self._workers)),
        ).take_all()
        return np.stack([row["vector"] for row in sorted(done, key=lambda row: int(row["at"]))]).astype(np.float32)


class _RayActor:
    """One encoder in one Ray actor."""

    def __init__(self, name: str, dtype: Literal["float32", "bfloat16"]) -> None:
        self._encoder = SentenceEncoder(name, dtype=dtype)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"at": batch["at"], "vector": self._encoder.encode([str(text) for text in batch["text"]])}


class LazyEncoder:
    """A sentence encoder that is loaded when a text is not in the cache: a warm run loads no model."""

    def __init__(self, name: str, dtype: Literal["float32", "bfloat16"], workers: int) -> None:
        """Name the model, its precision and the number of processes."""
        self.name, self._dtype, self._workers = name, dtype, workers

    @cached_property
    def _encoder(self) -> SentenceEncoder:
        return SentenceEncoder(self.name, dtype=self._dtype, workers=self._workers)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """See :class:`tamperfuse.pairing.match.Encoder`."""
        return self._encoder.encode(texts) if texts else np.zeros((0, 0), dtype=np.float32)
