"""A CPU's threads shared out between two pieces of work.

Between its matrix products a model runs hundreds of operations too small to be split: several threads spend longer waiting
for each other than working. Two pieces of work side by side, each with half of the threads, keep all of them busy.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")

#: Pieces of work that run at once; Python's interpreter runs in one thread at a time, so more would wait for it.
HANDS = 2


def can_share(device: torch.device) -> bool:
    """Whether work on this device may be shared out: a CPU, with a thread for each piece."""
    return device.type == "cpu" and torch.get_num_threads() >= HANDS


def side_by_side(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Run tasks at the same time, with the caller's gradient mode, each with its share of the threads.

    Args:
        tasks: at most `HANDS`; a single one is simply run. They must not draw random numbers from torch's own generator.

    Returns:
        What they return, in order. If one raises, so does this, when none runs any more.
    """
    if len(tasks) == 1:
        return [tasks[0]()]
    threads, gradients = torch.get_num_threads(), torch.is_grad_enabled()

    def run(task: Callable[[], T]) -> T:
        torch.set_num_threads(threads // len(tasks))  # this thread's
        with torch.set_grad_enabled(gradients):
            return task()

    try:
        with ThreadPoolExecutor(len(tasks)) as pool:
            return list(pool.map(run, tasks))
    finally:
        torch.set_num_threads(threads)  # what threads that begin later start from
