"""What every corpus is read into: a prompt, a response, a category, and where the row came from."""

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
