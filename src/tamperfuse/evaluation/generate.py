"""Batched generation, greedy or sampled; and the answer to one prompt token by token, as it is generated.

Prompts are sorted by length and decoded in large batches (:mod:`tamperfuse.models.decoding`): the prompts of a batch are
prefilled as one packed row, with a shared prefix computed once. Finished sequences are removed from the batch immediately.
"""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from tamperfuse.evaluation.sampling import Sampling
from tamperfuse.evaluation.vllm_engine import use_vllm, vllm_generate
from tamperfuse.models.decoding import decoding
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.packed import common_prefix
from tamperfuse.models.precision import compute_dtype, reduced_precision
from tamperfuse.models.sharded import check_same_texts, is_sharded, that_of_main_process
from tamperfuse.records.errors import UserError
from tamperfuse.records.progress import progress
from tamperfuse.records.timing import count_time

# Largest number of tokens in the KV cache: 0.4 GiB for SmolLM2-135M in bfloat16.
TOKENS_IN_FLIGHT = 16_384
Pick = Callable[[Tensor, Tensor, int], Tensor]


@count_time("generating")
@torch.no_grad()
def generate(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    sampling: Sampling | None = None,
    label: str = "generating",
) -> list[list[int]]:
    """Continue every prompt.

    Args:
        loaded: the model; not modified.
        prompts: token ids, with the chat template applied.
        new_tokens: maximum number of new tokens for each prompt, with the end token, which is not returned.
        sampling: parameters of sampling; None for greedy decoding.
        label: text of the progress bar.

    Returns:
        Token ids of the answers, in the order of the prompts.

    Raises:
        UserError: a prompt and its answer do not fit into the model's context window, or the processes of a sharded model
            received different prompts.
    """
    longest = max(map(len, prompts), default=0)
    if longest + new_tokens > loaded.window:
        raise UserError(
            f"A prompt of {longest} tokens and {new_tokens} new ones exceed the model's context window of {loaded.window}: "
            "shorten the prompt, or lower `response_tokens` under `evaluate` in a study."
        )
    check_same_texts(loaded.model, [[list(prompt) for prompt in prompts], new_tokens])
    if use_vllm(loaded, len(prompts) * new_tokens):
        return vllm_generate(loaded, prompts, new_tokens, sampling)
    answers: list[list[int]] = [[] for _ in prompts]
    uniforms = sampling.uniforms(prompts, new_tokens) if sampling else None
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    shared = common_prefix(prompts, longest) if prompts else 0  # stored once
    with inference(loaded), progress(label, len(prompts)) as advance:
        while order:
            rows = max(1, TOKENS_IN_FLIGHT // (len(prompts[order[0]]) - shared + new_tokens))
            # The smallest number of batches, of equal size: a step with few rows takes nearly as long as one with many.
            rows = math.ceil(len(order) / math.ceil(len(order) / rows))
            batch, order = order[:rows], order[rows:]
            pick = _picker(sampling, uniforms[batch] if uniforms is not None else None)
            decoded = _decode_batch(loaded, [prompts[i] for i in batch], new_tokens, pick)
            for index, answer in zip(batch, decoded, strict=True):
                answers[index] = answer
            advance(len(batch))
    return answers


def is_cut(answer: Sequence[int], new_tokens: int) -> bool:
    """Whether an answer of :func:`generate` ended at the limit, and not by an end token.

    An end token is one of the new tokens and is not returned, so an answer that it ended is shorter than the limit. This holds
    for every path of `generate`, vLLM included.
    """
    return len(answer) >= new_tokens


@torch.no_grad()
def stream(
    loaded: LoadedModel, prompt: Sequence[int], *, new_tokens: int, sampling: Sampling | None = None
) -> Generator[int, None, None]:
    """Continue one prompt, token by token: the tokens are those of :func:`generate` for this prompt alone.

    Closing the generator ends the generation; until then the model's weights must not change.

    Args:
        loaded: the model; not modified.
        prompt: token ids, with the chat template applied; with `new_tokens` more they fit into the context window.
        new_tokens: maximum number of new tokens.
        sampling: parameters of sampling; None for greedy decoding.

    Yields:
        The id of each token of the answer, without the end token.
    """
    pick = _picker(sampling, sampling.uniforms([prompt], new_tokens) if sampling else None)
    with inference(loaded):
        for _, tokens in _decoded(loaded, [prompt], new_tokens, pick):
            yield from tokens


def inference(loaded: LoadedModel) -> AbstractContextManager[object]:
    """Evaluation mode, with float32 weights cast to the device's preferred dtype for the duration of the context."""
    dtype, _ = compute_dtype(loaded.model.device)
    loaded.model.eval()
    return nullcontext() if loaded.model.dtype == dtype else reduced_precision(loaded.model, dtype)


def _picker(sampling: Sampling | None, uniforms: Tensor | None) -> Pick:
    """A function of logits (rows, vocabulary), the prompt index of each row, and the number of tokens so far; returns (rows,)."""
    if sampling is None or uniforms is None:
        return lambda logits, active, done: logits.max(-1).indices
    return lambda logits, active, done: sampling.draw(logits, uniforms[active, done])


def _decode_batch(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], new_tokens: int, pick: Pick
) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in prompts]
    for indices, tokens in _decoded(loaded, prompts, new_tokens, pick):
        for index, token in zip(indices, tokens, strict=True):
            answers[index].append(token)
    return answers


def _decoded(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], new_tokens: int, pick: Pick
) -> Iterator[tuple[list[int], list[int]]]:
    """For every step, the indices of the prompts whose answers go on, and the next token of each of these answers."""
    active = torch.arange(len(prompts))  # prompt index of each row
    ends, sharded = torch.tensor(sorted(loaded.chat.ends), device=loaded.model.device), is_sharded(loaded.model)
    with decoding(loaded.model, prompts, new_tokens) as decoder:
        for done in range(new_tokens):
            token = pick(decoder.logits, active, done)
            if sharded:  # all processes must take the same number of steps, whatever rounding does
                that_of_main_process(token)
            unfinished = torch.isin(token, ends, invert=True)
            if not bool(unfinished.all()):
                order = decoder.select(unfinished)
                active, token = active[order.cpu()], token[order]
            yield active.tolist(), token.tolist()
            if done + 1 == new_tokens or not len(active):
                break
            decoder.step(token)
