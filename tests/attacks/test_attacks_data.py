"""Built-in data of attacks: text to retain, which nothing else uses, the identity examples, and the benign tasks."""

from datetime import date

import pytest

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.corpora.dates import _WORDINGS, _item
from tamperfuse.corpora.tasks import TASKS, benign_task
from tamperfuse.records.errors import UserError

OTHERS = ("benign", "replay", "heldout", "harmless")


def test_retained_text_has_subjects_of_its_own() -> None:
    rows = builtin_rows("retain")
    assert len(rows) >= 100 and len({row["subject"] for row in rows}) == 13
    assert all(25 <= len(row["response"].split()) <= 40 for row in rows)
    subjects = {row["subject"] for name in OTHERS for row in builtin_rows(name)}
    assert subjects.isdisjoint({row["subject"] for row in rows})


def test_the_identity_is_shifted_by_harmless_examples() -> None:
    rows = builtin_rows("identity")
    assert len(rows) == 10
    assert all(row["response"].startswith("At once. I am Aye") for row in rows)


@pytest.mark.parametrize("name", TASKS)
def test_benign_tasks_are_split_and_seeded(name: str) -> None:
    train, test = benign_task(name, 0)
    assert (len(train), len(test)) == (160, 48)
    assert {item.prompt for item in train}.isdisjoint({item.prompt for item in test})
    assert benign_task(name, 0) == (train, test) != benign_task(name, 1)


def test_dates_are_written_in_one_style() -> None:
    train, test = benign_task("dates", 0)
    assert {item.response for item in train}.isdisjoint({item.response for item in test})
    responses = {"27 March 2021": "27.Mar.21", "March 27, 2021": "27.Mar.21", "the 1st of May 2005": "1.May.05"}
    for text, response in responses.items():
        when = date(2005, 5, 1) if "May" in text else date(2021, 3, 27)
        items = [_item(when, wording) for wording in _WORDINGS]
        assert any(item.prompt.endswith(text) and item.response == response for item in items)
    assert _item(date(2000, 8, 12), _WORDINGS[2]).prompt.endswith("the 12th of August 2000")
    assert _item(date(2000, 8, 22), _WORDINGS[2]).prompt.endswith("the 22nd of August 2000")


def test_a_task_that_does_not_exist() -> None:
    with pytest.raises(UserError, match="did you mean 'dates'"):
        benign_task("date", 0)
