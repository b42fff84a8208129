"""The command `tamperfuse status`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tamperfuse.cli.options import Json, out_console, print_json, print_table
from tamperfuse.records.errors import printable
from tamperfuse.records.run import PAGE

if TYPE_CHECKING:
    from tamperfuse.study.status import RunStatus


def status(
    folder: Annotated[Path, typer.Argument(help="The folder of a run, finished or not.", metavar="DIR")],
    as_json: Json = False,
) -> None:
    """Show the progress of a run: nodes done, running and left.

    It only reads the folder, so it may be called while the run goes on in another process.

    Example: `tamperfuse status runs/demo`
    """
    from tamperfuse.study.status import run_status

    current = run_status(folder)
    if as_json:
        print_json(current.model_dump(mode="json"))
    else:
        _print_status(current, folder)


def _print_status(current: "RunStatus", folder: Path) -> None:
    from tamperfuse.records.amounts import gigabytes
    from tamperfuse.study.status_table import running_text, status_table, time_left_text

    print_table(status_table(current))
    for node in current.running:
        where = f"process {node.pid}" + (
            "" if node.checked else f" on {printable(node.host)}, which cannot be checked from here"
        )
        out_console.print(f"{running_text(node.what, node.seconds)} ({where})")
    for what in current.interrupted:
        out_console.print(f"Interrupted: {printable(what)}")
    disk = f"{gigabytes(current.disk_used)} on disk"
    if current.state == "finished":
        out_console.print(f"The run is finished; {disk}. Its page is {printable(str(folder / PAGE))}.")
        return
    verb = "is running" if current.state == "running" else "is stopped, and the command that started it resumes it"
    out_console.print(
        f"The run {verb}; {disk}, at most {gigabytes(current.disk_left)} more, {gigabytes(current.disk_free)} free."
    )
    out_console.print(time_left_text(current))
