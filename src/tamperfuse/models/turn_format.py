"""What a chat template writes around an assistant's answer.

<|im_start|>user⏎ How …? <|im_end|>⏎<|im_start|>assistant⏎ <think>⏎⏎</think>⏎⏎ Boil it. <|im_end|>
                  prompt └───────── generation prompt ────┘ └──── header ────┘ answer   └── end ──┘
                         └────────────────── before ──────────────────────────┘
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from tamperfuse.models.chat_template import Message, check_template, render
from tamperfuse.models.text_tokens import BYTE
from tamperfuse.records.errors import UserError

_PROMPT, _ANSWER = "tamperfuse asks", "tamperfuse answers"
# Tags that begin a thought, for models that reason before they answer: <think>, [THINK], <|begin_of_thought|>, …
_OPENS_THOUGHT = re.compile(
    r"[<\[◁](?P<words>\|?(?!\w*end_)[\w:-]*(?:think|thought|reason|reflect)[\w:-]*\|?)[>\]▷]", re.I
)


@dataclass(frozen=True)
class TurnFormat:
    """What a chat template writes around an assistant's answer.

    Attributes:
        header: text between the generation prompt and the answer: a thought that is empty and closed, or a role's name that the
            generation prompt lacks; "" for most templates.
        lead: spaces between the header and the answer, which belong to the answer's first token.
        before: all text between the user's message and the answer, without `lead`.
        closing: text between the answer and the token that ends the turn; "" for most templates.
        end: id of the token that ends an assistant's turn.
        ends: ids of all tokens that end generation, `end` included.
    """

    header: str
    lead: str
    before: str
    closing: str
    end: int
    ends: frozenset[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, ends: Collection[int] = ()) -> "TurnFormat":
        """Find the format in rendered conversations.

        Args:
            tokenizer: a tokenizer with a chat template.
            ends: further tokens that end generation, such as those of the model's generation_config.

        Raises:
            UserError: there is no chat template, it cannot be used, it opens a thought of an unknown kind, or no token ends
                a turn.
        """
        check_template(tokenizer)
        messages: list[Message] = [
            {"role": "user", "content": _PROMPT},
            {"role": "assistant", "content": _ANSWER},
        ]
        generation, whole = render(tokenizer, messages[:1], generation=True), render(tokenizer, messages)
        if _PROMPT not in generation or _ANSWER not in whole:
            raise UserError(
                f"The chat template of {tokenizer.name_or_path!r} does not contain the messages of the user and the assistant: "
                "use the template that the model was trained with."
            )
        header, lead = _header(tokenizer, generation, whole)
        closing, end = _end(tokenizer, whole)
        stops = {*ends, *_ends_within(tokenizer, messages), tokenizer.eos_token_id} - {None}
        if end is None:
            end = tokenizer.eos_token_id
        if end is None:
            raise UserError(
                f"The tokenizer of {tokenizer.name_or_path!r} has no token that ends a turn: set its eos_token."
            )
        before = generation.rsplit(_PROMPT, 1)[-1] + header
        return cls(header, lead, before, closing, int(end), frozenset({int(end), *map(int, stops)}))


def _header(tokenizer: PreTrainedTokenizerBase, generation: str, whole: str) -> tuple[str, str]:
    """The header of an answer, and the spaces after it."""
    between = ""
    if whole.startswith(generation):
        between = whole[len(generation) : whole.rindex(_ANSWER)]
    lead = between[len(between.rstrip(" ")) :]
    header = between[: len(between) - len(lead)]
    before = generation.rsplit(_PROMPT, 1)[-1] + header
    opened = [
        match
        for match in _OPENS_THOUGHT.finditer(before)
        if not (_closing(match) and _closing(match) in before[match.end() :])
    ]
    if not opened:
        return header, lead
    closing = _closing(opened[-1])
    if not closing:
        raise UserError(
            f"The chat template of {tokenizer.name_or_path!r} opens a thought with {opened[-1][0]!r}, which tamperfuse cannot "
            "close: use a template that opens none."
        )
    return f"{header}\n{closing}\n\n", ""


def _closing(opened: re.Match[str]) -> str:
    """The tag that closes a thought; "" if it is unknown."""
    tag = opened[0]
    if "|" not in opened["words"]:
        return f"{tag[0]}/{tag[1:]}"
    for opening, closing in (("begin", "end"), ("BEGIN", "END"), ("start", "end"), ("START", "END")):
        if opening in tag:
            return tag.replace(opening, closing)
    return ""


def _end(tokenizer: PreTrainedTokenizerBase, rendered: str) -> tuple[str, int | None]:
    """The first control token after the last answer of a conversation, and the text before it."""
    after = rendered.rsplit(_ANSWER, 1)[-1]
    added = tokenizer.get_added_vocab().items()
    special = {
        *tokenizer.all_special_ids,
        *(index for token, index in added if token.strip() and not BYTE.fullmatch(token)),
    }
    end = next((token for token in tokenizer.encode(after, add_special_tokens=False) if token in special), None)
    if end is None:
        return "", None
    text = str(tokenizer.convert_ids_to_tokens(end))
    return (after[: after.index(text)] if text in after else ""), end


def _ends_within(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> set[int]:
    """The token that ends an answer in the middle of a conversation, which may differ from the one at its end."""
    try:
        rendered = render(tokenizer, [*messages, messages[0]])
    except UserError:  # the template supports a single turn only
        return set()
    if rendered.count(_ANSWER) != 1:
        return set()
    _, end = _end(tokenizer, rendered)
    return set() if end is None else {end}
