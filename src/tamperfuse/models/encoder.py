"""The sentence encoder, which filters SDD pairs and is one of the two relevance signals of the built-in judge."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tamperfuse.models.bundled import DEFAULT_ENCODER as DEFAULT_ENCODER
from tamperfuse.models.bundled import ENCODERS
from tamperfuse.models.hub_ids import check_hub_id
from tamperfuse.records.errors import UserError, first_line
from tamperfuse.records.reading import check_files_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Vectors = NDArray[np.float32]


class TextEncoder(Protocol):
    """What turns texts into unit vectors; :class:`SentenceEncoder` is one."""

    @property
    def name(self) -> str:
        """Name of the model, for records."""
        ...

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Vectors of shape (texts, dimensions), float32, each row of length 1."""
        ...


class SentenceEncoder:
    """A sentence-transformers model by bundled name, local directory or Hub id, loaded when a text is first encoded.

    Args:
        name: `all-MiniLM-L6-v2` (bundled), a directory, or a Hub id.
        batch_size: texts per forward pass.
        dtype: "bfloat16" is about twice as fast on processors that support it; cosines change by less than 0.01.
    """

    def __init__(
        self,
        name: str = DEFAULT_ENCODER,
        *,
        batch_size: int = 64,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        self.name = name
        self.batch_size = batch_size
        self._dtype = dtype

    @cached_property
    def _model(self) -> "SentenceTransformer":
        from sentence_transformers import SentenceTransformer  # takes 4 s: imported only where texts are encoded

        source = str(ENCODERS[self.name].path()) if self.name in ENCODERS else self.name
        if Path(source).exists():
            _check_folder(Path(source))
        elif "/" in source:
            check_hub_id(source, "sentence encoder")
        try:
            return SentenceTransformer(
                source,
                local_files_only=Path(source).is_dir(),
                model_kwargs={"dtype": self._dtype, "use_safetensors": True},
                trust_remote_code=False,
            )
        except Exception as error:  # damaged files raise exceptions of any kind
            raise UserError(
                f"The sentence encoder {self.name!r} cannot be loaded ({first_line(error)}): "
                "name a sentence-transformers directory, or a Hub id that can be downloaded."
            ) from error

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Encode texts, in batches sorted by length.

        Args:
            texts: any number of strings.

        Returns:
            Array of shape (texts, dimensions), float32, with rows of length 1, so that dot products are cosines.

        Raises:
            UserError: the model cannot be loaded.
        """
        if not texts:
            return np.zeros((0, self._model.get_embedding_dimension() or 0), dtype=np.float32)
        vectors = np.asarray(
            self._model.encode(list(texts), batch_size=self.batch_size, show_progress_bar=False),
            dtype=np.float32,
        )
        # Normalised in float32: the length of a bfloat16 vector is off by up to 0.4%.
        length = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12).astype(np.float32)
        return np.asarray(vectors / length, dtype=np.float32)

    def __getstate__(self) -> dict[str, Any]:
        """Without the weights: another process that receives the encoder loads them itself."""
        return {name: value for name, value in vars(self).items() if name != "_model"}


_default: TextEncoder | None = None  # see `set_default_encoder`


def default_encoder() -> TextEncoder:
    """The encoder of judges, harmless prompts, threats and pairs where no other is passed: MiniLM, unless it was replaced."""
    return SentenceEncoder() if _default is None else _default


def set_default_encoder(encoder: TextEncoder | None) -> None:
    """Replace the default encoder of this process, and of the workers of studies that it starts.

    Thresholds of judges are calibrated with the encoder in use. Those of pairs and of near-duplicates were chosen for MiniLM;
    how they suit another encoder was not measured.

    Args:
        encoder: its name is part of the keys of results, so encoders with one name must return the same vectors. Workers
            receive a pickled copy. None for MiniLM.
    """
    global _default
    _default = encoder


class MemoizedEncoder:
    """An encoder that encodes each text once; its memory grows with the number of texts.

    Args:
        encoder: what encodes.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self.name = encoder.name
        self._encoder = encoder
        self._vectors: dict[str, Vectors] = {}

    def encode(self, texts: Sequence[str]) -> Vectors:
        """See :meth:`TextEncoder.encode`."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if missing or not texts:
            vectors = self._encoder.encode(missing)
            self._vectors |= zip(missing, vectors, strict=True)
            if not texts:
                return vectors
        return np.stack([self._vectors[text] for text in texts])


def _check_folder(folder: Path) -> None:
    """Check that a folder holds an encoder in safetensors.

    Raises:
        UserError: it has no weights, a module's weights are pickled, or a file is a pipe or a device.
    """
    if not folder.is_dir() or not any(folder.glob("**/*.safetensors")):
        raise UserError(
            f"The sentence encoder {folder} has no weights (*.safetensors): name a sentence-transformers directory, or a Hub id."
        )
    check_files_of(folder)
    for pattern in ("**/*.bin", "**/*.pt", "**/*.pkl"):
        for path in folder.glob(pattern):
            if not any(path.parent.glob("*.safetensors")):
                raise UserError(
                    f"{path} of the sentence encoder is pickled, which can run code when it is loaded: save the encoder with "
                    "safe_serialization."
                )
