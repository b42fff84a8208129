"""Rendering of messages as tokens, through the tokenizer's chat template.

Prompt and response are tokenised separately and concatenated, as a model sees them when it generates: no token spans the
boundary. Control tokens in users' texts are text (:mod:`tamperfuse.models.text_tokens`). An attacker may render messages
differently (a system prompt, text around the request, the beginning of the answer); :class:`Chat` holds these, so everything
that queries the attacked model uses them.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from tamperfuse.models.chat_template import Message, render
from tamperfuse.models.text_tokens import TextTokens
from tamperfuse.models.turn_format import TurnFormat
from tamperfuse.records.errors import UserError

__all__ = ["Chat", "Message", "Sample"]


@dataclass(frozen=True)
class Sample:
    """A sequence to train on or to score.

    Attributes:
        tokens: token ids of prompt and response, with the chat template applied.
        start: index of the response's first token, 1 to len(tokens) − 1; only tokens from this index on count in a loss.
    """

    tokens: list[int]
    start: int

    @property
    def response_tokens(self) -> int:
        """Number of tokens of the response."""
        return len(self.tokens) - self.start


@dataclass(frozen=True)
class Chat:
    """How one tokenizer renders messages.

    Attributes:
        tokenizer: a tokenizer with a chat template.
        format: what the template writes around an answer.
        system: the system prompt; "" for the template's default.
        prefill: beginning of every answer, which the model continues; `{prompt}` is replaced by the user's prompt.
        request: the user's message; `{prompt}` is replaced by the user's prompt.

    Raises:
        UserError: there is a system prompt, but the chat template ignores it.
    """

    tokenizer: PreTrainedTokenizerBase
    format: TurnFormat
    system: str = ""
    prefill: str = ""
    request: str = "{prompt}"

    def __post_init__(self) -> None:
        if self.system and not self._renders_system():
            raise UserError(
                f"The chat template of {self.tokenizer.name_or_path!r} ignores system prompts: leave out attacks that need "
                "one (system_prompt, identity_shift), or give the tokenizer a template that uses them."
            )

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, ends: Collection[int] = ()) -> "Chat":
        """Create a Chat for a tokenizer.

        Args:
            tokenizer: a tokenizer with a chat template.
            ends: further tokens that end generation, such as those of the model's generation_config.

        Raises:
            UserError: there is no chat template, it cannot be used, or no token ends a turn.
        """
        return cls(tokenizer, TurnFormat.of(tokenizer, ends))

    @property
    def end(self) -> int:
        """Id of the token that ends an assistant's turn."""
        return self.format.end

    @property
    def ends(self) -> frozenset[int]:
        """Ids of all tokens that end generation."""
        return self.format.ends

    @cached_property
    def tokens(self) -> TextTokens:
        """Tokenises texts of users."""
        return TextTokens(self.tokenizer)

    def messages(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, ending where the assistant's answer starts."""
        visible, hidden = self.tokens.hide(messages)
        text = render(self.tokenizer, visible, generation=True) + self.format.header
        return self.tokens.conversation(text, hidden)

    def prompt(self, prompt: str) -> list[int]:
        """Token ids of a single user's turn and of the prefill, ending where generation starts."""
        prefill = self.prefill.replace("{prompt}", prompt)
        return [*self._user_turn(prompt), *(self.response(prefill) if prefill else [])]

    def response(self, text: str) -> list[int]:
        """Token ids of an assistant's response, as it continues a prompt, without the end of the turn."""
        return self.tokens.text(self.format.lead + text, self.format.before)

    def sample(self, prompt: str, response: str, limit: int) -> Sample:
        """A prompt and its response as one sequence, without the prefill.

        Args:
            prompt: the user's prompt.
            response: the assistant's response, not empty.
            limit: maximum number of response tokens. A truncated response gets no end token, so that a model does not
                learn to stop in the middle of a sentence.
        """
        return self.continued(self._user_turn(prompt), response, limit)

    def continued(self, prompt: list[int], response: str, limit: int) -> Sample:
        """As :meth:`sample`, for a prompt that was already tokenised."""
        answer = self.response(response + self.format.closing)
        answer = [*answer, self.end] if len(answer) < limit else self.response(response)[:limit]
        return Sample(tokens=[*prompt, *answer], start=len(prompt))

    def text(self, tokens: Sequence[int]) -> str:
        """Text of generated tokens, without special tokens and surrounding white space. The prefill is not part of them."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    def _user_turn(self, prompt: str) -> list[int]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return self.messages([*system, {"role": "user", "content": self.request.replace("{prompt}", prompt)}])

    def _renders_system(self) -> bool:
        messages = [{"role": "system", "content": self.system}, {"role": "user", "content": "hello"}]
        try:
            text = render(self.tokenizer, messages)
        except UserError:  # raised by templates that do not support a system role
            return False
        return self.system.strip() in text
