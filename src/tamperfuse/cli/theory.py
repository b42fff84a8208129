"""The command `tamperfuse theory`: parses, calls, prints."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tamperfuse.cli.options import Out, out_console
from tamperfuse.records.errors import UserError


def theory(
    out: Out = Path("runs/theory"),
    counts: Annotated[
        str | None,
        typer.Option(
            help="Judge this setting on the terminal instead of writing the page.", metavar="N_V,N_S,N*_V,N*_S"
        ),
    ] = None,
    overlap: Annotated[str | None, typer.Option(help="Features that both share; none.", metavar="N_VO,N_SO")] = None,
    classes: Annotated[int | None, typer.Option(help="K, at least 2; 3.")] = None,
    p: Annotated[float | None, typer.Option(help="Chance that a spurious feature lets go, in [0, 1]; 0.9.")] = None,
    lam: Annotated[
        float | None, typer.Option("--lambda", help="Share of the model before the attack, in [0, 1]; 0.5.")
    ] = None,
) -> None:
    """Write the page of SDD's two theorems: where they hold, where not, what that means for a publisher.

    Example: `tamperfuse theory --out runs/theory`

    Example: `tamperfuse theory --counts 3,20,2,21 --p 0.9`
    """
    if counts is not None:
        _judge_setting(counts, overlap, 3 if classes is None else classes, 0.9 if p is None else p, lam)
        return
    if any(given is not None for given in (overlap, classes, p, lam)):
        raise UserError("--overlap, --classes, --p and --lambda describe a setting: give its --counts as well.")
    from tamperfuse.report.theory import write_theory_page

    page = write_theory_page(out)
    out_console.print(f"The page is {page}; open it in a browser.", markup=False)


def _judge_setting(counts: str, overlap: str | None, classes: int, p: float, lam: float | None) -> None:
    from tamperfuse.theory import FeatureCounts, TheoryError
    from tamperfuse.theory.setting import judge_setting

    numbers = [*_numbers("--counts", counts, 4), *_numbers("--overlap", overlap or "0,0", 2)]
    try:
        lines = judge_setting(FeatureCounts(*numbers), classes, p, 0.5 if lam is None else lam)
    except TheoryError as error:
        raise UserError(str(error)) from error
    for line in lines:
        out_console.print(line, markup=False)
    out_console.print("Where the theorems hold, in figures: tamperfuse theory --out runs/theory", markup=False)


def _numbers(option: str, text: str, wanted: int) -> list[Any]:
    """Counts as integers where they are some; whatever is none is left for the theory to refuse by name."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != wanted:
        raise UserError(f"{option} {text!r} is not {wanted} numbers: separate them by commas, such as 3,20,2,21.")
    return [int(part) if part.removeprefix("-").isdecimal() else part for part in parts]
