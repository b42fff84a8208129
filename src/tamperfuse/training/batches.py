"""Batches: the order of samples, and samples packed into one row.

Batches are not sorted by length: packed rows have no padding (:mod:`tamperfuse.models.packed`), so every batch mixes lengths
and the order depends on the seed alone.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tamperfuse.models.chat import Sample
from tamperfuse.models.layout import Layout
from tamperfuse.models.packed import pack
from tamperfuse.records.errors import UserError


@dataclass(frozen=True)
class PackedBatch:
    """Several samples in one packed row.

    Attributes:
        row: token ids, (1, tokens); without the last token of each sample, since nothing is predicted from it.
        layout: positions of the samples in the row.
        positions: (response tokens,), positions in the row whose next token is a response token.
        targets: (response tokens,), those next tokens.
        counts: response tokens of each sample, in order.
        tokens: number of tokens of all samples, a shared prefix counted for each.
    """

    row: Tensor
    layout: Layout
    positions: Tensor
    targets: Tensor
    counts: tuple[int, ...]
    tokens: int


def pack_samples(samples: Sequence[Sample], device: torch.device) -> PackedBatch:
    """Pack samples into one row.

    Args:
        samples: at least one; each with at least one prompt token and one response token.
        device: of the tensors.
    """
    # The last prompt token stays out of the shared prefix: the first response token is predicted from it.
    row, layout = pack([s.tokens[:-1] for s in samples], min(s.start for s in samples) - 1, device)
    positions, start = [], layout.prefix
    for sample, length in zip(samples, layout.lengths, strict=True):
        positions.append(torch.arange(start + length - sample.response_tokens, start + length))
        start += length
    return PackedBatch(
        row=row,
        layout=layout,
        positions=torch.cat(positions).to(device),
        targets=torch.tensor([token for s in samples for token in s.tokens[s.start :]], device=device),
        counts=tuple(s.response_tokens for s in samples),
        tokens=sum(len(s.tokens) for s in samples),
    )


def schedule(count: int, batch: int, steps: int, seed: int) -> list[int]:
    """The order of samples: `steps` × `batch` indices; every pass over the samples is shuffled separately.

    Args:
        count: number of samples.
        batch: samples per step.
        steps: optimizer steps.
        seed: of all shuffles.

    Raises:
        UserError: `count` is 0.
    """
    if count == 0:
        raise UserError("There is nothing to train on: the training data is empty after filtering.")
    rng = random.Random(seed)
    order: list[int] = []
    while len(order) < steps * batch:
        order += rng.sample(range(count), count)
    return order[: steps * batch]
