"""Samples that a model writes by itself: prompts in the user's place, and answers to prompts.

A chat model that continues its template's opening of a user's turn writes prompts like those that it was trained on (Magpie, Xu
et al., ICLR 2025, arXiv 2406.08464, section 2). With its answers they show how it behaves, without other data.
"""

import logging
import re
from collections.abc import Sequence

from tamperfuse.corpora.texts import words
from tamperfuse.evaluation.generate import generate, is_cut
from tamperfuse.evaluation.sampling import Sampling
from tamperfuse.models.chat import Chat
from tamperfuse.models.chat_template import render
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError

log = logging.getLogger("tamperfuse")

PROMPT_TEMPERATURE, ANSWER_TEMPERATURE, TOP_P = 1.0, 0.7, 0.95
PROMPT_TOKENS = 40  # longest prompt that the model may write; longer ones are left out
PROMPT_WORDS = (3, 40)  # fewest and most words of a usable prompt
MOST_DRAWS = 3  # draws for each prompt that is needed, at most
NEIGHBOUR_REQUEST = """\
Here is a question: {prompt}
Write one question about a different subject that is close to it. Write the question only."""
_MARK = "tamperfuse asks"


def opening_of_user_turn(chat: Chat) -> tuple[list[int], str]:
    """Tokens of a chat template up to where the user's text starts, and the text that follows the user's.

    Raises:
        UserError: the template changes the user's text, or writes nothing before it.
    """
    rendered = render(chat.tokenizer, [{"role": "user", "content": _MARK}], generation=True)
    before, mark, after = rendered.partition(_MARK)
    if not mark:
        raise UserError(
            f"The chat template of {chat.tokenizer.name_or_path!r} changes the user's text, so the model cannot write prompts "
            "itself: name a source of harmless prompts (`benign`)."
        )
    opening = chat.tokens.conversation(before, [])
    if not opening:
        raise UserError(
            f"The chat template of {chat.tokenizer.name_or_path!r} begins with the user's text, so the model cannot write "
            "prompts itself: name a source of harmless prompts (`benign`)."
        )
    return opening, (after.split() or [""])[0]


def write_prompts(loaded: LoadedModel, count: int, seed: int) -> tuple[list[str], int]:
    """Let the model write prompts in the user's place, sampled at temperature 1.

    Args:
        loaded: a chat model; not modified.
        count: number of different prompts, at most; fewer if the model repeats itself.
        seed: of the sampling.

    Returns:
        The prompts, and the tokens that were generated.

    Raises:
        UserError: the template changes the user's text, or not one of the texts is usable as a prompt.
    """
    opening, stop = opening_of_user_turn(loaded.chat)
    prompts: dict[str, None] = {}
    generated = draws = 0
    while len(prompts) < count and draws < MOST_DRAWS * count:
        batch = min(count - len(prompts) + count // 5 + 1, MOST_DRAWS * count - draws)
        sampling = Sampling(PROMPT_TEMPERATURE, TOP_P, seed + draws)
        texts = generate(loaded, [opening] * batch, new_tokens=PROMPT_TOKENS, sampling=sampling, label="own prompts")
        draws, generated = draws + batch, generated + sum(map(len, texts))
        usable = (_prompt(loaded.chat, tokens, stop) for tokens in texts)
        prompts |= dict.fromkeys(prompt for prompt in usable if prompt)
    if not prompts:
        raise UserError(
            f"{loaded.name} wrote no usable prompt in {draws} attempts: name a source of harmless prompts (`benign`)."
        )
    return list(prompts)[:count], generated


def write_neighbours(loaded: LoadedModel, prompts: Sequence[str], seed: int) -> tuple[list[str], int]:
    """Let the model write prompts about subjects that are close to those of other prompts.

    Args:
        loaded: a chat model; not modified.
        prompts: what to stay close to; those that are too long for the context window are left out, and counted in the log.
        seed: of the sampling.

    Returns:
        Different usable prompts, and the tokens that were generated.
    """
    requests = [loaded.chat.prompt(NEIGHBOUR_REQUEST.format(prompt=prompt)) for prompt in prompts]
    requests = [requests[i] for i in _fitting(loaded, requests, PROMPT_TOKENS, "prompts near the threat")]
    sampling = Sampling(PROMPT_TEMPERATURE, TOP_P, seed)
    texts = generate(loaded, requests, new_tokens=PROMPT_TOKENS, sampling=sampling, label="prompts near the threat")
    usable = (_prompt(loaded.chat, tokens, "") for tokens in texts)
    return list(dict.fromkeys(prompt for prompt in usable if prompt)), sum(map(len, texts))


def write_answers(loaded: LoadedModel, prompts: Sequence[str], tokens: int, seed: int) -> tuple[list[str], int]:
    """The model's answers to prompts, sampled at temperature 0.7, and the tokens that were generated.

    Args:
        loaded: a chat model; not modified.
        prompts: the prompts; the answer to one that is too long for the context window is "", and the log counts them.
        tokens: longest answer.
        seed: of the sampling.
    """
    sampling = Sampling(ANSWER_TEMPERATURE, TOP_P, seed)
    rendered = [loaded.chat.prompt(prompt) for prompt in prompts]
    fitting = _fitting(loaded, rendered, tokens, "benign prompts")
    generated = generate(
        loaded, [rendered[i] for i in fitting], new_tokens=tokens, sampling=sampling, label="own answers"
    )
    answers = dict(zip(fitting, map(loaded.chat.text, generated), strict=True))
    return [answers.get(i, "") for i in range(len(prompts))], sum(map(len, generated))


def _fitting(loaded: LoadedModel, rendered: Sequence[Sequence[int]], tokens: int, what: str) -> list[int]:
    """Indices of the prompts that fit into the context window with that many new tokens; logs the number of the others."""
    fitting = [i for i, prompt in enumerate(rendered) if len(prompt) + tokens <= loaded.window]
    if len(fitting) < len(rendered):
        log.warning(
            "%d of %d %s are left out: with an answer of %d tokens they are longer than the context window of %s, which is %d "
            "tokens.",
            *(len(rendered) - len(fitting), len(rendered), what, tokens, loaded.name, loaded.window),
        )
    return fitting


def _prompt(chat: Chat, tokens: Sequence[int], stop: str) -> str:
    """The prompt in what the model wrote as a user; "" if it is none, or was not finished within the limit.

    Args:
        chat: the model's chat.
        tokens: what the model wrote, at most PROMPT_TOKENS.
        stop: the text that follows a user's, which need not contain an end token (Llama 2's `[/INST]`); "" if there is none.
    """
    text = _before(chat, tokens, stop) if stop else None
    if text is None:
        text = "" if is_cut(tokens, PROMPT_TOKENS) else chat.text(tokens)
    text = re.sub(r"\s+", " ", text).strip().strip('"“”').strip()
    return text if PROMPT_WORDS[0] <= len(list(words(text))) <= PROMPT_WORDS[1] else ""


def _before(chat: Chat, tokens: Sequence[int], stop: str) -> str | None:
    """The text before another one, which may have control tokens; None if the tokens do not contain it."""
    decode = chat.tokenizer.decode
    before, separator, _ = decode(tokens).partition(stop)
    if not separator:
        return None
    end = max(count for count in range(len(tokens) + 1) if len(decode(tokens[:count])) <= len(before))
    rest = before[len(decode(tokens[:end])) :]  # of a token that holds the end of one and the start of the other
    return chat.text(tokens[:end]) + str(rest)
