"""The command `tamperfuse judge run`."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from tamperfuse.cli.options import Json, RunFolder, Settings, out_console, parse_settings, print_json, print_table
from tamperfuse.cli.summary_table import percent
from tamperfuse.records.errors import printable, quoted

if TYPE_CHECKING:
    from tamperfuse.records.summary import DefenseSummary, Measure


def judge_run(
    folder: RunFolder,
    judge: Annotated[
        str, typer.Option("--judge", help="The judge: phrases, llm, … (see `tamperfuse list`).", metavar="NAME")
    ],
    settings: Settings = None,
    name: Annotated[
        str,
        typer.Option(
            help="Name of the judge in the run; by default its own, if no other judge has it.", metavar="NAME"
        ),
    ] = "",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print how many responses there are and what judging them costs, then stop."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Judge the responses of a finished run with one more judge; no attack runs again.

    The measures by this judge are added to summary.json, under `judges`.

    Example: `tamperfuse judge run runs/demo --judge phrases`
    """
    from tamperfuse.commands.judge_run import judge_run as add_judge
    from tamperfuse.study.sections import parse_judge

    spec = parse_judge({"judge": judge, "parameters": parse_settings(settings)})
    judged = add_judge(folder, spec, name, dry_run=dry_run)
    if judged is None:
        return
    summary = judged.summary
    if as_json:
        print_json(summary.model_dump(by_alias=True)["judges"][judged.name])
        return
    _print_measures({summary.judge: summary.defenses, judged.name: summary.judges[judged.name]})
    for kind, count in judged.failures.items():
        out_console.print(
            f"{count} verdicts are missing ({kind}): rates leave them out, and intervals hold however they would have been "
            "decided."
        )
    out_console.print(
        f"{judged.responses} distinct responses are judged; `tamperfuse report` writes the page with every judge. Compare them "
        f"with: tamperfuse judge compare {quoted(folder)}"
    )


def _print_measures(by_judge: dict[str, dict[str, "DefenseSummary"]]) -> None:
    """Print what two judges say of every defense: a row for each measure, a column for each judge."""
    rows: list[tuple[str, list[str]]] = []
    for defense in next(iter(by_judge.values())):
        columns = [_cells(defenses[defense]) for defenses in by_judge.values()]
        labels = dict.fromkeys(label for column in columns for label in column)  # only some judges have mean scores
        rows += [(f"{defense}: {label}", [column.get(label, "–") for column in columns]) for label in labels]
    # A table that is wider than the terminal shortens its columns, but a name that is cut cannot be looked up.
    widest = max(len(printable(label)) for label, _ in rows)
    judges = [Column(printable(name), overflow="fold") for name in by_judge]
    table = Table(Column("", min_width=widest, no_wrap=True), *judges, box=None, header_style="bold")
    for label, cells in rows:
        table.add_row(printable(label), *cells)
    print_table(table)


def _cells(defense: "DefenseSummary") -> dict[str, str]:
    """The measures of one defense that depend on the judge, by label."""
    harm, scores = defense.harmful_execution, defense.mean_score
    cells = {
        "harmful execution before": percent(harm.before_attack),
        **{f"after {attack}": percent(measure) for attack, measure in harm.after_attack.items()},
        **{
            f"after {control}, without an attacker": percent(measure) for control, measure in harm.after_control.items()
        },
        "reduction, pooled": percent(defense.reduction_vs_undefended.pooled),
        "benign answer rate": percent(defense.benign_answer_rate),
    }
    if scores is not None:
        after = scores.after
        cells |= {"mean score before": _score(scores.before_attack)}
        cells |= {f"mean score after {attack}": _score(measure) for attack, measure in after.items()}
    return cells


def _score(measure: "Measure") -> str:
    """A mean score with its interval, in the judge's unit."""
    if measure.value is None:
        return "–"
    interval = "" if measure.low is None or measure.high is None else f" ({measure.low:.2f} to {measure.high:.2f})"
    return f"{measure.value:.2f}{interval}"
