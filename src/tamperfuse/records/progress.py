"""Progress bars with a time estimate, on standard error; silent unless the command line turns them on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_console: Console | None = None


def show_progress(console: Console | None) -> None:
    """Draw bars on this console from now on; None silences them."""
    global _console
    _console = console


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar for a piece of work.

    Args:
        what: a few words, shown beside the bar.
        total: how many units there are.

    Yields:
        A function that says how many more units are done.
    """
    if _console is None or total == 0:
        yield lambda _: None
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda units: bar.advance(task, units)
