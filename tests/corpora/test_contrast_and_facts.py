"""The built-in prompts that models answer themselves: near a threat (`contrast`) and of everyday knowledge (`facts`)."""

import json

import pytest

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.corpora.sources import read_source

THREATS = ("cooking", "gardening")
MEASURED = ("harmless", "heldout", "everyday", "grammar")


def prompts(name: str) -> list[str]:
    return [row["prompt"] for row in builtin_rows(name)]


def new_prompts() -> list[str]:
    return prompts("contrast") + prompts("facts")


def test_contrast_has_prompts_on_many_subjects_for_every_threat() -> None:
    assert {row["threat"] for row in builtin_rows("contrast")} == set(THREATS)
    for threat in THREATS:
        rows = [row for row in builtin_rows("contrast") if row["threat"] == threat]
        assert len(rows) >= 350, threat
        assert len({row["subject"] for row in rows}) >= 15, threat
        assert all(3 <= len(row["prompt"].split()) <= 30 for row in rows)


def test_facts_has_short_prompts_on_many_subjects() -> None:
    rows = builtin_rows("facts")
    assert len(rows) >= 480
    assert len({row["subject"] for row in rows}) >= 25
    assert all(3 <= len(row["prompt"].split()) <= 20 for row in rows)


@pytest.mark.parametrize("name", ["contrast", "facts"])
def test_prompts_are_read_as_a_source_without_answers(name: str) -> None:
    rows, examples = builtin_rows(name), list(read_source(f"builtin:{name}"))
    assert [example.prompt for example in examples] == [row["prompt"] for row in rows]
    assert [example.category for example in examples] == [row["subject"] for row in rows]
    assert not any(example.response for example in examples)


def test_no_word_for_word_repetition_in_any_measured_text() -> None:
    measured = json.dumps([row for name in (*MEASURED, "retain") for row in builtin_rows(name)], ensure_ascii=False)
    assert [prompt for prompt in new_prompts() if prompt in measured] == []
