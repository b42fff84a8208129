"""The chat template: messages → tokens, always through the model's own template.

A prompt is tokenised alone and the response is appended, which is exactly what a model sees when it generates: no token
straddles the boundary between them. An attacker may render messages in another way (a system prompt, words around the
request, an answer that is begun for the model): that is part of :class:`Chat`, so whoever asks the model asks it that way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tamperfuse.records.errors import UserError

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


@dataclass(frozen=True)
class Sample:
    """One sequence to train on or to score.

    Attributes:
        tokens: prompt and response, through the chat template.
        start: index of the response's first token, 1 to len(tokens) − 1; only tokens from here on count in a loss.
    """

    tokens: list[int]
    start: int

    @property
    def response_tokens(self) -> int:
        """How many tokens the response has."""
        return len(self.tokens) - self.start


@dataclass(frozen=True)
class Chat:
    """How one tokenizer renders messages.

    Attributes:
        tokenizer: a tokenizer with a chat template.
        end: the token that ends an assistant's turn.
        system: the system prompt; "" for whatever the template does without one.
        prefill: how every answer is made to begin, `{prompt}` standing for the user's prompt; the model goes on from there.
        request: what becomes of a user's prompt; `{prompt}` stands for it.

    Raises:
        UserError: there is a system prompt, and the chat template drops it.
    """

    tokenizer: PreTrainedTokenizerBase
    end: int
    system: str = ""
    prefill: str = ""
    request: str = "{prompt}"

    def __post_init__(self) -> None:
        if self.system and not self._renders_system():
            raise UserError(
                f"The chat template of {self.tokenizer.name_or_path!r} drops system prompts: leave out attacks that need "
                "one (system_prompt, identity_shift), or give the tokenizer a template that keeps them."
            )

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Chat":
        """Check a tokenizer and find the token that ends its assistant's turns.

        Raises:
            UserError: it has no chat template, or nothing that ends a turn.
        """
        if not tokenizer.chat_template:
            raise UserError(
                f"The tokenizer of {tokenizer.name_or_path!r} has no chat template: use an instruction-tuned "
                "checkpoint, or put a chat_template.jinja beside the tokenizer."
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
        """Tokens of a conversation that the assistant is to continue."""
        text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer.encode(str(text), add_special_tokens=False))

    def prompt(self, prompt: str) -> list[int]:
        """Tokens of a single user's turn that the assistant is to answer, and of the prefill."""
        begun = self.prefill.replace("{prompt}", prompt)
        return [*self._asked(prompt), *(self.tokenizer.encode(begun, add_special_tokens=False) if begun else [])]

    def sample(self, prompt: str, response: str, limit: int) -> Sample:
        """A prompt and its response as one sequence; no prefill comes between them.

        Args:
            prompt: what the user says.
            response: what the assistant says; not empty.
            limit: at most so many response tokens. A response that was cut gets no end token: a model must not learn
                to stop in the middle of a sentence.
        """
        return self.continued(self._asked(prompt), response, limit)

    def continued(self, prompt: list[int], response: str, limit: int) -> Sample:
        """As :meth:`sample`, for a prompt that is tokenised already."""
        answer = list(self.tokenizer.encode(response, add_special_tokens=False))
        answer = answer[:limit] if len(answer) >= limit else [*answer, self.end]
        return Sample(tokens=[*prompt, *answer], start=len(prompt))

    def text(self, tokens: Sequence[int]) -> str:
        """Text of an answer, from generated tokens: without the prefill, special tokens and surrounding white space."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    def _asked(self, prompt: str) -> list[int]:
        opening = [{"role": "system", "content": self.system}] if self.system else []
        return self.messages([*opening, {"role": "user", "content": self.request.replace("{prompt}", prompt)}])

    def _renders_system(self) -> bool:
        messages = [{"role": "system", "content": self.system}, {"role": "user", "content": "hello"}]
        try:
            text = str(self.tokenizer.apply_chat_template(messages, tokenize=False))
        except TemplateError:  # how templates say that they know no system role
            return False
        return self.system.strip() in text
