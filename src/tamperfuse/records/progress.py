"""Progress bars with a time estimate, and what a run shows around them, on standard error; the command line turns them on."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from tamperfuse.records.errors import printable

RUN_UPDATES = 2.0  # a second, of a display with a run's table, which takes longer to draw than bars

#: Returns what is shown above and below the progress bars.
Surroundings = Callable[[], tuple[RenderableType, RenderableType]]


class Advance(Protocol):
    """Advances a progress bar."""

    def __call__(self, units: int, note: str = "") -> None:
        """Advance by `units`, and show `note` beside the bar."""


class _Display(Progress):
    """All that is updated at the bottom of the terminal: progress bars, and what stands around them.

    Args:
        console: where it is shown.
        around: what stands above and below the bars, called at every update; None for bars alone.
    """

    def __init__(self, console: Console, around: Surroundings | None) -> None:
        self._around = around
        columns = (
            TextColumn("  {task.description}", markup=False, table_column=Column(no_wrap=True, max_width=30)),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            # Takes what is left of the line, so that on a narrow terminal it is cut off, and not the numbers.
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
        )
        updates = 10 if around is None else RUN_UPDATES
        super().__init__(*columns, console=console, transient=True, expand=True, refresh_per_second=updates)

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is shown, from top to bottom."""
        bars = self.make_tasks_table(self.tasks)
        if self._around is None:
            yield bars
            return
        above, below = self._around()
        yield above
        yield bars if bars.row_count else ""  # a line also without a bar: a display of one height does not jump
        yield below


_console: Console | None = None
_display: _Display | None = None  # that is shown now


def show_progress(console: Console | None) -> None:
    """Show progress bars on this console from now on; None hides them."""
    global _console
    _console = console


def is_shown() -> bool:
    """Whether progress bars are shown."""
    return _console is not None


@contextmanager
def progress(label: str, total: int | None) -> Iterator[Advance]:
    """Show a progress bar while the block runs.

    Args:
        label: a few words beside the bar.
        total: number of units; None if it is unknown.

    Yields:
        A function that advances the bar.
    """
    if not is_shown() or total == 0:
        yield lambda units, note="": None
        return
    with _current_display() as display:
        bar = display.add_task(printable(label), total=total, note="")

        def advance(units: int, note: str = "") -> None:
            display.update(bar, advance=units, note=note)

        try:
            yield advance
        finally:
            display.remove_task(bar)


@contextmanager
def live_display(around: Surroundings | None = None) -> Iterator[Progress]:
    """Show progress bars, and what stands around them, while the block runs; messages are printed above all of it.

    It may only be opened where progress is shown, and not within another one. At its end, also by an error or Ctrl-C, its lines
    are cleared.

    Args:
        around: returns what stands above and below the bars, in lines no longer than the terminal's.
    """
    global _display
    assert _console is not None and _display is None
    with _Display(_console, around) as display:
        _display = display
        try:
            yield display
        finally:
            _display = None


@contextmanager
def _current_display() -> Iterator[Progress]:
    """The display that is shown now, or one for the time of the block."""
    if _display is not None:
        yield _display
        return
    with live_display() as display:
        yield display
