"""The command `tamperfuse report`."""

from pathlib import Path

from tamperfuse.cli.options import RunFolder, out_console


def report(folder: RunFolder) -> None:
    """Write the page of a finished run, `report.html`, from its results.

    Example: `tamperfuse report runs/demo`
    """
    print_report(folder)


def print_report(folder: Path) -> None:
    """Write the page of a finished run; print its headline and where it is."""
    from tamperfuse.report.page import headline, write_report

    page = write_report(folder)
    out_console.print(headline(folder), style="bold")
    out_console.print(f"Results are in {folder}; open {page} in a browser.")
