"""Let a person ask several models the same prompt, on one local page: what `tamperfuse compare-chat` does.

page ──prompt──▶ chat_server ──▶ answers: one token of each model in turn ──events──▶ page
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import count
from pathlib import Path

import torch

from tamperfuse.commands.chat_server import LARGEST_BODY, ChatServer, Events
from tamperfuse.commands.harden import made_by
from tamperfuse.corpora.sources import BUILTIN, clean_text
from tamperfuse.corpora.threats import Part, Threat, load_threat
from tamperfuse.evaluation.generate import stream
from tamperfuse.evaluation.sampling import Sampling
from tamperfuse.models.chat_template import read_template
from tamperfuse.models.device import own_device
from tamperfuse.models.load import LoadedModel, load_model, parameter_count, provenance_of, stated_template
from tamperfuse.models.precision import compute_dtype, convert_parameters
from tamperfuse.records.amounts import gigabytes
from tamperfuse.records.errors import UserError, printable
from tamperfuse.records.memory import available_memory
from tamperfuse.records.pages import frame, page_environment, script_text
from tamperfuse.records.reading import local_path, path_exists

log = logging.getLogger("tamperfuse")

PACKAGE = "tamperfuse.commands"
FEWEST_MODELS, MOST_MODELS = 2, 3
LOADED_BYTES = 4  # of a parameter while its model is loaded: float32
LONGEST_PROMPT = LARGEST_BODY // 6 - 100  # characters: JSON takes at most 6 bytes for one
PARTS: dict[Part, str] = {
    "evaluation": "evaluation: no defense received them",
    "defender": "defender: a defense received them",
    "attacker": "attacker",
    "attacker_dev": "attacker, to choose a step",
}
PARTIAL = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer writes for the first bytes of a character


def open_chat(
    models: Sequence[str],
    *,
    threat: str | None,
    response_tokens: int,
    temperature: float,
    port: int,
    chat_template: Path | None = None,
) -> ChatServer:
    """Load the models and open the page; :meth:`ChatServer.serve` answers its requests.

    Args:
        models: two or three, as of :func:`load_model`.
        threat: source of the prompts that the page lists; None for the threat that a model's tamperfuse.json records, if any.
        response_tokens: maximum length of an answer; less where the context window ends.
        temperature: of sampling, 0 for greedy decoding. Every request draws other samples.
        port: to listen on; 0 for any free one.
        chat_template: file with a chat template in place of those of the models; None for the one that a model was hardened
            with, if any.

    Raises:
        UserError: bad input, the port is in use, or the models do not fit into memory together.
    """
    _check_names(models)
    sampling = Sampling(temperature=temperature) if temperature else None
    template = read_template(chat_template) or next(filter(None, map(stated_template, models)), "")
    with ExitStack() as stack:
        server = stack.enter_context(
            ChatServer(port)
        )  # first, so that a port in use is noticed before the models are loaded
        check_memory([parameter_count(model) for model in models])
        prompts = load_threat(threat) if threat is not None else _recorded_threat(models)
        loaded = [_load(model, template) for model in models]
        server.page = chat_page(models, prompts, sampling, response_tokens)
        server.answer = partial(answers, loaded, response_tokens=response_tokens, sampling=sampling, requests=count())
        stack.pop_all()
    return server


def answers(
    models: Sequence[LoadedModel],
    prompt: str,
    *,
    response_tokens: int,
    sampling: Sampling | None,
    requests: Iterator[int],
) -> Events:
    """Answers of all models to a prompt: one token of each in turn, so that they appear side by side.

    Args:
        models: not modified.
        prompt: the user's prompt.
        response_tokens: maximum length of an answer.
        sampling: None for greedy decoding.
        requests: numbers of the requests, which are the seeds of sampling.

    Yields:
        {"model": index, "text": the answer so far}; at its end also "end": "stop", or "limit" if it reached the maximum length;
        or {"model": index, "error": sentence}. A text is sent as a whole, since a token can change what stands before it.
    """
    if sampling:
        sampling = Sampling(sampling.temperature, sampling.top_p, next(requests))
    with ExitStack() as stack:
        running = {
            number: stack.enter_context(closing(_answer(loaded, prompt, response_tokens, sampling)))
            for number, loaded in enumerate(models)
        }
        while running:
            for number, events in list(running.items()):
                event = next(events, None)
                if event is None:
                    del running[number]
                else:
                    yield {"model": number, **event}


def _answer(loaded: LoadedModel, prompt: str, response_tokens: int, sampling: Sampling | None) -> Events:
    """The events of one model's answer."""
    try:
        tokens = loaded.chat.prompt(clean_text(prompt))
        limit = min(response_tokens, loaded.window - len(tokens))
        if limit < 1:
            raise UserError(
                f"The prompt has {len(tokens)} tokens, and the context window of {loaded.name} has {loaded.window}: shorten it."
            )
        written: list[int] = []
        with closing(stream(loaded, tokens, new_tokens=limit, sampling=sampling)) as following:
            for token in following:
                written.append(token)
                yield {"text": printable(loaded.chat.text(written).rstrip(PARTIAL))}
        yield {"text": printable(loaded.chat.text(written)), "end": "limit" if len(written) == limit else "stop"}
    except UserError as error:
        yield {"error": printable(str(error))}


