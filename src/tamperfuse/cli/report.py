"""The command `tamperfuse report`."""

from pathlib import Path
from typing import Annotated

import typer

from tamperfuse.cli.options import out_console
from tamperfuse.records.errors import UserError

RunFolders = Annotated[
    list[Path], typer.Argument(help="The folder of a finished run; several to set them side by side.", metavar="DIR...")
]
ComparisonFile = Annotated[
    Path | None, typer.Option(help="With several runs: the page to write; comparison.html by default.", metavar="FILE")
]


def report(folders: RunFolders, out: ComparisonFile = None) -> None:
    """Write the page of a finished run, `report.html`; with several runs, also a page that compares them.

    Example: `tamperfuse report runs/demo`

    Example: `tamperfuse report runs/demo runs/attacks --out both.html`
    """
    if len(folders) == 1:
        if out:
            raise UserError("--out names the page that compares runs: name two runs or more, or leave it out.")
        print_report(folders[0])
        return
    from tamperfuse.report.comparison import COMPARISON, write_comparison

    page = write_comparison(folders, out or Path(COMPARISON))
    out_console.print(f"The comparison of {len(folders)} runs is written; open {page} in a browser.")


def print_report(folder: Path) -> None:
    """Write the page of a finished run; print its headline and where it is."""
    from tamperfuse.report.page import headline, write_report

    page = write_report(folder)
    out_console.print(headline(folder), style="bold")
    out_console.print(f"Results are in {folder}; open {page} in a browser.")
