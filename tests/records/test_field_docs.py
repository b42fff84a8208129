from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from tamperfuse.records.field_docs import FieldDoc, field_docs, summary_line, type_words


class Base(BaseModel):
    """The base of a model.

    Attributes:
        steps: optimizer steps, which may take
            two lines: or more.
        rate: as in :class:`tamperfuse.Training`.
    """

    steps: int = Field(3, ge=1)
    rate: float | None = Field(None, gt=0, lt=1)


class Derived(Base):
    """A model whose summary
    takes two lines.

    Attributes:
        rate: another meaning: None for none.
        items: their number, or `all`.

    Raises:
        nothing: this is another section.
    """

    items: Annotated[int, Field(ge=2)] | Literal["all"] = "all"
    name: str = Field(min_length=1)
    parts: dict[str, Base] = Field(default_factory=dict)
    copied: int = Field(default_factory=lambda values: values["steps"], le=10**15)


def test_fields_have_type_default_range_and_the_nearest_meaning() -> None:
    assert field_docs(Derived) == [
        FieldDoc("steps", "whole number", "3", "at least 1", "optimizer steps, which may take two lines: or more."),
        FieldDoc("rate", "number or null", "null", "in (0, 1)", "another meaning: null for none."),
        FieldDoc("items", "whole number or all", "all", "at least 2", "their number, or `all`."),
        FieldDoc("name", "text", "required", "not empty", ""),
        FieldDoc("parts", "mapping of names to Base", "{}", "", ""),
        FieldDoc("copied", "whole number", "", "", ""),
    ]
    assert field_docs(Base)[1].meaning == "as in `tamperfuse.Training`."
    assert summary_line(Derived) == "A model whose summary takes two lines."


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Literal["full", "lora", "attention"], "full, lora or attention"),
        (tuple[int, ...], "list of whole numbers"),
        (str | tuple[str, ...], "text or list of text"),
        (bool, "true or false"),
    ],
)
def test_types_are_words(annotation: object, words: str) -> None:
    assert type_words(annotation) == words
