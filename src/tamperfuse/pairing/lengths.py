"""How long prompts and responses are, in the target model's tokens or in words."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tamperfuse.corpora.examples import Pair
from tamperfuse.records.errors import UserError

_MARKS = {"5%": 0.05, "median": 0.5, "95%": 0.95, "longest": 1.0}


@dataclass(frozen=True)
class LengthCounter:
    """Measures texts.

    Attributes:
        count: the length of a text.
        unit: what is counted, for the audit.
    """

    count: Callable[[str], int]
    unit: str


def length_counter(tokenizer: str | None) -> LengthCounter:
    """Count tokens of a model's tokenizer, or words if none is named.

    Raises:
        UserError: the tokenizer cannot be loaded.
    """
    if tokenizer is None:
        return LengthCounter(lambda text: len(text.split()), "words")
    from transformers import AutoTokenizer

    from tamperfuse.models.load import resolve_model

    try:
        loaded = AutoTokenizer.from_pretrained(str(resolve_model(tokenizer) or tokenizer))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"The tokenizer of {tokenizer!r} cannot be loaded ({str(error).splitlines()[0]}): name a model's directory, a "
            "bundled model or a Hub id that this machine can reach, or leave --tokenizer out."
        ) from error
    return LengthCounter(lambda text: len(loaded.encode(text, add_special_tokens=False)), f"tokens of {tokenizer}")


def quantiles(pairs: Sequence[Pair], length: LengthCounter) -> dict[str, Any]:
    """Quantiles of prompt and response lengths over pairs, of which there is at least one."""
    texts = (("prompt", [pair.prompt for pair in pairs]), ("response", [pair.response for pair in pairs]))
    return {"unit": length.unit, "pairs_measured": len(pairs)} | {
        name: {mark: int(np.quantile([length.count(text) for text in said], at)) for mark, at in _MARKS.items()}
        for name, said in texts
    }
