"""Time that a node spends on training, generating and scoring, as opposed to loading models, lm-eval and files.

    with measure_work() as seconds:       # around a node
        ...                               # fit, generate, score and the judge count their own time
    seconds == {"training": 31.2, "generating": 12.0, "scoring": 8.1}

The counters belong to the process: nodes that run side by side need processes of their own.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Work = Literal["training", "generating", "scoring"]
WORK: tuple[Work, ...] = get_args(Work)

_seconds: dict[Work, float] = dict.fromkeys(WORK, 0.0)


def add_seconds(work: Work, seconds: float) -> None:
    """Add time to a kind of work."""
    _seconds[work] += seconds


@contextmanager
def count_time(work: Work) -> Iterator[None]:
    """Add the time of a `with` block, or of a decorated function, to a kind of work."""
    start = time.perf_counter()
    try:
        yield
    finally:
        add_seconds(work, time.perf_counter() - start)


@contextmanager
def measure_work() -> Iterator[dict[Work, float]]:
    """Measure the seconds of every kind of work within a `with` block; the dictionary is filled when the block ends."""
    before, within = dict(_seconds), dict.fromkeys(WORK, 0.0)
    try:
        yield within
    finally:
        for work in WORK:
            within[work] = _seconds[work] - before[work]
