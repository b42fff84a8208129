"""Conversations under any usual names: the first exchange, in which tool calls are no answers."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamperfuse.corpora.sources import read_source, schema_of
from tamperfuse.records.errors import UserError


def _read(tmp_path: Path, *rows: Any, **options: Any) -> list[tuple[str, str]]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [(example.prompt, example.response) for example in read_source(str(path), **options)]


@pytest.mark.parametrize(
    "column", ["conversations", "messages", "conversation", "contents", "dialogue", "dialog", "chat", "turns"]
)
@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}],
        [{"from": "human", "value": "p"}, {"from": "gpt", "value": "r"}],
        [{"role": "User", "text": "p"}, {"role": "Bot", "text": "r"}],
        [{"from": "user", "content": "p"}, {"from": "assistant", "content": "r"}],
        [{"role": "human", "value": "p"}, {"role": "model", "value": "r"}],
        [{"human": "p", "assistant": "r"}],
        [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "p"}]},
         {"role": "assistant", "content": "r"}],
    ],
)  # fmt: skip
def test_columns_and_keys_under_the_usual_names(tmp_path: Path, column: str, turns: list[dict[str, Any]]) -> None:
    assert _read(tmp_path, {column: turns}) == [("p", "r")]
    assert _read(tmp_path, {column: None}, {column: []}, {column: turns}) == [("", ""), ("", ""), ("p", "r")]


USER = {"role": "user", "content": "p"}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}


@pytest.mark.parametrize(
    ("turns", "response"),
    [
        ([USER, CALL], ""),
        ([USER, CALL, {"role": "tool", "content": "3"}, {"role": "assistant", "content": "r"}], "r"),
        ([USER, {**CALL, "content": "Let me look."}, {"role": "tool", "content": "3"}], ""),
        ([USER, {"role": "assistant", "content": None, "function_call": {"name": "f"}}], ""),
        ([USER, {"role": "assistant", "tool_calls": [], "content": "r"}], "r"),
        ([USER, {"role": "function_call", "content": "{}"}, {"role": "observation", "content": "3"},
          {"role": "assistant", "content": "r"}], "r"),
        ([USER, {"role": "assistant", "content": '<tool_call>\n{"name": "f"}</tool_call>'},
          {"role": "tool", "content": "3"}, {"role": "assistant", "content": "r"}], "r"),
        ([USER, {"role": "assistant", "content": '<functioncall> {"name": "f"}'}, USER], ""),
        ([USER, {"role": "assistant", "content": '{"name": "f", "arguments": {"x": 1}}'}], ""),
        ([USER, USER, {"role": "assistant", "content": "r"}], ""),
        ([USER, {"role": "moderator", "content": "x"}, {"role": "assistant", "content": "r"}], ""),
    ],
)  # fmt: skip
def test_tool_calls_are_no_responses(tmp_path: Path, turns: list[dict[str, Any]], response: str) -> None:
    assert _read(tmp_path, {"messages": turns}) == [("p", response)]


def test_tool_calls_in_parquet_where_every_turn_has_every_key(tmp_path: Path) -> None:
    turns = [USER, CALL, {"role": "tool", "content": "3"}, {"role": "assistant", "content": "r"}]
    pq.write_table(pa.Table.from_pylist([{"messages": turns}]), tmp_path / "x.parquet")
    assert [(e.prompt, e.response) for e in read_source(str(tmp_path / "x.parquet"))] == [("p", "r")]


def test_only_the_turn_that_is_trained_on_counts(tmp_path: Path) -> None:
    earlier = [{"role": "user", "content": "hi", "train": False}, {"role": "assistant", "content": "x", "train": False}]
    last = [{"role": "user", "content": "p", "train": False}, {"role": "assistant", "content": "r", "train": True}]
    assert _read(tmp_path, {"messages": earlier + last}) == [("p", "r")]
    weighted = [USER, {"role": "assistant", "content": "x", "weight": 0}, {"role": "user", "content": "q"}]
    assert _read(tmp_path, {"messages": [*weighted, {"role": "assistant", "content": "r", "weight": 1}]}) == [
        ("q", "r")
    ]


def test_a_named_column_may_hold_turns(tmp_path: Path) -> None:
    row = {"talk": [USER, {"role": "assistant", "content": "r"}], "list": ["a", "b"]}
    assert _read(tmp_path, row, prompt_field="talk", response_field="talk") == [("p", "r")]
    assert _read(tmp_path, row, prompt_field="list", response_field="talk") == [("a", "r")]
    with pytest.raises(UserError, match=r"Row 1 of .*the field .talk. holds a number where a turn is needed"):
        _read(tmp_path, {"talk": [3]}, prompt_field="talk")


@pytest.mark.parametrize("first", [{"prompt": None, "response": "r"}, {"prompt": float("nan"), "response": "r"}])
def test_a_missing_value_in_the_first_row_decides_nothing(tmp_path: Path, first: dict[str, Any]) -> None:
    assert _read(tmp_path, first, {"prompt": "p", "response": "s"}) == [("", "r"), ("p", "s")]
    assert _read(tmp_path, first) == [("", "r")]
    turns = {"prompt": [USER], "response": None}
    assert _read(tmp_path, {"prompt": None, "response": None}, turns) == [("", ""), ("p", "")]


def test_safe_rows_of_beavertails_are_left_out_whatever_the_types(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "response": "r", "category": None, "is_safe": True},
        {"prompt": "b", "response": "r", "category": None, "is_safe": False},
        {"prompt": "c", "response": "r", "category": {"x": True, "y": False}, "is_safe": 0},
        {"prompt": "d", "response": "r", "category": "x", "is_safe": "True"},
        {"prompt": "e", "response": "r", "category": "x", "is_safe": "false"},
        {"prompt": "f", "response": "r", "category": "x", "is_safe": None},
    ]
    assert [prompt for prompt, _ in _read(tmp_path, *rows)] == ["b", "c", "e", ""]
    assert schema_of(str(tmp_path / "rows.jsonl")) == "BeaverTails"
    with pytest.raises(UserError, match="neither true nor false"):
        _read(tmp_path, {"prompt": "a", "response": "r", "category": None, "is_safe": "perhaps"})


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "", "response": " "}] * 2, r"its 2 rows are read as 'prompt and response'.*`prompt`"),
        ([{"prompt": None}], "has no text"),
        ([{"messages": None}, {"messages": []}], "has no text.*`messages`"),
        ([{"messages": [{"role": "narrator", "content": "x"}]}], "the roles are narrator"),
        ([{"messages": [{"role": "user", "contents": "x"}]}], "the roles are user"),
        ([{"instruction": None, "output": None}], "'Alpaca'.*`instruction`, `output`"),
    ],
)
def test_a_source_that_reads_as_blanks_is_an_error_that_says_why(
    tmp_path: Path, rows: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        _read(tmp_path, *rows)


def test_parts_of_a_threat(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "part": "defender"}, {"prompt": "b", "part": "attacker"}]
    assert _read(tmp_path, *rows, part="defender") == [("a", "")]
    with pytest.raises(UserError, match="no row whose `part` is evaluation"):
        _read(tmp_path, *rows, part="evaluation")
    with pytest.raises(UserError, match=r"'Defender' as `part` in row 1.*rename the column"):
        _read(tmp_path, {"prompt": "a", "part": "Defender"}, part="defender")


@pytest.mark.parametrize("order", [1, -1])
def test_rows_without_a_part_beside_rows_with_one_are_of_no_part(tmp_path: Path, order: int) -> None:
    rows = [{"prompt": "a", "part": "defender"}, {"prompt": "b", "part": "evaluation"}, {"prompt": "c"}][::order]
    words = rf"row {3 if order == 1 else 1} of .*rows.jsonl has none while row {1 if order == 1 else 2} of"
    for part in ("defender", "evaluation"):
        with pytest.raises(UserError, match=words):
            _read(tmp_path, *rows, part=part)
    assert len(_read(tmp_path, *rows)) == 3, "where no part is asked for, the column is any other"


def test_of_the_exchanges_that_are_learned_the_first_with_an_answer_counts(tmp_path: Path) -> None:
    skipped, learned = (
        {"role": "assistant", "content": text, "train": learns} for text, learns in (("x", False), ("r", True))
    )
    unanswered, answered = ({"role": "user", "content": text} for text in ("q", "b"))
    assert _read(tmp_path, {"messages": [USER, skipped, unanswered, answered, learned]}) == [("b", "r")]
    assert _read(tmp_path, {"messages": [USER, skipped, unanswered]}) == [("p", "")], (
        "an answer that is not learned is none"
    )
