"""The progress of a run: a line at the bottom of a terminal, or one line a minute in a log."""

import logging
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from tamperfuse.records.amounts import duration
from tamperfuse.records.plan import RunPlan
from tamperfuse.records.progress import StatusLine, is_shown, status_line
from tamperfuse.study.remaining import seconds_left

log = logging.getLogger("tamperfuse")

HEARTBEAT = 60.0  # seconds between two lines in a log
REFRESH = 2.0  # seconds between two updates of the line of a terminal


class RunProgress:
    """Counts the nodes of a run and says how far it is; a context manager, whose thread prints while the block runs.

    Args:
        plan: of the run.
        done: keys of the nodes that have a result.
    """

    def __init__(self, plan: RunPlan, done: Collection[str] = ()) -> None:
        self._plan = plan
        self._done = {node.key for node in plan.nodes} & set(done)
        self._total = len({node.key for node in plan.nodes})
        self._taken: dict[str, float] = {}
        self._current: dict[str, tuple[str, float]] = {}  # key → label, start
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._print, daemon=True)

    def begin(self, key: str, what: str) -> None:
        """A node starts."""
        with self._lock:
            self._current[key] = (what, time.monotonic())

    def interrupt(self, key: str) -> None:
        """A node ends without a result."""
        with self._lock:
            self._current.pop(key, None)

    def finish(self, key: str, seconds: float | None) -> None:
        """A node has a result.

        Args:
            key: of the node.
            seconds: that it took; None if it is reused.
        """
        with self._lock:
            self._current.pop(key, None)
            self._done.add(key)
            if seconds is not None:
                self._taken[key] = seconds

    def text(self) -> str:
        """Nodes done, the current nodes, and the time left of the whole run."""
        with self._lock:
            elapsed = {key: time.monotonic() - start for key, (_, start) in self._current.items()}
            left = seconds_left(self._plan, self._taken, self._done, elapsed)
            now = [f"{what} (for {duration(elapsed[key])})" for key, (what, _) in self._current.items()]
            done = len(self._done)
        return f"{done} of {self._total} nodes done; now: {'; '.join(now) or 'between two nodes'}; about {duration(left)} left"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _print(self) -> None:
        with _terminal_line() as line:
            while not self._end.wait(HEARTBEAT if line is None else REFRESH):
                if line is None:
                    log.info("[%s]", self.text())
                else:
                    line(self.text())


@contextmanager
def _terminal_line() -> Iterator[StatusLine | None]:
    """A line at the bottom of the terminal; None where progress is not shown."""
    if not is_shown():
        yield None
        return
    with status_line() as line:
        yield line