def check_memory(sizes: Sequence[int]) -> None:
    """Check that models fit into memory together, and print what they take.

    Args:
        sizes: parameters of each model.

    Raises:
        UserError: they do not.
    """
    device = own_device()
    width = compute_dtype(device)[0].itemsize
    needed = width * sum(sizes) + (LOADED_BYTES - width) * max(sizes)  # one model at a time is loaded in float32
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    if needed > free:
        raise UserError(
            f"The {len(sizes)} models take {gigabytes(needed)} of memory together, and {gigabytes(free)} are free: use smaller "
            "models or fewer, close other programs, or use a larger machine."
        )
    log.info("The %d models take up to %s of memory; %s are free.", len(sizes), gigabytes(needed), gigabytes(free))


def chat_page(models: Sequence[str], threat: Threat | None, sampling: Sampling | None, response_tokens: int) -> str:
    """The page, with names and prompts escaped.

    Args:
        models: names of the models, in the order of :func:`answers`.
        threat: whose prompts are listed; None for no list.
        sampling: None for greedy decoding.
        response_tokens: maximum length of an answer.
    """
    environment = page_environment(PACKAGE)
    contents = [("ask", "Prompt"), *([("prompts", "Prompts of the threat")] if threat else []), ("answers", "Answers")]
    return environment.get_template("chat.html.j2").render(
        models=[(model, made_by(model)) for model in models],
        threat=threat.source if threat else "",
        parts=[(title, [p.prompt for p in threat.part(part)]) for part, title in PARTS.items()] if threat else [],
        temperature=sampling.temperature if sampling else 0,
        response_tokens=response_tokens,
        longest_prompt=LONGEST_PROMPT,
        figures=[],
        **frame(contents, [script_text(PACKAGE, "chat.js")]),
    )


def _check_names(models: Sequence[str]) -> None:
    if not FEWEST_MODELS <= len(models) <= MOST_MODELS:
        raise UserError(
            f"compare-chat sets {FEWEST_MODELS} or {MOST_MODELS} models side by side, and {len(models)} "
            f"{'is' if len(models) == 1 else 'are'} named: name {FEWEST_MODELS} or {MOST_MODELS}."
        )
    if len(set(models)) < len(models):
        raise UserError(f"The model {max(models, key=models.count)!r} is named twice: name different models.")


def _load(model: str, template: str) -> LoadedModel:
    """A model that computes in the device's dtype for good, since it is not trained."""
    loaded = load_model(model, chat_template=template)
    convert_parameters(loaded.model, compute_dtype(loaded.model.device)[0])
    return loaded


def _recorded_threat(models: Sequence[str]) -> Threat | None:
    """The threat that a model was hardened against, if it is built in or a local file: another's record starts no download."""
    for model in models:
        provenance = provenance_of(model)
        source = provenance.threat if provenance else ""
        try:
            if source.startswith(BUILTIN) or (source and path_exists(local_path(source))):
                return load_threat(source)
        except UserError as error:
            log.warning("The page lists no prompts of the threat that %s records: %s", model, error)
    return None
