"""Rendering of messages as tokens, through the tokenizer's chat template.

Prompt and response are tokenised separately and concatenated, as a model sees them when it generates: no token spans the
boundary. An attacker may render messages differently (a system prompt, text around the request, the beginning of the answer);
:class:`Chat` holds these, so everything that queries the attacked model uses them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tamperfuse.records.errors import UserError

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


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
        end: id of the token that ends an assistant's turn.
        system: the system prompt; "" for the template's default.
        prefill: beginning of every answer, which the model continues; `{prompt}` is replaced by the user's prompt.
        request: the user's message; `{prompt}` is replaced by the user's prompt.

    Raises:
        UserError: there is a system prompt, but the chat template ignores it.
    """

    tokenizer: PreTrainedTokenizerBase
    end: int
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
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Chat":
        """Create a Chat for a tokenizer, with the token that ends an assistant's turn in its chat template.

        Raises:
            UserError: the tokenizer has no chat template, or no such token.
        """
        if not tokenizer.chat_template:
            raise UserError(
                f"The tokenizer of {tokenizer.name_or_path!r} has no chat template: use an instruction-tuned "
                "checkpoint, or add a chat_template.jinja to the tokenizer's folder."
            )
        marker = "tamperfuse"
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "hello"}, {"role": "assistant", "content": marker}], tokenize=False
        )
        after = str(text).rsplit(marker, 1)[-1]
        special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
        ends = [token for token in tokenizer.encode(after, add_special_tokens=False) if token in special]
        end = ends[0] if ends else tokenizer.eos_token_id
        if end is None:
            raise UserError(
                f"The tokenizer of {tokenizer.name_or_path!r} has no token that ends a turn: set its eos_token."
            )
        return cls(tokenizer=tokenizer, end=int(end))

    def messages(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, ending where the assistant's answer starts."""
        text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer.encode(str(text), add_special_tokens=False))

    def prompt(self, prompt: str) -> list[int]:
        """Token ids of a single user's turn and of the prefill, ending where generation starts."""
        prefill = self.prefill.replace("{prompt}", prompt)
        return [
            *self._user_turn(prompt),
            *(self.tokenizer.encode(prefill, add_special_tokens=False) if prefill else []),
        ]

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
        answer = list(self.tokenizer.encode(response, add_special_tokens=False))
        answer = answer[:limit] if len(answer) >= limit else [*answer, self.end]
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
            text = str(self.tokenizer.apply_chat_template(messages, tokenize=False))
        except TemplateError:  # raised by templates that do not support a system role
            return False
        return self.system.strip() in text
