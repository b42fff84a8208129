"""Forward and backward passes over a micro-batch, split into packed rows; on a CPU, two rows at the same time."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from tamperfuse.models.cpu.two_threads import WORKERS, can_run_in_parallel, run_in_parallel
from tamperfuse.records.batching import group_by_budget, group_evenly
from tamperfuse.records.process import world_size
from tamperfuse.training.distributed import max_over_processes, sharding

Backward = Callable[[Tensor], None]
# Tokens of a row: enough to keep the processor busy, few enough to bound the memory of activations.
ROW_TOKENS = 2_048
# Micro-batches of fewer tokens are not split over two threads: starting the threads would take longer than it saves.
PARALLEL_TOKENS = 256


def backward_in_rows(
    model: nn.Module,
    lengths: Sequence[int],
    row_loss: Callable[[list[int]], Tensor],
    backward: Backward,
    device: torch.device,
    *,
    parallel: bool = True,
) -> Tensor:
    """Accumulate the gradient of a micro-batch in `parameter.grad`, row by row.

    On a CPU, in a single process, two rows run at the same time in two threads (:mod:`tamperfuse.models.cpu.two_threads`);
    their gradients are added in a fixed order. Memory: the activations of one row; with two threads those of two rows and a
    second copy of the gradients.

    Args:
        model: the model.
        lengths: tokens of each sample of the micro-batch.
        row_loss: the share in the batch's loss of the samples with these indices (into `lengths`): a scalar.
        backward: runs the backward pass of a scalar. Not called with two threads, which use `torch.autograd.grad`.
        device: of the model.
        parallel: whether `row_loss` may run in two threads.

    Returns:
        The sum of all rows' losses, detached.

    Raises:
        RuntimeError: with two threads, `row_loss` drew random numbers or changed `parameter.grad`.
    """
    enough = len(lengths) >= WORKERS and sum(lengths) >= PARALLEL_TOKENS
    if enough and parallel_rows(model, device, parallel) > 1:
        return _backward_in_threads([p for p in model.parameters() if p.requires_grad], lengths, row_loss)
    total = torch.zeros((), device=device)
    for row in split_into_rows(lengths, ROW_TOKENS, device):
        loss = row_loss(sorted(row))
        backward(loss)
        total += loss.detach()
    return total


def parallel_rows(model: nn.Module, device: torch.device, parallel: bool = True) -> int:
    """How many rows run at the same time.

    Args:
        model: the model; dropout needs one row at a time, since it draws random numbers.
        device: of the model.
        parallel: what the objective allows (:attr:`tamperfuse.training.objectives.Objective.parallel_rows`).

    Returns:
        `WORKERS` on a CPU, in a single process; 1 otherwise.
    """
    dropout = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    single = world_size() == 1 and not sharding()
    return WORKERS if parallel and single and not dropout and can_run_in_parallel(device) else 1


def _backward_in_threads(
    parameters: Sequence[nn.Parameter], lengths: Sequence[int], row_loss: Callable[[list[int]], Tensor]
) -> Tensor:
    """Each thread sums the gradients of its rows; the sums are added after both have ended, in a fixed order."""

    def run(rows: Sequence[list[int]]) -> tuple[Tensor, list[Tensor | None]]:
        total = torch.zeros(())
        gradients: list[Tensor | None] = [None] * len(parameters)
        for row in rows:
            loss = row_loss(row)
            gradients = _add(gradients, torch.autograd.grad(loss, parameters, allow_unused=True))
            total += loss.detach()
        return total, gradients

    rows = group_evenly(lengths, WORKERS * math.ceil(sum(lengths) / (WORKERS * ROW_TOKENS)))
    before = _shared_state(parameters)
    results = run_in_parallel([partial(run, rows[worker::WORKERS]) for worker in range(WORKERS)])
    if _shared_state(parameters) != before:
        raise RuntimeError(
            "The model or the objective's loss drew random numbers or changed parameter.grad while it ran in two threads: set "
            "parallel_rows = False on the objective, move that into its backward method, or set TAMPERFUSE_CPU_KERNELS=0."
        )
    total = torch.zeros(())
    for loss, gradients in results:
        total += loss
        for parameter, gradient in zip(parameters, _add([p.grad for p in parameters], gradients), strict=True):
            parameter.grad = gradient
    return total


def _shared_state(parameters: Sequence[nn.Parameter]) -> list[object]:
    """What a loss must leave unchanged: torch's generator, and every `grad` (which tensor it is, and its version)."""
    grads = [(id(p.grad), p.grad._version if p.grad is not None else 0) for p in parameters]
    return [torch.get_rng_state().numpy().tobytes(), grads]


@torch.no_grad()
def _add(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Elementwise sums, in the memory of the first ones; None is zero."""
    return [b if a is None else a if b is None else a.add_(b) for a, b in zip(first, second, strict=True)]


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
