"""Progress bars with a time estimate, on standard error; silent unless the command line turns them on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_console: Console | None = None


class Advance(Protocol):
    """Says how many more units are done, and what else to show beside the bar."""

    def __call__(self, units: int, note: str = "") -> None:
        """Move the bar."""


def show_progress(console: Console | None) -> None:
    """Draw bars on this console from now on; None silences them."""
    global _console
    _console = console


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Advance]:
    """A bar for a piece of work.

    Args:
        what: a few words, shown beside the bar.
        total: how many units there are; None if nobody knows.

    Yields:
        A function that says how many more units are done.
    """
    if not drawn() or total == 0:
        yield lambda units, note="": None
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=_console, transient=True) as bar:
        task = bar.add_task(what, total=total, note="")

        def advance(units: int, note: str = "") -> None:
            bar.update(task, advance=units, note=note)

        yield advance


def drawn() -> bool:
    """Whether anybody sees the bars."""
    return _console is not None
