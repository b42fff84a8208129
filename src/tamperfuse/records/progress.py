"""Progress bars with a time estimate, and a line for the whole run, on standard error; the command line turns them on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_console: Console | None = None


class Advance(Protocol):
    """Advances a progress bar."""

    def __call__(self, units: int, note: str = "") -> None:
        """Advance by `units`, and show `note` beside the bar."""


class StatusLine(Protocol):
    """Replaces the line at the bottom of the terminal."""

    def __call__(self, text: str) -> None:
        """Show `text`."""


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
    columns = (
        TextColumn("  {task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=_console, transient=True) as bar:
        task = bar.add_task(label, total=total, note="")

        def advance(units: int, note: str = "") -> None:
            bar.update(task, advance=units, note=note)

        yield advance


@contextmanager
def status_line() -> Iterator[StatusLine]:
    """Show a line below the progress bars while the block runs; it may only be opened where progress is shown.

    Yields:
        A function that replaces the line.
    """
    assert _console is not None
    with Progress(TextColumn("{task.description}", markup=False), console=_console, transient=True) as line:
        task = line.add_task("", total=None)
        yield lambda text: line.update(task, description=text)
