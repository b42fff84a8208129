"""Prompts that do not fit into a model's context window."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tamperfuse.corpora.threats import PARTS, Threat
from tamperfuse.models.chat import Chat
from tamperfuse.models.load import (
    LoadedModel,
    errors_explained,
    load_tokenizer,
    read_config,
    resolve_model,
)
from tamperfuse.models.window import context_window
from tamperfuse.records.errors import UserError

log = logging.getLogger("tamperfuse")

TEMPLATE_TOKENS = 1024  # more than a chat template adds to a prompt


def within_window(
    threat: Threat, model: str | Path | LoadedModel, response_tokens: int, chat_template: str = ""
) -> Threat:
    """Leave out the prompts that do not fit into a model's context window together with a response, and print their number.

    Args:
        threat: the threat.
        model: the model, or its name; then only its configuration and its tokenizer are read, and the latter only if a prompt is
            long.
        response_tokens: longest response, in tokens.
        chat_template: for a model that is named, that of :func:`tamperfuse.models.load.load_model`.

    Returns:
        The threat without these prompts; the same object if all fit.

    Raises:
        UserError: the model cannot be read, or fewer than 2 prompts of a part remain.
    """
    name = model.name if isinstance(model, LoadedModel) else str(model)
    if isinstance(model, LoadedModel):
        chat, window = model.chat, model.window
    else:
        with errors_explained(name, resolve_model(name)):
            window = context_window(read_config(name))
            # A token has at least one byte.
            if max(len(prompt.encode()) for prompt in threat.prompts) + TEMPLATE_TOKENS + response_tokens <= window:
                return threat
            chat = Chat.of(load_tokenizer(name, chat_template))
    limit = window - response_tokens
    parts = {part: tuple(p for p in threat.part(part) if len(chat.prompt(p.prompt)) <= limit) for part in PARTS}
    for part in PARTS:
        total, left = len(threat.part(part)), len(parts[part])
        if left < total:
            log.warning(
                "%d of the %d prompts of the part %s of %s are left out: with a response of %d tokens they are longer than the "
                "context window of %s, which is %d tokens.",
                *(total - left, total, part, threat.source, response_tokens, name, window),
            )
        if left < 2:
            raise UserError(
                f"The part {part} of {threat.source} has {left} prompts that fit into the context window of {name} ({window} "
                f"tokens, {response_tokens} of them for the response): shorten the prompts, or use a model with a longer window."
            )
    return threat if all(len(parts[part]) == len(threat.part(part)) for part in PARTS) else replace(threat, parts=parts)


def check_lengthened(loaded: LoadedModel, prompts: Sequence[str], response_tokens: int) -> None:
    """Check that prompts fit into the window with what an attack adds to them: a system prompt, words around them, a prefill.

    Raises:
        UserError: one does not, but would without the additions.
    """
    plain = Chat(loaded.chat.tokenizer, loaded.chat.format)
    if plain == loaded.chat or not prompts:
        return
    length, longest = max((len(loaded.chat.prompt(prompt)), prompt) for prompt in prompts)
    usual = len(plain.prompt(longest))
    if length + response_tokens > loaded.window >= usual + response_tokens:
        raise UserError(
            f"The attack adds {length - usual} tokens to a prompt of {usual}, which with a response of {response_tokens} exceeds "
            f"the context window of {loaded.name}, {loaded.window} tokens: leave this attack out, or the longest prompts of the "
            "threat, or lower `response_tokens` under `evaluate` in a study; what has finished is reused."
        )
