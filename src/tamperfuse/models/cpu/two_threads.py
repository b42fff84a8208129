"""Two pieces of work in two threads, each with half of the CPU's threads.

Between matrix products a model runs hundreds of operations that are too small to be split over several threads. Two pieces of
work at the same time keep the cores busy in between. The plain path is one piece of work after the other, with all threads.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from tamperfuse.models.cpu import enabled

T = TypeVar("T")

#: Pieces of work at the same time. More would wait for Python's interpreter lock.
WORKERS = 2


def can_run_in_parallel(device: torch.device) -> bool:
    """Whether work on this device can be split over `WORKERS` threads: a CPU, with at least as many threads."""
    return device.type == "cpu" and torch.get_num_threads() >= WORKERS and enabled("two_threads")


def run_in_parallel(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Run tasks at the same time, in the caller's gradient mode, each with its share of the CPU's threads.

    Args:
        tasks: at most `WORKERS`; a single task runs in the calling thread. They must not use torch's default random number
            generator, since the order of threads is not fixed.

    Returns:
        The tasks' results, in order. If a task raises, its exception is raised after all tasks have ended.
    """
    if len(tasks) == 1:
        return [tasks[0]()]
    threads, gradients = torch.get_num_threads(), torch.is_grad_enabled()

    def run(task: Callable[[], T]) -> T:
        torch.set_num_threads(threads // len(tasks))  # of this worker
        with torch.set_grad_enabled(gradients):
            return task()

    try:
        with ThreadPoolExecutor(len(tasks)) as pool:
            return list(pool.map(run, tasks))
    finally:
        torch.set_num_threads(threads)  # the default of threads that are started later
