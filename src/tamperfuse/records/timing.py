"""Where the time goes: seconds of training, generating and scoring proper, against everything around them.

    with clocked() as seconds:            # a node
        ...                               # fit, generate, score and the judge note their own time
    seconds == {"training": 31.2, "generating": 12.0, "scoring": 8.1}

The times are the process's own: a node runs in one.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Work = Literal["training", "generating", "scoring"]
WORK: tuple[Work, ...] = get_args(Work)

_seconds: dict[Work, float] = dict.fromkeys(WORK, 0.0)


def note(work: Work, seconds: float) -> None:
    """Count time as spent on this work."""
    _seconds[work] += seconds


@contextmanager
def spent(work: Work) -> Iterator[None]:
    """Count the time of a block, or of a function that this decorates, as spent on this work."""
    began = time.perf_counter()
    try:
        yield
    finally:
        note(work, time.perf_counter() - began)


@contextmanager
def clocked() -> Iterator[dict[Work, float]]:
    """Seconds of each work within the block; filled in when it ends."""
    before, within = dict(_seconds), dict.fromkeys(WORK, 0.0)
    try:
        yield within
    finally:
        for work in WORK:
            within[work] = _seconds[work] - before[work]
