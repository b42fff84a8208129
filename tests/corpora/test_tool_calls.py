"""Calls of tools in the markup of the usual chat templates are no answers; text that shows or mentions such markup is one."""

import json
from pathlib import Path
from typing import Any

import pytest

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.corpora.sources import builtin_names, read_source
from tamperfuse.corpora.tool_calls import is_tool_call

CALL = '{"name": "weather", "arguments": {"city": "Oslo"}}'


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>\n{CALL}\n</tool_call>",
        f"Let me look.\n<tool_call>{CALL}</tool_call>",
        f"I will call `weather` now: <tool_call>\n{CALL}",
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>",
        "Sure.\n<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>",
        f"Sure, one moment. <functioncall> {CALL}",
        f"<|tool_call|>[{CALL}]<|/tool_call|>",
        f"<TOOLCALL>[{CALL}]</TOOLCALL>",
        f"[TOOL_CALLS] [{CALL}]",
        'I look.[TOOL_CALLS]weather[ARGS]{"city": "Oslo"}',
        f"<|python_tag|>{CALL}",
        '<|python_tag|>weather.call(city="Oslo")',
        '<function=weather>{"city": "Oslo"}</function>',
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{}<|tool_call_end|>",
        "I see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{}\n```<｜tool▁call▁end｜>",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">',
        '<|tool_call_start|>[weather(city="Oslo")]<|tool_call_end|>',
        f"I look it up.<|action_start|><|plugin|>\n{CALL}<|action_end|>",
        '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "weather", "parameters": {}}]<|END_ACTION|>',
        'Action: ```json\n[{"tool_name": "weather", "parameters": {"city": "Oslo"}}]\n```',
        '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Oslo"}',
        '<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{"city": "Oslo"}',
        '<function_calls>\n<invoke name="weather">\n<parameter name="city">Oslo</parameter>\n</invoke>\n</function_calls>',
        "<start_function_call>call:weather{city:Oslo}<end_function_call>",
        f"functools[{CALL}]",
        '>>>weather\n{"city": "Oslo"}',
        "I should look.\nAction: weather\nAction Input: Oslo",
        '```tool_code\nprint(weather(city="Oslo"))\n```',
        f"```json\n{CALL}\n```",
        CALL,
        f"[{CALL}, {CALL}]",
        f"{CALL}\n{CALL}",
        f"{CALL}; {CALL}",
        f'{{"function": {CALL}}}',
        f'{{"type": "function", "id": "1", "function": {CALL}}}',
        f'{{"content": "I look.", "tool_calls": [{{"function": {CALL}}}]}}',
        '{"function": "weather", "arguments": "{}"}',
        '{"tool": "weather", "tool_input": {"city": "Oslo"}}',
        '{"action": "weather", "action_input": "Oslo"}',
        '{"type": "tool_use", "id": "1", "name": "weather", "input": {}}',
        '{"tool_uses": [{"recipient_name": "functions.weather", "parameters": {}}]}',
        '[weather(city="Oslo"), wind()]',
        '[Get Weather(city="Oslo", days=3)]',
    ],
)
def test_calls_in_every_usual_markup(text: str) -> None:
    assert is_tool_call(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"a": ',
        "<table>",
        "def f(): ...",
        '{"name": "Ada", "born": 1815}',
        '[{"name": "Ada"}, {"name": "Grace"}]',
        '[{"name": "empty list", "input": [], "output": 0}]',
        '{"name": "weather", "description": "The weather of a city.", "parameters": {"type": "object"}}',
        '{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}',
        '{"action": "move", "direction": "left"}',
        f"Qwen writes a call as\n```\n<tool_call>{CALL}</tool_call>\n```\nin its answer.",
        f"It is written `<tool_call>{CALL}</tool_call>`.",
        "Use the <tool_call> tag, in which the call stands, and the [TOOL_CALLS] token of Mistral.",
        "A function call has a name and arguments.\nAction: write it down.",
        f"Here is the JSON:\n{CALL}\nIt has two fields.",
        "[sorted(key=len)]",
        "[Note (see below)]",
        "[1] Smith, J. (2020)",
        "[a link](https://example.org/?x=1)",
        ">>> f(1)\n{2}",
        "```python\nweather(city='Oslo')\n```",
        "1 < 2, and a > b: [x for x in y]",
        "{" * 5000,
        '{"function":' * 900 + "{}" + "}" * 900,
    ],
)
def test_answers_that_are_like_calls(text: str) -> None:
    assert not is_tool_call(text)


def test_no_built_in_response_is_a_call() -> None:
    texts = [row["response"] for name in builtin_names() for row in builtin_rows(name) if "response" in row]
    assert len(texts) > 1000 and not any(map(is_tool_call, texts))


USER, ANSWER = {"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "assistant", "content": [{"type": "text", "text": "I look."}, {"type": "tool_use", "name": "f", "input": {}}]},
         {"role": "user", "content": [{"type": "tool_result", "content": "3"}]}],
        [{"role": "assistant", "content": [{"text": "I look."}, {"toolUse": {"name": "f"}}]},
         {"role": "user", "content": [{"toolResult": {"content": []}}, {"text": "3"}]}],
        [{"role": "model", "parts": [{"text": "I look."}, {"functionCall": {"name": "f"}}]},
         {"role": "user", "parts": [{"functionResponse": {"name": "f"}}]}],
        [{"type": "function_call", "name": "f", "arguments": "{}"}, {"type": "function_call_output", "output": "3"}],
        [{"role": "Tool-Call", "content": "f"}, {"role": "environment", "content": "3"}],
        [{"role": "assistant", "content": f"I look.\n<tool_call>{CALL}</tool_call>"}, {"role": "tool", "content": "3"}],
        [{"role": "assistant", "content": None, "tool_calls": "[]"}, {"role": "assistant", "tool_calls": float("nan")}],
    ],
)  # fmt: skip
def test_the_answer_is_the_text_after_the_tools_result(tmp_path: Path, turns: list[dict[str, Any]]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": [USER, *turns, ANSWER]}))
    assert [(example.prompt, example.response) for example in read_source(str(path))] == [("p", "r")]


def test_an_empty_list_of_calls_is_no_call(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    empty = [[], None, "[]", "null", {}]
    path.write_text(
        "".join(json.dumps({"messages": [USER, {**ANSWER, "tool_calls": calls}]}) + "\n" for calls in empty)
    )
    assert [example.response for example in read_source(str(path))] == ["r"] * len(empty)


def test_a_thought_is_no_part_of_the_answer(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    parts = [{"text": "hm", "thought": True}, {"text": "r"}]
    path.write_text(json.dumps({"messages": [USER, {"role": "model", "parts": parts}]}))
    assert [example.response for example in read_source(str(path))] == ["r"]
