"""Forward and backward over a batch, in packed rows: how many, and on a CPU two at a time."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from tamperfuse.models.cpu.two_threads import HANDS, can_share, side_by_side
from tamperfuse.records.batching import budgeted, evenly
from tamperfuse.records.process import world_size
from tamperfuse.training.distributed import most, sharding

Backward = Callable[[Tensor], None]
# Tokens that go forward and backward together: enough to fill the processor, few enough to keep memory flat.
ROW_TOKENS = 2_048
# A batch of fewer tokens is not worth sharing out.
FEWEST = 256


def backward_in_rows(
    model: nn.Module,
    lengths: Sequence[int],
    loss_of: Callable[[list[int]], Tensor],
    backward: Backward,
    device: torch.device,
) -> Tensor:
    """Accumulate a batch's gradient, row by row.

    On a CPU, in one process, two rows run side by side (see :mod:`tamperfuse.models.cpu.two_threads`), and their
    gradients are added in a fixed order. Memory: activations of a row; side by side those of two, and a second copy of the
    gradients.

    Args:
        model: the model whose weights train.
        lengths: tokens of each sample of this process's share of the batch.
        loss_of: the share of the batch's loss that samples (indices into `lengths`) have, a scalar.
        backward: runs a scalar's backward pass; where rows run side by side there is nothing that it could add, and they
            do without it.
        device: of the model.

    Returns:
        The sum of the rows' losses, detached.
    """
    if len(lengths) >= HANDS and sum(lengths) >= FEWEST and rows_at_once(model, device) > 1:
        return _side_by_side([p for p in model.parameters() if p.requires_grad], lengths, loss_of)
    whole = torch.zeros((), device=device)
    for row in in_rows(lengths, ROW_TOKENS, device):
        loss = loss_of(sorted(row))
        backward(loss)
        whole += loss.detach()
    return whole


def rows_at_once(model: nn.Module, device: torch.device) -> int:
    """How many rows run side by side: `HANDS` on a CPU, if no other process waits for each and none draws random numbers."""
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    return HANDS if can_share(device) and world_size() == 1 and not sharding() and not drops else 1


def _side_by_side(
    trained: Sequence[nn.Parameter], lengths: Sequence[int], loss_of: Callable[[list[int]], Tensor]
) -> Tensor:
    """Every thread adds up its own rows' gradients; the sums are added when all have ended, so that the order is fixed."""

    def run(rows: Sequence[list[int]]) -> tuple[Tensor, list[Tensor | None]]:
        whole = torch.zeros(())
        held: list[Tensor | None] = [None] * len(trained)
        for row in rows:
            loss = loss_of(row)
            held = _added(held, torch.autograd.grad(loss, trained, allow_unused=True))
            whole += loss.detach()
        return whole, held

    rows = evenly(lengths, HANDS * math.ceil(sum(lengths) / (HANDS * ROW_TOKENS)))
    whole = torch.zeros(())
    for loss, gradients in side_by_side([partial(run, rows[hand::HANDS]) for hand in range(HANDS)]):
        whole += loss
        for parameter, gradient in zip(trained, _added([p.grad for p in trained], gradients), strict=True):
            parameter.grad = gradient
    return whole


@torch.no_grad()
def _added(held: Sequence[Tensor | None], more: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Sums, in the memory of the first ones; None where there is nothing."""
    return [b if a is None else a if b is None else a.add_(b) for a, b in zip(held, more, strict=True)]


def in_rows(lengths: Sequence[int], budget: int, device: torch.device) -> list[list[int]]:
    """Split a process's share of a batch into rows of at most `budget` tokens, the same number on every process.

    Processes meet in the backward pass of every row, so one that needs fewer splits some further. As each has as many
    samples as the next, it always can.

    Args:
        lengths: tokens of each sample.
        budget: tokens of a row; a sample that is longer has one of its own.
        device: of the model.

    Returns:
        Groups of indices into `lengths`.
    """
    if sharding() == "deepspeed":  # its optimizer steps after the first backward pass
        return [list(range(len(lengths)))]
    groups = budgeted(lengths, budget)
    for _ in range(most(len(groups), device) - len(groups)):
        widest = max(range(len(groups)), key=lambda i: len(groups[i]))
        half = len(groups[widest]) // 2
        groups[widest : widest + 1] = [groups[widest][:half], groups[widest][half:]]
    return groups
