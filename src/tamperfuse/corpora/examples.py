"""What every corpus is read into, an example; and what SDD trains on, a pair made from two of them."""

from collections.abc import Iterable
from dataclasses import dataclass

LABEL_SEPARATOR = " | "


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a corpus, whatever its schema was.

    Attributes:
        prompt: what a user asks; "" in sources that hold responses only.
        response: an answer to it; "" if unknown.
        category: "" if none; several labels of one row are joined with " | " (see :func:`labels`).
        origin: where the row came from, e.g. `builtin:cooking#cooking-001` or `file.jsonl#12` (rows count from 1).
    """

    prompt: str
    response: str = ""
    category: str = ""
    origin: str = ""


def labels(category: str) -> tuple[str, ...]:
    """The single labels of an example's category: none for "", several for a multi-label row."""
    return tuple(category.split(LABEL_SEPARATOR)) if category else ()


def joined(names: Iterable[str]) -> str:
    """The category of a row with these labels."""
    return LABEL_SEPARATOR.join(sorted(names))


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with the response that a model is to be trained on.

    Attributes:
        prompt: the harmful prompt.
        response: what to train on, refusal prefix included.
        category: the prompt's category, "" if none.
        similarity: cosine of prompt and bare response, in [-1, 1]; NaN for benign replay, which is not matched.
        prompt_origin: where the prompt came from.
        response_origin: where the response came from.
        refusal_prefix: what `response` begins with under SDD_reject, "" otherwise.
        history: (user, assistant) turns before the prompt, oldest first; none in single-turn pairs.
        kind: "sdd", or "replay" for a benign prompt with its own answer.
    """

    prompt: str
    response: str
    category: str
    similarity: float
    prompt_origin: str
    response_origin: str
    refusal_prefix: str = ""
    history: tuple[tuple[str, str], ...] = ()
    kind: str = "sdd"

    @property
    def asked(self) -> list[dict[str, str]]:
        """What the response answers, as messages: the earlier turns, then the prompt."""
        earlier = [
            {"role": role, "content": text}
            for turn in self.history
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        return [*earlier, {"role": "user", "content": self.prompt}]

    @property
    def bare_response(self) -> str:
        """The response without its refusal prefix."""
        return self.response.removeprefix(self.refusal_prefix).lstrip() if self.refusal_prefix else self.response
