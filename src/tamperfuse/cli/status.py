"""The command `tamperfuse status`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tamperfuse.cli.options import Json, out_console, print_json, printable

if TYPE_CHECKING:
    from tamperfuse.study.status import RunStatus


def status(
    folder: Annotated[Path, typer.Argument(help="The folder of a run, finished or not.", metavar="DIR")],
    as_json: Json = False,
) -> None:
    """Print how far a run is: what is done, what runs, what is left.

    It only reads the folder, so it may be called while the run goes on in another process.

    Example: `tamperfuse status runs/demo`
    """
    from tamperfuse.study.status import run_status

    current = run_status(folder)
    if as_json:
        print_json(current.model_dump(mode="json"))
    else:
        _print_status(current)


def _print_status(current: "RunStatus") -> None:
    from tamperfuse.records.amounts import duration, gigabytes

    table = Table("nodes", "done", "running", "left", box=None, header_style="bold")
    for kind, counts in [*current.kinds.items(), ("all", current.nodes)]:
        table.add_row(kind, *(str(number) for number in (counts.done, counts.running, counts.left)))
    out_console.print(table)
    for node in current.running:
        where = f"process {node.pid}" + ("" if node.checked else f" on {printable(node.host)}, not checked")
        out_console.print(f"Running for {duration(node.seconds)}: {printable(node.what)} ({where})")
    for what in current.interrupted:
        out_console.print(f"Interrupted: {printable(what)}")
    disk = f"{gigabytes(current.disk_used)} on disk"
    if current.state == "finished":
        out_console.print(f"The run is finished; {disk}.")
        return
    verb = "is running" if current.state == "running" else "is stopped: the command that started it resumes it"
    out_console.print(
        f"The run {verb}. About {duration(current.seconds_left)} left; {disk}, at most {gigabytes(current.disk_left)} more, "
        f"{gigabytes(current.disk_free)} free."
    )
