"""The layout of a source is that of all its rows: a column that the first row lacks is not lost."""

import json
from pathlib import Path
from typing import Any

import pytest

from tamperfuse.corpora import sources
from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.corpora.sources import builtin_names, read_source, schema_of
from tamperfuse.records.errors import UserError


def _write(path: Path, *rows: dict[str, Any]) -> Path:
    text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def _texts(path: Path) -> list[tuple[str, str]]:
    return [(example.prompt, example.response) for example in read_source(str(path))]


CHOSEN = {"prompt": "q", "chosen": "good", "rejected": "bad"}


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize(
    ("rows", "schema", "texts"),
    [
        ([{"prompt": "p"}, {"prompt": "q", "completion": "c"}], "prompt–completion", [("p", ""), ("q", "c")]),
        ([{"prompt": "p", "response": "r"}, CHOSEN], "prompt and response", [("p", "r"), ("q", "good")]),
        (
            [{"prompt": "p", "response": None, "output": "o"}, {"prompt": "q", "response": " ", "answer": "a"}],
            "prompt and response",
            [("p", "o"), ("q", "a")],
        ),
        (
            [{"instruction": "i", "response": "r"}, {"instruction": "j", "context": "c", "response": "s"}],
            "Dolly",
            [("i", "r"), ("j\n\nc", "s")],
        ),
        (
            [{"prompt": "p", "response": "r"}]
            + [{"prompt": name, "response": "r", "category": "c", "is_safe": name == "safe"} for name in ("safe", "not")],
            "BeaverTails",
            [("", ""), ("not", "r")],
        ),
        (
            [{"id": 1}, {"id": 2, "messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}]}],
            "OpenAI messages",
            "Row 1 of .*'OpenAI messages' .the field 'messages' is missing",
        ),
        (
            [{"prompt": "p", "response": "r"}, {"instruction": "i", "output": "o"}],
            "Alpaca",
            "Row 1 of .*'Alpaca' .the field 'instruction' is missing",
        ),
    ],
)  # fmt: skip
def test_columns_that_the_first_row_lacks_determine_the_layout(
    tmp_path: Path, suffix: str, rows: list[dict[str, Any]], schema: str, texts: list[tuple[str, str]] | str
) -> None:
    path = _write(tmp_path / f"rows{suffix}", *rows)
    assert schema_of(str(path)) == schema
    if isinstance(texts, list):
        assert _texts(path) == texts
        return
    with pytest.raises(UserError, match=texts):
        _texts(path)


def test_the_assistants_text_of_a_chosen_conversation(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}]
    for row in ({"prompt": "p", "chosen": turns, "rejected": []}, {"prompt": turns[:1], "chosen": turns[1:]}):
        assert _texts(_write(tmp_path / "rows.jsonl", row)) == [("p", "r")]


def test_a_column_that_comes_late_is_refused_and_not_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_FIRST_ROWS", 3)
    rows = [{"prompt": f"p{n}"} for n in range(3)]
    path = _write(tmp_path / "rows.jsonl", *rows, {"prompt": "p3", "note": "x"})
    assert _texts(path)[-1] == ("p3", "")
    _write(path, *rows, {"prompt": "p3", "note": "x"}, {"prompt": "p4", "completion": "c"})
    words = r"Row 5 of .*rows.jsonl is the first with the columns 'completion'.*'prompt–completion'.*the same columns"
    with pytest.raises(UserError, match=words):
        _texts(path)
    monkeypatch.setattr(sources, "_FIRST_TEXT", 1)
    with pytest.raises(UserError, match="Row 2 "):
        _texts(_write(path, {"prompt": "p"}, {"prompt": "q", "completion": "c"}))
    named = read_source(str(path), prompt_field="prompt", response_field=None)
    assert [example.prompt for example in named] == ["p", "q"], "named columns need no layout"


def test_shards_of_one_layout_may_differ_in_their_first_rows(tmp_path: Path) -> None:
    _write(tmp_path / "a.jsonl", {"prompt": "p"}, {"prompt": "q", "completion": "c"})
    _write(tmp_path / "b.jsonl", {"prompt": "r", "completion": "d"})
    assert _texts(tmp_path) == [("p", ""), ("q", "c"), ("r", "d")]


@pytest.mark.parametrize("name", [name for name in builtin_names() if "prompt" in builtin_rows(name)[0]])
def test_built_in_data_is_read_as_it_is(name: str) -> None:
    rows = builtin_rows(name)
    examples = list(read_source(f"builtin:{name}"))
    assert [example.origin for example in examples] == [f"builtin:{name}#{row['id']}" for row in rows]
    assert [example.prompt for example in examples] == [row["prompt"].strip() for row in rows]
    assert [example.response for example in examples] == [row.get("response", "").strip() for row in rows]
    categories = [row.get("category", row.get("kind", row.get("subject", ""))) for row in rows]
    assert [example.category for example in examples] == categories
