"""Conversations: lists of turns with a role and a text, under any of the usual names.

Of a conversation, the first exchange is read: the first turn of the user, and the turn of the assistant that answers it. A tool
call is no answer; the text that the assistant gives after the tool's result is.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tamperfuse.corpora.tool_calls import has_call, has_result, is_tool_call
from tamperfuse.records.errors import kind_of

_ROLE_KEYS = ("role", "from", "speaker", "author")
_TEXT_KEYS = ("content", "value", "text", "message", "utterance", "parts")
_USER, _ASSISTANT, _TOOL, _SYSTEM = "user", "assistant", "tool", "system"
_ROLES = {
    **dict.fromkeys(["user", "human", "prompter"], _USER),
    **dict.fromkeys(
        ["assistant", "gpt", "chatgpt", "model", "bot", "chatbot", "ai", "bing", "bard", "claude"], _ASSISTANT
    ),
    **dict.fromkeys(["system", "developer"], _SYSTEM),
    **dict.fromkeys(
        ["tool", "tool_call", "tool_calls", "tool_response", "tool_result", "tool_results", "tool_output"], _TOOL
    ),
    **dict.fromkeys(["function", "function_call", "function_response", "function_result", "function_output"], _TOOL),
    **dict.fromkeys(["observation", "ipython", "environment"], _TOOL),
}


class Turn(NamedTuple):
    """A turn of a conversation.

    Attributes:
        role: "user", "assistant", "tool", "system", or "" for any other.
        text: "" if it has none.
        is_learned: whether a training on the conversation learns it (Axolotl's `train`, OpenAI's `weight`).
    """

    role: str
    text: str
    is_learned: bool = True


def exchange(conversation: Any, field: str) -> tuple[str, str]:
    """The prompt and the response of the first exchange whose response is learned; "" for what there is not.

    Of a list without a turn of the user, the response is the assistant's first text.

    Args:
        conversation: a list of turns (or of texts, which alternate), or None.
        field: the column, for messages.

    Raises:
        ValueError: it is something else.
    """
    turns = list(_turns(conversation, field))
    starts = [index for index, turn in enumerate(turns) if turn.role == _USER]
    exchanges = [(turns[start].text, _answer(turns[start + 1 :])) for start in starts]
    if not exchanges:
        return "", _answer(turns).text
    prompt, answer = exchanges[0]
    if not answer.is_learned:
        unanswered = prompt, Turn(_ASSISTANT, "")
        prompt, answer = next((later for later in exchanges if later[1].is_learned and later[1].text), unanswered)
    return prompt, answer.text


def last_prompt(conversation: list[Any], field: str) -> str:
    """The text of the user's last turn, which a completion answers."""
    return next((turn.text for turn in reversed(list(_turns(conversation, field))) if turn.role == _USER), "")


def is_turn(turn: Mapping[str, Any]) -> bool:
    """Whether a mapping is a turn: it has a role, or texts under the names of roles."""
    return any(key in turn for key in _ROLE_KEYS) or {_USER, _ASSISTANT} <= {_ROLES.get(key) for key in turn}


def roles(conversation: Any) -> list[str]:
    """The names of the roles of a conversation, as it has them, sorted; none if it is no list of turns."""
    turns = conversation if isinstance(conversation, list) else []
    return sorted({str(turn[key]) for turn in turns if isinstance(turn, dict) for key in _ROLE_KEYS if key in turn})


def _answer(turns: list[Turn]) -> Turn:
    """The first text of the assistant before the next turn of the user."""
    for turn in turns:
        if turn.role == _ASSISTANT and turn.text.strip() and not is_tool_call(turn.text):
            return turn
        if turn.role in (_USER, ""):
            break
    return Turn(_ASSISTANT, "")


def _turns(conversation: Any, field: str) -> Iterator[Turn]:
    if conversation is None or (isinstance(conversation, float) and math.isnan(conversation)):
        return
    if not isinstance(conversation, list):
        raise ValueError(f"the field {field!r} holds {kind_of(conversation)}, not turns")
    for number, turn in enumerate(conversation):
        if isinstance(turn, str):
            yield Turn((_USER, _ASSISTANT)[number % 2], turn)
        elif isinstance(turn, dict):
            yield from _turns_of(turn, field)
        elif turn is not None:
            raise ValueError(f"the field {field!r} holds {kind_of(turn)} where a turn is needed")


def _turns_of(turn: dict[str, Any], field: str) -> Iterator[Turn]:
    """The turn of a mapping; two of one that holds the texts of the user and of the assistant."""
    role = next((turn[key] for key in _ROLE_KEYS if key in turn), None)
    if role is None and (has_call([turn]) or has_result([turn])):
        yield Turn(_TOOL, "")
        return
    if role is None:
        sides = {_ROLES[key]: _content(turn[key], field) for key in turn if _ROLES.get(key) in (_USER, _ASSISTANT)}
        if len(sides) < 2:
            raise ValueError(f"a turn in the field {field!r} has no role (as `role` or `from`)")
        yield from (Turn(side, sides[side]) for side in (_USER, _ASSISTANT))
        return
    name = _ROLES.get(re.sub(r"[\s-]+", "_", str(role).strip().casefold()), "")
    content = next((turn[key] for key in _TEXT_KEYS if turn.get(key) is not None), None)
    calls = any(_is_set(turn.get(key)) for key in ("tool_calls", "function_call")) or has_call(content)
    is_tool = (name == _ASSISTANT and calls) or has_result(content)
    is_learned = turn.get("train") is not False and turn.get("weight", 1) != 0
    yield Turn(_TOOL if is_tool else name, _content(content, field), is_learned)


def _is_set(value: Any) -> bool:
    """Whether a field holds something: no null, NaN or empty list, also as text."""
    is_nan = isinstance(value, float) and math.isnan(value)
    return bool(value) and not is_nan and value not in ("[]", "{}", "null")


def _content(value: Any, field: str) -> str:
    """The text of a turn: its content, or the text parts of a list."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list):
        texts = [part if isinstance(part, str) else part.get("text") for part in value if _is_text_part(part)]
        return "\n".join(str(text) for text in texts if text)
    raise ValueError(f"a turn in the field {field!r} holds {kind_of(value)}, not text")


def _is_text_part(part: Any) -> bool:
    """Whether a part of a multimodal turn is text; images, sounds, thoughts and tool calls are left out."""
    if isinstance(part, dict):
        return part.get("type", "text") in ("text", "input_text", "output_text", None) and not part.get("thought")
    return isinstance(part, str)
