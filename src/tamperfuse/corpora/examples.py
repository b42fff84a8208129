"""`Example`, a row of any corpus, and `Pair`, a prompt and response that SDD trains on."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Part = Literal["defender", "attacker", "attacker_dev", "evaluation"]  # of a threat
PARTS: tuple[Part, ...] = get_args(Part)
LABEL_SEPARATOR = " | "

# The refusal prefix of SDD_reject, as in the paper (section 4.1); join it to a response with `with_refusal_prefix`.
PAPER_REFUSAL_PREFIX = (
    "I refuse to answer your question for responsible and ethical reasons. "
    "I provided an irrational answer to your question."
)


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a corpus of any schema.

    Attributes:
        prompt: the user's message; "" in sources of responses only.
        response: an answer to it; "" if unknown.
        category: "" if none; several labels are joined with " | " (see :func:`labels`).
        origin: source of the row, e.g. `builtin:cooking#cooking-001` or `file.jsonl#12` (rows are numbered from 1).
    """

    prompt: str
    response: str = ""
    category: str = ""
    origin: str = ""


def labels(category: str) -> tuple[str, ...]:
    """The labels of a category: none for "", several for a multi-label row."""
    return tuple(category.split(LABEL_SEPARATOR)) if category else ()


def join_labels(names: Iterable[str]) -> str:
    """The category of a row with several labels."""
    return LABEL_SEPARATOR.join(sorted(names))


def with_refusal_prefix(response: str, prefix: str) -> str:
    """A response of SDD_reject: the prefix, a blank line, the response. The response alone if the prefix is ""."""
    return f"{prefix}\n\n{response}" if prefix else response


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with the response that a defense trains on.

    Attributes:
        prompt: the harmful prompt.
        response: the target of training, refusal prefix included.
        category: the prompt's category, "" if none.
        similarity: cosine of the prompt and the response without its refusal prefix, in [-1, 1]; NaN for benign replay, which
            is not matched.
        prompt_origin: source of the prompt.
        response_origin: source of the response.
        refusal_prefix: the beginning of `response` under SDD_reject; "" otherwise.
        history: (user, assistant) turns before the prompt, oldest first; empty in single-turn pairs.
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
    def prompt_messages(self) -> list[dict[str, str]]:
        """The earlier turns and then the prompt, as messages with `role` and `content`; `response` answers the last one."""
        earlier = [
            {"role": role, "content": text}
            for turn in self.history
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        return [*earlier, {"role": "user", "content": self.prompt}]
