"""Forward and backward passes over a micro-batch, split into packed rows."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tamperfuse.records.batching import group_by_budget
from tamperfuse.training.distributed import max_over_processes, sharding

Backward = Callable[[Tensor], None]
# Tokens of a row: enough to keep the processor busy, few enough to bound the memory of activations.
ROW_TOKENS = 2_048


def backward_in_rows(
    lengths: Sequence[int], row_loss: Callable[[list[int]], Tensor], backward: Backward, device: torch.device
) -> Tensor:
    """Accumulate the gradient of a micro-batch in `parameter.grad`, one row after the other.

    Memory: the activations of one row.

    Args:
        lengths: tokens of each sample of the micro-batch.
        row_loss: the share in the batch's loss of the samples with these indices (into `lengths`): a scalar.
        backward: runs the backward pass of a scalar.
        device: of the model.

    Returns:
        The sum of all rows' losses, detached.
    """
    total = torch.zeros((), device=device)
    for row in split_into_rows(lengths, ROW_TOKENS, device):
        loss = row_loss(sorted(row))
        backward(loss)
        total += loss.detach()
    return total


def split_into_rows(lengths: Sequence[int], budget: int, device: torch.device) -> list[list[int]]:
    """Split a process's share of a batch into rows of at most `budget` tokens, the same number of rows on every process.

    Processes synchronise in the backward pass of every row, so a process that needs fewer rows splits some of them further.
    Every process has the same number of samples, so this is always possible.

    Args:
        lengths: tokens of each sample.
        budget: tokens of a row; a longer sample gets a row to itself.
        device: of the model.

    Returns:
        The indices (into `lengths`) of each row's samples.
    """
    if sharding() == "deepspeed":  # its optimizer steps after the first backward pass
        return [list(range(len(lengths)))]
    rows = group_by_budget(lengths, budget)
    for _ in range(max_over_processes(len(rows), device) - len(rows)):
        largest = max(range(len(rows)), key=lambda i: len(rows[i]))
        half = len(rows[largest]) // 2
        rows[largest : largest + 1] = [rows[largest][:half], rows[largest][half:]]
    return rows
