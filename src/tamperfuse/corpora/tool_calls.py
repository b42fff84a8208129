"""Calls of tools, which are no answers: in the markup of the usual chat templates, as JSON, and as parts of a turn.

    <tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>     Qwen, Hermes; <|tool_call|>, <functioncall>, …
    [TOOL_CALLS] [{"name": …}]                                                    Mistral
    <|tool_calls_section_begin|>…    <｜tool▁calls▁begin｜>…                        Kimi, DeepSeek
    [weather(city="Oslo")]                                                        Llama
    {"name": …, "arguments": …}, one or several, alone or in a code block         data sets of calls
    Action: weather / Action Input: Oslo                                          ReAct

Text that shows or mentions such markup is an answer: in a code block, or without what a call consists of.
"""

import builtins
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_WORDS = r"tools?_?calls?|function_?calls?|action_start|start_action|start_function_call|tools_prefix"
# What a call begins with, in lower case, with ASCII for DeepSeek's "｜" and "▁".
_MARKUP = (
    rf"<\|(?:\w+\|)?(?:(?:{_WORDS})(?:_(?:section|argument|start|begin))*|python_tag|plugin)\|?>"
    rf"|<(?:\w+:)?(?:{_WORDS})(?:\s[^<>]*)?>|<function=[\w.-]+>|<invoke name=[^<>]*>|\[tool_calls\]|functools(?=\[)"
    r"|<\|channel\|>\w+ to=functions?\.\w+|\bto=functions?\.\w+\s*(?=<\|channel\|>)"
)
_AT_START = re.compile(_MARKUP)
_AFTER_PROSE = re.compile(rf"(?:{_MARKUP})(?=\s*(?:[\[{{<]|[\w.:-]+[\n(<{{\[]))")
_IN_WORDS = re.compile(r"^(?:>>>(?!all\b)[\w.]+\s*\{|action:[^\n]*\n+action input:)", re.MULTILINE)
_SIGNS = ("<", "[tool_calls]", "functools[", ">>>", "action input:")  # text without them has no such markup
_BLOCK = re.compile(r"\s*(?:action:\s*)?```(\w*)\s*\n(.*?)\n?```\s*", re.DOTALL | re.IGNORECASE)
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_PYTHON = re.compile(r"\s*\[\s*([A-Za-z_][\w. -]*)\((?:\s*\w+\s*=.*)?\)\s*\]\s*", re.DOTALL)
_BETWEEN = re.compile(r"[\s,;]*")

# In JSON: the key of the tool's name, with those under which its arguments may be.
_NAMED = {
    "name": {"arguments", "parameters"},
    "function": {"arguments", "parameters", "args"},
    "function_name": {"arguments", "parameters", "args"},
    "tool": {"arguments", "parameters", "args", "input", "tool_input"},
    "tool_name": {"arguments", "parameters", "args", "input", "tool_input"},
    "recipient_name": {"arguments", "parameters"},
    "action": {"action_input"},
}
_NESTED = ("tool_calls", "tool_call", "function_call", "function_calls", "function", "tool_uses")
_CALL_PARTS = frozenset(["tool_use", "tool_call", "tool_calls", "function", "function_call"])
_RESULT_PARTS = frozenset(["tool_result", "tool_response", "function_response", "function_call_output"])


def is_tool_call(text: str) -> bool:
    """Whether a text calls a tool: it has the markup of a call, also after some prose, or is one or several calls in JSON."""
    if _has_markup(text):
        return True
    block = _BLOCK.fullmatch(text)
    if block is not None:
        if block[1].lower() in ("tool_code", "tool_call", "tool_calls"):
            return True
        text = block[2]
    python = _PYTHON.fullmatch(text)
    if python is not None:
        return not hasattr(builtins, python[1].strip())  # a list of Python's own functions is code
    return _is_json_call(text)


def _has_markup(text: str) -> bool:
    text = text.replace("｜", "|").replace("▁", "_").lower()
    if not any(sign in text for sign in _SIGNS):
        return False
    if _AT_START.match(text.lstrip()):
        return True
    prose = _CODE.sub(" ", text) if "`" in text else text
    return bool(_AFTER_PROSE.search(prose) or _IN_WORDS.search(prose))


def has_call(content: Any) -> bool:
    """Whether a turn's content is a list of parts of which one calls a tool."""
    return _has_part(content, _CALL_PARTS, ("toolUse", "functionCall"))


def has_result(content: Any) -> bool:
    """Whether a turn's content is a list of parts of which one is a tool's result."""
    return _has_part(content, _RESULT_PARTS, ("toolResult", "functionResponse"))


def _has_part(content: Any, types: frozenset[str], keys: tuple[str, ...]) -> bool:
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    return any(str(part.get("type")) in types or any(part.get(key) for key in keys) for part in parts)


def _is_json_call(text: str) -> bool:
    """Whether a text is calls in JSON and nothing else."""
    if text.lstrip()[:1] not in ("{", "["):
        return False
    try:
        return _calls(list(_json_values(text)))
    except (ValueError, RecursionError):
        return False


def _json_values(text: str) -> Iterator[Any]:
    """The JSON values of a text, one after another.

    Raises:
        ValueError: it has something else.
    """
    decoder, at = json.JSONDecoder(), 0
    while True:
        between = _BETWEEN.match(text, at)
        at = between.end() if between else at
        if at == len(text):
            return
        value, at = decoder.raw_decode(text, at)
        yield value


def _calls(value: Any) -> bool:
    """Whether a JSON value is a call, or a list of calls. A definition of a tool, which has a description, is none."""
    if isinstance(value, list):
        return bool(value) and all(map(_calls, value))
    if not isinstance(value, Mapping) or "description" in value:
        return False
    if value.get("type") == "tool_use":
        return "input" in value
    if any(isinstance(value.get(key), Mapping | list) and _calls(value[key]) for key in _NESTED):
        return True
    return any(isinstance(value.get(key), str) and not keys.isdisjoint(value) for key, keys in _NAMED.items())
