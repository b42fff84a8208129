"""Lengths of prompts and responses, in tokens of the target model or in words."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tamperfuse.corpora.examples import Pair
from tamperfuse.records.errors import UserError, first_line

_QUANTILES = {"5%": 0.05, "median": 0.5, "95%": 0.95, "longest": 1.0}


@dataclass(frozen=True)
class LengthCounter:
    """Measures the length of texts.

    Attributes:
        count: returns the length of a text.
        unit: of the length, for the audit.
    """

    count: Callable[[str], int]
    unit: str


def length_counter(tokenizer: str | None) -> LengthCounter:
    """A counter of a tokenizer's tokens, or of words if `tokenizer` is None.

    Raises:
        UserError: the tokenizer cannot be loaded.
    """
    if tokenizer is None:
        return LengthCounter(lambda text: len(text.split()), "words")
    from transformers import AutoTokenizer

    from tamperfuse.models.load import resolve_model

    try:
        loaded = AutoTokenizer.from_pretrained(str(resolve_model(tokenizer) or tokenizer))
    except Exception as error:  # transformers raises errors of many types for damaged tokenizers
        raise UserError(
            f"The tokenizer of {tokenizer!r} cannot be loaded ({first_line(error)}): name a model's directory, a "
            "bundled model or a Hub id that this machine can reach, or leave --tokenizer out."
        ) from error
    return LengthCounter(lambda text: len(loaded.encode(text, add_special_tokens=False)), f"tokens of {tokenizer}")


def quantiles(pairs: Sequence[Pair], length: LengthCounter) -> dict[str, Any]:
    """Quantiles of prompt and response lengths over at least one pair."""
    texts = (("prompt", [pair.prompt for pair in pairs]), ("response", [pair.response for pair in pairs]))
    return {"unit": length.unit, "pairs_measured": len(pairs)} | {
        name: {
            label: int(np.quantile([length.count(text) for text in column], share))
            for label, share in _QUANTILES.items()
        }
        for name, column in texts
    }
