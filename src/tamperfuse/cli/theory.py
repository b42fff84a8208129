"""The command `tamperfuse theory`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tamperfuse.cli.options import Out, out_console
from tamperfuse.records.errors import UserError, shown

LARGEST_DIGITS = 100  # of a count; Python converts no more than 4,300


def theory(
    out: Out = Path("runs/theory"),
    counts: Annotated[
        str | None,
        typer.Option(
            help="Print both theorems at this setting instead of writing the page.", metavar="N_V,N_S,N*_V,N*_S"
        ),
    ] = None,
    overlap: Annotated[
        str | None, typer.Option(help="Features that both models have; 0,0 by default.", metavar="N_VO,N_SO")
    ] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes K, at least 2; 3 by default.")] = None,
    p: Annotated[
        float | None,
        typer.Option(help="Probability that a spurious feature votes at random, in [0, 1]; 0.9 by default."),
    ] = None,
    lam: Annotated[
        float | None, typer.Option("--lambda", help="Weight of the model before the attack, in [0, 1]; 0.5 by default.")
    ] = None,
) -> None:
    """Write a page about SDD's two theorems: where they hold, where they do not, and what follows for publishers.

    Example: `tamperfuse theory --out runs/theory`

    Example: `tamperfuse theory --counts 3,20,2,21 --p 0.9`
    """
    if counts is not None:
        _judge_setting(counts, overlap, 3 if classes is None else classes, 0.9 if p is None else p, lam)
        return
    if any(value is not None for value in (overlap, classes, p, lam)):
        raise UserError("--overlap, --classes, --p and --lambda are part of a setting: give its --counts as well.")
    from tamperfuse.report.theory import write_theory_page

    page = write_theory_page(out)
    out_console.print(f"The page is {page}; open it in a browser.")


def _judge_setting(counts: str, overlap: str | None, classes: int, p: float, lam: float | None) -> None:
    from tamperfuse.theory import FeatureCounts, TheoryError
    from tamperfuse.theory.setting import judge_setting

    numbers = [*_numbers("--counts", counts, 4), *_numbers("--overlap", overlap or "0,0", 2)]
    try:
        lines = judge_setting(FeatureCounts(*numbers), classes, p, 0.5 if lam is None else lam)
    except TheoryError as error:
        raise UserError(str(error)) from error
    for line in lines:
        out_console.print(line)
    out_console.print("For figures, run: tamperfuse theory --out runs/theory")


def _numbers(option: str, text: str, count: int) -> list[Any]:
    """Split comma-separated counts. Parts that are not integers stay strings; FeatureCounts names them in its error."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != count:
        raise UserError(f"{option} {shown(repr(text))} is not {count} numbers: separate them by commas.")
    longest = max(map(len, parts))
    if longest > LARGEST_DIGITS:
        raise UserError(f"{option} has a number of {longest:,} digits: give numbers of features, such as 3,20,2,21.")
    return [int(part) if part.removeprefix("-").isdecimal() else part for part in parts]
