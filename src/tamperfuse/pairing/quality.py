"""`--score-quality`: responses ranked by their likelihood under a model; only the best share is used.

The paper requires high-quality responses (section 4.1). The limit is a quantile over a random sample of the pool, so only
responses that are drawn need a score. The score is the NLL without the prompt, in nats a token, over the first 256 tokens.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tamperfuse.models.fingerprint import model_fingerprint
from tamperfuse.models.load import LoadedModel, load_model
from tamperfuse.models.packed import pack, packed_logits
from tamperfuse.pairing.cache import VectorCache, in_batches

SAMPLE = 512  # responses that set the limit
_TOKENS = 256
_BATCH = 16


class QualityCut:
    """Accepts responses whose NLL is among the lowest share.

    Attributes:
        limit: highest NLL that is accepted, nats a token.
        model: the model that scores.
        keep_best: the share.
    """

    def __init__(self, model: str, keep_best: float, sample: Sequence[str], cache_folder: Path) -> None:
        """Score a sample and set the limit.

        Args:
            model: Hub id, directory, .gguf or bundled name.
            keep_best: share to accept, in (0, 1].
            sample: random texts of the pool.
            cache_folder: folder of the cache of scores.
        """
        self.model, self.keep_best = model, keep_best
        self._loaded: LoadedModel | None = None
        self._cache = VectorCache(cache_folder, ["nll", model_fingerprint(model), _TOKENS], "scoring quality")
        self.limit = float(np.quantile(self.scores(sample), keep_best))

    def __call__(self, texts: Sequence[str]) -> list[bool]:
        """Whether the NLL of texts is at most the limit."""
        return [bool(score <= self.limit) for score in self.scores(texts)]

    def scores(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """NLL of texts, nats a token. Shape (texts,)."""
        return self._cache.get(texts, in_batches(self._nll))[:, 0] if texts else np.zeros(0, dtype=np.float32)

    def _nll(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Mean NLL of texts. Shape (texts, 1)."""
        import torch

        if self._loaded is None:
            self._loaded = load_model(self.model)
        model, tokenizer = self._loaded.model, self._loaded.chat.tokenizer
        means: list[float] = []
        for start in range(0, len(texts), _BATCH):
            sequences = [tokenizer.encode(text)[:_TOKENS] for text in texts[start : start + _BATCH]]
            # A text of one token has no prediction to score; it is doubled to have one (the length filter refuses it anyway).
            sequences = [tokens if len(tokens) > 1 else [*tokens, self._loaded.chat.end] * 2 for tokens in sequences]
            lengths = [len(tokens) for tokens in sequences]
            ends = np.cumsum(lengths)
            predicting = np.setdiff1d(np.arange(ends[-1]), ends - 1)  # all tokens but the last of every text
            with torch.inference_mode():
                row, layout = pack(sequences, 0, model.device)
                logits = packed_logits(model, row, layout, torch.from_numpy(predicting).to(model.device)).float()
                nll = torch.nn.functional.cross_entropy(logits, row[0, predicting + 1], reduction="none")
            means += [float(part.mean()) for part in torch.split(nll, [length - 1 for length in lengths])]
        return np.array(means, dtype=np.float32)[:, None]
