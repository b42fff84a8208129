"""Samples → batches for a step: which samples, in which order, as one packed row.

Batches need not be sorted by length: packing leaves no padding to save (see :mod:`tamperfuse.models.packed`), so every
batch mixes lengths and its order depends on the seed alone.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tamperfuse.models.chat import Sample
from tamperfuse.models.packed import Layout, pack
from tamperfuse.records.errors import UserError


@dataclass(frozen=True)
class PackedBatch:
    """Several samples in one row.

    Attributes:
        row: token ids, (1, tokens); the last token of each sample is left out, since nothing is predicted from it.
        layout: where each sample lies.
        keep: (response tokens,), the places in the row whose next token is a response token.
        targets: (response tokens,), those next tokens.
        counts: response tokens of each sample, in order.
        tokens: tokens of all samples as they are, shared prefix counted each time: what a batch is worth.
    """

    row: Tensor
    layout: Layout
    keep: Tensor
    targets: Tensor
    counts: tuple[int, ...]
    tokens: int


def pack_samples(samples: Sequence[Sample], device: torch.device) -> PackedBatch:
    """Lay samples end to end.

    Args:
        samples: at least one; each with at least one prompt and one response token.
        device: where the tensors go.
    """
    # A sample's own segment must hold the last prompt token: the first response token is predicted from it.
    row, layout = pack([s.tokens[:-1] for s in samples], min(s.start for s in samples) - 1, device)
    keep, at = [], layout.prefix
    for sample, length in zip(samples, layout.lengths, strict=True):
        keep.append(torch.arange(at + length - sample.response_tokens, at + length))
        at += length
    return PackedBatch(
        row=row,
        layout=layout,
        keep=torch.cat(keep).to(device),
        targets=torch.tensor([token for s in samples for token in s.tokens[s.start :]], device=device),
        counts=tuple(s.response_tokens for s in samples),
        tokens=sum(len(s.tokens) for s in samples),
    )


def schedule(count: int, batch: int, steps: int, seed: int) -> list[int]:
    """Which sample goes where: `steps` × `batch` indices, each pass over the samples shuffled anew.

    Args:
        count: samples there are.
        batch: samples a step.
        steps: optimizer steps.
        seed: decides every shuffle.

    Raises:
        UserError: there is nothing to draw from.
    """
    if count == 0:
        raise UserError("There is nothing to train on: the training data is empty after filtering.")
    rng = random.Random(seed)
    order: list[int] = []
    while len(order) < steps * batch:
        order += rng.sample(range(count), count)
    return order[: steps * batch]
