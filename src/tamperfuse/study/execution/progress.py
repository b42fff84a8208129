"""The progress of a run: a table on a terminal, or one line a minute in a log."""

import logging
import threading
import time
from collections.abc import Collection
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from rich.console import Group, RenderableType
from rich.text import Text

from tamperfuse.records.amounts import duration
from tamperfuse.records.plan import RunPlan
from tamperfuse.records.progress import is_shown, live_display
from tamperfuse.study.remaining import seconds_left
from tamperfuse.study.status import count_nodes
from tamperfuse.study.status_table import running_text, status_table, time_left_text

log = logging.getLogger("tamperfuse")

HEARTBEAT = 60.0  # seconds between two lines in a log
REFRESH = 1.0  # seconds for which a table of a terminal is shown
MOST_RUNNING = 3  # lines of a table about running nodes


class RunProgress:
    """Counts the nodes of a run and says how far it is; a context manager, which prints while the block runs.

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
        self._thread = threading.Thread(target=self._log, daemon=True)
        self._display = ExitStack()
        self._table: tuple[RenderableType, RenderableType] = ("", "")
        self._outdated = 0.0  # when the table is made anew

    def begin(self, key: str, what: str) -> None:
        """A node starts, also one whose result exists but is damaged."""
        with self._lock:
            self._done.discard(key)
            self._current[key] = (what, time.monotonic())

    def interrupt(self, key: str) -> None:
        """A node ends without a result."""
        with self._lock:
            self._current.pop(key, None)

    def finish(self, key: str, seconds: float | None) -> None:
        """A node has a result.

        Args:
            key: of the node.
            seconds: that it took; None if that says nothing about the others, because it had another number of threads.
        """
        with self._lock:
            self._current.pop(key, None)
            self._done.add(key)
            if seconds is not None:
                self._taken[key] = seconds

    def text(self) -> str:
        """Nodes done, the current nodes, and the time left of the whole run."""
        with self._lock:
            elapsed = self._elapsed()
            left = seconds_left(self._plan, self._taken, self._done, elapsed)
            now = [f"{what} (for {duration(elapsed[key])})" for key, (what, _) in self._current.items()]
            done = len(self._done)
        return f"{done} of {self._total} nodes done; now: {'; '.join(now) or 'between two nodes'}; about {duration(left)} left"

    def table(self) -> tuple[RenderableType, RenderableType]:
        """What a terminal shows above and below the progress bars of the current node."""
        with self._lock:
            elapsed = self._elapsed()
            counts = count_nodes(self._plan, self._taken, self._done, elapsed)
            now = [running_text(what, elapsed[key]) for key, (what, _) in self._current.items()]
        if len(now) > MOST_RUNNING:
            now[MOST_RUNNING - 1 :] = [f"… and {len(now) - MOST_RUNNING + 1} other nodes"]
        above = Group("", status_table(counts), *(_line(text) for text in now or ["Between two nodes."]))
        return above, _line(time_left_text(counts))

    def _elapsed(self) -> dict[str, float]:
        return {key: time.monotonic() - start for key, (_, start) in self._current.items()}

    def __enter__(self) -> Self:
        if is_shown():
            self._display.enter_context(live_display(self._recent_table))
        else:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.close()
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _log(self) -> None:
        while not self._end.wait(HEARTBEAT):
            log.info("[%s]", self.text())

    def _recent_table(self) -> tuple[RenderableType, RenderableType]:
        """The table; that of up to :data:`REFRESH` seconds ago, since a run may log many nodes a second."""
        now = time.monotonic()
        if now >= self._outdated:
            self._table, self._outdated = self.table(), now + REFRESH
        return self._table


def _line(text: str) -> Text:
    """A text that is cut off at the terminal's width, as the display's lines are counted."""
    return Text(text, no_wrap=True, overflow="ellipsis")
