"""Calls of an endpoint from several threads, which wait most of the time."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Event, Thread
from typing import TypeVar

log = logging.getLogger("tamperfuse")
T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def in_threads(
    function: Callable[[T], R], items: Sequence[T], count: int, stop: Event, patience: float
) -> Iterator[Iterator[tuple[T, R]]]:
    """Call a function for every item, from several threads at a time, while the block runs.

    Where the block ends by an exception, such as that of a call or Ctrl-C, no further call begins and those under way are waited
    for: what they ask for is paid for. A second Ctrl-C ends the waiting. The threads are daemons, unlike those of a
    ThreadPoolExecutor, so the process can end while one of them still waits for its endpoint.

    Args:
        function: of an item; called from several threads.
        items: the items.
        count: largest number of threads.
        stop: set where the block ends by an exception.
        patience: how long calls under way are waited for, in seconds.

    Yields:
        An iterator over the items with their results, in the order in which the calls end. It raises what a call raises.
    """
    waiting, outcomes = deque(items), SimpleQueue[tuple[T, R | Exception]]()

    def work() -> None:
        while not stop.is_set():
            try:
                item = waiting.popleft()
            except IndexError:
                return
            try:
                outcome: R | Exception = function(item)
            except Exception as error:
                outcome = error
            outcomes.put((item, outcome))

    def results() -> Iterator[tuple[T, R]]:
        for _ in items:
            item, outcome = outcomes.get()
            if isinstance(outcome, Exception):
                raise outcome
            yield item, outcome

    threads = [Thread(target=work, name=f"request {number}", daemon=True) for number in range(min(count, len(items)))]
    try:
        for thread in threads:
            thread.start()
        yield results()
    except BaseException:
        stop.set()
        _wait(threads, patience)
        raise


def _wait(threads: Sequence[Thread], patience: float) -> None:
    under_way = [thread for thread in threads if thread.is_alive()]
    if under_way:
        log.info("      waits up to %g s for %d replies on their way (Ctrl-C: drop them)", patience, len(under_way))
    end = time.monotonic() + patience
    for thread in under_way:
        thread.join(max(0.0, end - time.monotonic()))
