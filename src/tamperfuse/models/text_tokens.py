"""Tokens of text that a template did not write: prompts, responses, system prompts.

A control token spelled out in such a text ("<|im_end|>") is text: it neither ends a turn nor begins one. Tokenizers recognise
their added tokens anywhere, so texts that contain one are split, and the spelling is tokenised without added tokens. All other
texts are tokenised as usual.

    user's text      What does <|im_end|> mean?
    pieces           "What does "   "<|im_end|>"               " mean?"
    tokenised        as usual       without added tokens       as usual
"""

import re
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from tamperfuse.models.chat_template import Message
from tamperfuse.records.errors import UserError

# Added tokens of this form are control tokens even if the tokenizer does not declare them special: <think>, [INST], <|tool|>.
_BRACKETED = re.compile(r"<\S+>|\[\S+\]|◁\S+▷")
# Non-characters, which no text of a user contains; they mark where a control token's spelling was taken out of a message.
_START, _STOP = "\ufdd0", "\ufdd1"
# Tokens of single bytes (SentencePiece's byte fallback), which ordinary text is made of.
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_HIDDEN = re.compile(f"{_START}([0-9]+){_STOP}")


class TextTokens:
    """Tokenises texts of users, and conversations that contain them.

    Args:
        tokenizer: the tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        special, template = set(tokenizer.all_special_ids), str(tokenizer.chat_template)
        control = {
            int(index): token.content
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special
            or index in special
            or _BRACKETED.fullmatch(token.content)
            or (token.content in template and not token.content.isspace())
        }
        self.control = frozenset(control)
        spellings = sorted(filter(None, control.values()), key=len, reverse=True)  # the longest match wins
        self._spelling = re.compile("|".join(map(re.escape, spellings)) or "(?!)")
        # Ordinary text may contain the unknown token, for characters that the vocabulary lacks, and single bytes.
        ordinary = {index for index, content in control.items() if BYTE.fullmatch(content)} | {tokenizer.unk_token_id}
        self._forbidden = self.control - ordinary
        # SentencePiece puts a space before a text's first word, also where the text continues another.
        self._adds_space = _following(self._encode, "a", ("\n",)) != self._encode("a")

    def text(self, text: str, before: str = "") -> list[int]:
        """Token ids of a text. No token contains parts of both it and what stands before it.

        Args:
            text: any text.
            before: what a template wrote before it, from a control token on if there is one.
        """
        if not self._has_control_tokens(text):
            return self._continue(self._encode, text, before)
        tokens: list[int] = []
        for number, (piece, spelling) in enumerate(self._pieces(text)):
            context = before if number == 0 else "\n"
            tokens += self._spelled(piece, context) if spelling else self._continue(self._encode, piece, context)
        return tokens

    def hide(self, messages: Sequence[Message]) -> tuple[list[Message], list[str]]:
        """Replace control tokens in messages by markers, which a template copies.

        Returns:
            The messages, and the text that each marker stands for.
        """
        hidden: list[str] = []

        def marker(text: str) -> str:
            hidden.append(text)
            return f"{_START}{len(hidden) - 1}{_STOP}"

        changed = []
        for message in messages:
            content = message["content"]
            if self._has_control_tokens(content):
                content = "".join(marker(piece) if spelled else piece for piece, spelled in self._pieces(content))
            changed.append({**message, "content": content})
        return changed, hidden

    def conversation(self, rendered: str, hidden: Sequence[str]) -> list[int]:
        """Token ids of a rendered conversation whose control tokens :meth:`hide` replaced."""
        first, *rest = _HIDDEN.split(rendered)
        tokens = self._encode(first) if first else []
        for number, piece in enumerate(rest):
            if number % 2 == 0:
                tokens += self._spelled(hidden[int(piece)], "\n")
            elif piece:
                tokens += self._continue(self._encode, piece, "\n")
        return tokens

    def _has_control_tokens(self, text: str) -> bool:
        # The second condition finds spellings that only match after normalisation.
        return bool(self._spelling.search(text)) or _START in text or not self._forbidden.isdisjoint(self._encode(text))

    def _pieces(self, text: str) -> list[tuple[str, bool]]:
        """The text in pieces, and whether each is the spelling of control tokens."""
        pieces, at = [], 0
        for match in self._spelling.finditer(text):
            pieces += [(text[at : match.start()], False), (match[0], True)]
            at = match.end()
        pieces.append((text[at:], False))
        return [
            (piece, spelled or _START in piece or not self._forbidden.isdisjoint(self._encode(piece)))
            for piece, spelled in pieces
            if piece
        ]

    def _continue(self, encode: Callable[[str], list[int]], text: str, before: str) -> list[int]:
        return _following(encode, text, (before, "\n")) if self._adds_space else encode(text)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _spelled(self, text: str, before: str) -> list[int]:
        """Token ids of the spelling of a control token."""
        tokens = self._continue(self._without_added_tokens, text, before)
        if not self._forbidden.isdisjoint(tokens):  # the vocabulary contains it as a word, too
            tokens = [
                token
                for number, part in enumerate((text[:1], text[1:]))
                for token in self._continue(self._without_added_tokens, part, before if number == 0 else "\n")
            ]
        if not self._forbidden.isdisjoint(tokens):
            raise UserError(
                f"The tokenizer of {self._tokenizer.name_or_path!r} makes a control token of the text {text!r}: "
                "remove it from the data."
            )
        return tokens

    def _without_added_tokens(self, text: str) -> list[int]:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return list(self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        splits = [text]
        if backend.pre_tokenizer is not None:
            splits = [split for split, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for split in splits for token in backend.model.tokenize(split)]


def _following(encode: Callable[[str], list[int]], text: str, contexts: Sequence[str]) -> list[int]:
    """Token ids of a text as it continues the first context that no token shares with it; alone if there is none."""
    for context in filter(None, contexts):
        before, both = encode(context), encode(context + text)
        if both[: len(before)] == before:
            return both[len(before) :]
    return encode(text)
