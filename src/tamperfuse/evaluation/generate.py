"""Generation for every evaluation, greedy or sampled: many prompts in, token sequences out.

Prompts are sorted by length and decoded in large static batches. The prompts of a batch are prefilled as one packed row;
keys and values lie in :class:`tamperfuse.models.cpu.kv_cache.Slots`; a sequence that ends leaves the batch at once.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from tamperfuse.evaluation.sampling import Sampling
from tamperfuse.evaluation.vllm_engine import use_vllm, vllm_generate
from tamperfuse.models.cpu.kv_cache import Slots
from tamperfuse.models.cpu.prepacked_linear import prepacked
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.packed import common_prefix, pack, packed_logits
from tamperfuse.models.precision import compute_dtype, reduced_precision
from tamperfuse.records.errors import UserError
from tamperfuse.records.progress import progress
from tamperfuse.records.timing import spent

# Keys and values of so many tokens are held at once: for SmolLM2-135M in bfloat16 that is 0.4 GiB.
TOKENS_IN_FLIGHT = 16_384
Pick = Callable[[Tensor, Tensor, int], Tensor]


@spent("generating")
@torch.no_grad()
def generate(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    sampling: Sampling | None = None,
    what: str = "generating",
) -> list[list[int]]:
    """Continue every prompt.

    Args:
        loaded: the model; left as it was.
        prompts: token sequences, through the chat template.
        new_tokens: at most so many tokens each; the end token is not returned.
        sampling: how tokens are drawn; None for greedy decoding.
        what: a few words for the progress bar.

    Returns:
        Token sequences, in the order of the prompts.

    Raises:
        UserError: a prompt and its answer do not fit into the model's window.
    """
    longest = max(map(len, prompts), default=0)
    if longest + new_tokens > loaded.window:
        raise UserError(
            f"A prompt of {longest} tokens and {new_tokens} new ones exceed the model's window of {loaded.window}: "
            "ask for fewer tokens."
        )
    if use_vllm(loaded, len(prompts) * new_tokens):
        return vllm_generate(loaded, prompts, new_tokens, sampling)
    answers: list[list[int]] = [[] for _ in prompts]
    uniforms = sampling.uniforms(prompts, new_tokens) if sampling else None
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    shared = common_prefix(prompts, longest) if prompts else 0  # kept once
    with inference(loaded), progress(what, len(prompts)) as advance:
        while order:
            rows = max(1, TOKENS_IN_FLIGHT // (len(prompts[order[0]]) - shared + new_tokens))
            # As many batches as there must be, equally large: a step of few rows takes nearly as long as one of many.
            rows = math.ceil(len(order) / math.ceil(len(order) / rows))
            batch, order = order[:rows], order[rows:]
            pick = _picker(sampling, uniforms[batch] if uniforms is not None else None)
            made = _decode_batch(loaded, [prompts[i] for i in batch], new_tokens, pick)
            for index, answer in zip(batch, made, strict=True):
                answers[index] = answer
            advance(len(batch))
    return answers


def inference(loaded: LoadedModel) -> AbstractContextManager[object]:
    """Run a float32 model in the device's best dtype; one that is in it already stays as it is."""
    dtype, _ = compute_dtype(loaded.model.device)
    loaded.model.eval()
    return nullcontext() if loaded.model.dtype == dtype else reduced_precision(loaded.model, dtype)


def _picker(sampling: Sampling | None, uniforms: Tensor | None) -> Pick:
    """How the next tokens come from logits (rows, vocabulary), given whose answers the rows are and how many tokens they have."""
    if sampling is None or uniforms is None:
        return lambda logits, active, done: logits.max(-1).indices
    return lambda logits, active, done: sampling.draw(logits, uniforms[active, done])


def _decode_batch(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], new_tokens: int, pick: Pick
) -> list[list[int]]:
    model = loaded.model
    answers: list[list[int]] = [[] for _ in prompts]
    active = torch.arange(len(prompts))  # whose answer each row is
    slots, logits = _prefill(loaded, prompts, new_tokens)
    with prepacked(model, len(prompts)):
        for done in range(new_tokens):
            token = pick(logits, active, done)
            going = token != loaded.chat.end
            if not bool(going.all()):
                order = slots.keep(going)
                active, token = active[order.cpu()], token[order]
            for index, value in zip(active.tolist(), token.tolist(), strict=True):
                answers[index].append(value)
            if done + 1 == new_tokens or not len(active):
                break
            out = model(input_ids=token[:, None], position_ids=slots.position[:, None], slots=slots, use_cache=False)
            slots.advance()
            logits = out.logits[:, -1]
    return answers


def _prefill(loaded: LoadedModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> tuple[Slots, Tensor]:
    """Run the prompts as one packed row: the slots that it fills, and the logits of each answer's first token."""
    model = loaded.model
    longest = max(map(len, prompts))
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    # What sequences share is shared as long as all of it may be looked at.
    row, layout = pack(prompts, 0 if window and window < longest + new_tokens else longest, model.device)
    ends = layout.prefix - 1 + torch.cumsum(torch.tensor(layout.lengths), 0)
    slots = Slots(layout.prefix, layout.lengths, new_tokens, model.device)
    return slots, packed_logits(model, row, layout, ends.to(model.device), slots)
