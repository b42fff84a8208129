"""The command `tamperfuse judge run`."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from tamperfuse.cli.options import Json, RunFolder, Settings, out_console, parse_settings, print_json
from tamperfuse.cli.summary_table import percent
from tamperfuse.records.errors import quoted

if TYPE_CHECKING:
    from tamperfuse.records.summary import DefenseSummary


def judge_run(
    folder: RunFolder,
    judge: Annotated[
        str, typer.Option("--judge", help="The judge: phrases, llm, … (see `tamperfuse list`).", metavar="NAME")
    ],
    settings: Settings = None,
    name: Annotated[
        str, typer.Option(help="Name of the judge in the run, where its own is taken.", metavar="NAME")
    ] = "",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print how many responses there are and what judging them costs, then stop."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Judge the responses of a finished run once more: no attack runs again.

    The measures under this judge go to `judges` in summary.json.

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
    by_judge = {summary.judge: summary.defenses, judged.name: summary.judges[judged.name]}
    table = Table(Column("", no_wrap=True), *by_judge, box=None, header_style="bold")
    for defense in summary.defenses:
        columns = [_cells(defenses[defense]) for defenses in by_judge.values()]
        for label in columns[0]:
            table.add_row(f"{defense}: {label}", *(column[label] for column in columns))
    out_console.print(table)
    for kind, count in judged.failures.items():
        out_console.print(f"{count} verdicts are missing ({kind}) and count as not executed.")
    out_console.print(
        f"{judged.responses} distinct responses judged; a report that is written now has every judge; compare them with: "
        f"tamperfuse judge compare {quoted(folder)}"
    )


def _cells(defense: "DefenseSummary") -> dict[str, str]:
    """The measures of one defense that depend on the judge, by label."""
    harm = defense.harmful_execution
    return {
        "harmful execution before": percent(harm.before_attack),
        **{f"after {attack}": percent(measure) for attack, measure in harm.after_attack.items()},
        **{
            f"after {control}, without an attacker": percent(measure) for control, measure in harm.after_control.items()
        },
        "reduction, pooled": percent(defense.reduction_vs_undefended.pooled),
        "benign answer rate": percent(defense.benign_answer_rate),
    }
