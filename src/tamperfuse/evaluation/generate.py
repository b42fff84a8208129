"""Greedy generation for every evaluation: many prompts in, token sequences out.

Prompts are sorted by length and decoded in large static batches. The prompts of a batch are prefilled as one packed row;
keys and values lie in :class:`tamperfuse.models.packed.Slots`; a sequence that ends leaves the batch at once.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from tamperfuse.models.load import LoadedModel
from tamperfuse.models.packed import Slots, pack, packed_logits
from tamperfuse.models.precision import compute_dtype, reduced_precision
from tamperfuse.models.prepack import prepacked
from tamperfuse.records.clock import spent
from tamperfuse.records.errors import UserError
from tamperfuse.records.progress import progress

# Keys and values of so many tokens are held at once: for SmolLM2-135M in bfloat16 that is 0.4 GiB.
TOKENS_IN_FLIGHT = 16_384


@spent("generating")
@torch.no_grad()
def generate(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], *, new_tokens: int, what: str = "generating"
) -> list[list[int]]:
    """Continue every prompt greedily.

    Args:
        loaded: the model; left as it was.
        prompts: token sequences, through the chat template.
        new_tokens: at most so many tokens each; the end token is not returned.
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
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    with inference(loaded), progress(what, len(prompts)) as advance:
        while order:
            rows = max(1, TOKENS_IN_FLIGHT // (len(prompts[order[0]]) + new_tokens))
            batch, order = order[:rows], order[rows:]
            for index, answer in zip(
                batch, _decode_batch(loaded, [prompts[i] for i in batch], new_tokens), strict=True
            ):
                answers[index] = answer
            advance(len(batch))
    return answers


def inference(loaded: LoadedModel) -> AbstractContextManager[object]:
    """Run a float32 model in the device's best dtype; one that is in it already stays as it is."""
    dtype, _ = compute_dtype(loaded.model.device)
    loaded.model.eval()
    return nullcontext() if loaded.model.dtype == dtype else reduced_precision(loaded.model, dtype)


def _decode_batch(loaded: LoadedModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
    slots = Slots(len(prompts), max(map(len, prompts)) + new_tokens)
    answers: list[list[int]] = [[] for _ in prompts]
    active = torch.arange(len(prompts))
    token = _prefill(loaded, prompts, slots)
    with prepacked(loaded.model, len(prompts)):
        _decode(loaded, slots, token, active, answers, new_tokens)
    return answers


def _decode(
    loaded: LoadedModel, slots: Slots, token: Tensor, active: Tensor, answers: list[list[int]], new_tokens: int
) -> None:
    """Extend `answers` token by token; `active` says whose answer each row is."""
    for _ in range(new_tokens):
        going = token != loaded.chat.end
        if not bool(going.all()):
            kept = going.nonzero().flatten()
            active, token = active[kept.cpu()], token[kept]
            slots.keep(kept)
        if not len(active):
            break
        for index, value in zip(active.tolist(), token.tolist(), strict=True):
            answers[index].append(value)
        assert slots.filled is not None
        out = loaded.model(input_ids=token[:, None], position_ids=slots.filled[:, None], slots=slots, use_cache=False)
        slots.filled += 1
        token = out.logits[:, -1].argmax(-1)


def _prefill(loaded: LoadedModel, prompts: Sequence[Sequence[int]], slots: Slots) -> Tensor:
    """Run the prompts as one packed row, fill the slots, return the first token of each answer."""
    device = loaded.model.device
    row, layout = pack(prompts, max(map(len, prompts)), device)
    ends = layout.prefix - 1 + torch.cumsum(torch.tensor(layout.lengths), 0)
    slots.admit = torch.arange(len(prompts), device=device)
    logits = packed_logits(loaded.model, row, layout, ends.to(device), slots)
    slots.admit = None
    slots.filled = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return logits.argmax(-1)
