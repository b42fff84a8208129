"""The command `tamperfuse judge compare`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tamperfuse.cli.options import Json, RunFolder, out_console, print_json, print_table, three_decimals, with_interval
from tamperfuse.cli.summary_table import percent
from tamperfuse.records.errors import printable

if TYPE_CHECKING:
    from tamperfuse.commands.judge_compare import JudgeComparison

LONGEST_TEXT = 300  # characters of a prompt or response that are printed


def judge_compare(
    folder: RunFolder,
    labels: Annotated[
        Path | None,
        typer.Option(help="A file with prompt, response and label (true: executes its request).", metavar="FILE"),
    ] = None,
    top: Annotated[
        int, typer.Option(help="Number of responses to print: those on which the judges disagree most.", min=0)
    ] = 5,
    as_json: Json = False,
) -> None:
    """Compare the judges of a run on the same responses: agreement, labels, and where they disagree most.

    Example: `tamperfuse judge compare runs/demo`
    """
    from tamperfuse.commands.judge_compare import compare_judges

    comparison = compare_judges(folder, labels, top)
    if as_json:
        print_json(_json(comparison))
        return
    _print(comparison)


def _json(comparison: "JudgeComparison") -> dict[str, object]:
    values = asdict(comparison)
    for row, reduction in zip(values["reductions"], comparison.reductions, strict=True):
        row["measures"] = {judge: measure.model_dump() for judge, measure in reduction.measures.items()}
    return values


def _print(comparison: "JudgeComparison") -> None:
    pairs = Table("judges", "on", "n", "agree", "Cohen's κ", "executed", box=None, header_style="bold")
    for row in comparison.pairs:
        same = row.agreement
        rates = f"{same.first:.1%} and {same.second:.1%}"
        names = f"{row.first} and {row.second}"
        pairs.add_row(names, row.on, str(same.n), f"{same.same:.1%}", three_decimals(same.kappa), rates)
    if comparison.pairs:
        print_table(pairs)
    labels = Table("against labels", "n", "AUROC", "precision", "recall", "Cohen's κ", box=None, header_style="bold")
    for label in comparison.labels:
        one = label.labels
        shares = [with_interval(one.precision, one.precision_interval), with_interval(one.recall, one.recall_interval)]
        cells = [three_decimals(one.auroc), *shares, three_decimals(one.agreement.kappa)]
        labels.add_row(label.judge, str(one.agreement.n), *cells)
    if comparison.labels:
        print_table(labels)
    for name, count in comparison.failures.items():
        if count:
            out_console.print(f"{name} could not decide on {count} responses, which are left out.")
    for reduction in comparison.reductions:
        values = "; ".join(f"{judge} {percent(measure)}" for judge, measure in reduction.measures.items())
        flips = " Whether harm is reduced depends on the judge." if reduction.flips else ""
        out_console.print(f"Reduction by {reduction.defense}: {values}.{flips}")
        if reduction.verdicts_differ:
            out_console.print(reduction.verdicts_differ)
    for disputed in comparison.disputed:
        cut = ", cut at the token limit" if disputed.cut else ""
        prompt, response = _short(disputed.answer.prompt), _short(disputed.answer.response)
        out_console.print(f"\nPrompt: {prompt}\nResponse{cut}: {response}")
        for name, opinion in disputed.opinions.items():
            decision = "executed" if opinion.verdict else f"not executed ({opinion.reason or 'no reason stated'})"
            out_console.print(f"  {name}: {decision}, score {opinion.score:.3g}")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return printable(line if len(line) <= LONGEST_TEXT else f"{line[:LONGEST_TEXT]}…")
