"""The commands `tamperfuse judge …`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from tamperfuse.cli.options import (
    ChatTemplate,
    Json,
    JudgeName,
    RunFolder,
    Settings,
    ThreatSource,
    out_console,
    parse_settings,
    print_json,
    printable,
)
from tamperfuse.cli.summary_table import percent
from tamperfuse.records.errors import quoted

if TYPE_CHECKING:
    from tamperfuse.commands.calibrate import LabelledResponses
    from tamperfuse.commands.judge_compare import JudgeComparison
    from tamperfuse.records.summary import DefenseSummary, Measure

LONGEST_TEXT = 300  # characters of a prompt or response that are printed

judge_app = typer.Typer(help="The judge of harmful execution.", no_args_is_help=True)


@judge_app.command()
def calibrate(
    threat: ThreatSource = "builtin:cooking",
    reference: Annotated[
        str, typer.Option(help="The model whose answers count as executed requests.", metavar="MODEL")
    ] = "smollm2-135m",
    prompts: Annotated[int, typer.Option(help="Prompts of the evaluation part at most.", min=8)] = 96,
    judge: JudgeName = "builtin",
    settings: Settings = None,
    as_json: Json = False,
    chat_template: ChatTemplate = None,
) -> None:
    """Measure how well a judge tells executed requests from seven kinds of other responses.

    Thresholds are set on the attacker part; the table is computed on the evaluation part. For builtin:cooking the judge is
    compared with labels of 120 responses of hardened and attacked models as well.

    Example: `tamperfuse judge calibrate`

    Example: `tamperfuse judge calibrate --judge phrases --set window=60`
    """
    from tamperfuse.commands.calibrate import calibrate_judge
    from tamperfuse.study.sections import parse_judge

    spec = parse_judge({"judge": judge, "parameters": parse_settings(settings)})
    calibration = calibrate_judge(threat, reference, prompts, spec, chat_template)
    if as_json:
        print_json(asdict(calibration))
        return
    table = Table("against", "n", "AUROC", "true positives", "false positives", box=None, header_style="bold")
    for row in calibration.rows:
        table.add_row(row.kind, str(row.n), f"{row.auroc:.3f}", f"{row.true_positive:.1%}", f"{row.false_positive:.1%}")
    out_console.print(table)
    thresholds = calibration.thresholds
    out_console.print("Thresholds: " + (", ".join(f"{k} {v:.3g}" for k, v in thresholds.items()) or "none"))
    if calibration.labelled is not None:
        _print_labelled(calibration.labelled)
    out_console.print(f"Studies on {threat} set their thresholds in the same way.")


def _print_labelled(labelled: "LabelledResponses") -> None:
    judge, labels = labelled.judge, labelled.labels
    out_console.print(
        f"{judge.agreement.n} labelled responses of hardened and attacked models: precision "
        f"{_with_interval(judge.precision, judge.precision_interval)}, recall "
        f"{_with_interval(judge.recall, judge.recall_interval)}, AUROC {_number(judge.auroc)}, "
        f"κ {_number(judge.agreement.kappa)} (the two labellings: κ {_number(labels.kappa)})"
    )


def _with_interval(share: float | None, interval: tuple[float, float] | None) -> str:
    return _number(share) + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


@judge_app.command()
def run(
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
    from tamperfuse.commands.judge_run import judge_run
    from tamperfuse.study.sections import parse_judge

    spec = parse_judge({"judge": judge, "parameters": parse_settings(settings)})
    judged = judge_run(folder, spec, name, dry_run=dry_run)
    if judged is None:
        return
    summary = judged.summary
    if as_json:
        print_json(summary.model_dump(by_alias=True)["judges"][judged.name])
        return
    _print_measures({summary.judge: summary.defenses, judged.name: summary.judges[judged.name]})
    for kind, count in judged.failures.items():
        out_console.print(
            f"{count} verdicts are missing ({kind}): rates leave them out, and intervals cover whatever they may be."
        )
    out_console.print(
        f"{judged.responses} distinct responses judged; a report that is written now has every judge; compare them with: "
        f"tamperfuse judge compare {quoted(folder)}"
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
    out_console.print(table)


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
        after = scores.after_attack | scores.after_control
        cells |= {"mean score before": _score(scores.before_attack)}
        cells |= {f"mean score after {attack}": _score(measure) for attack, measure in after.items()}
    return cells


def _score(measure: "Measure") -> str:
    """A mean score with its interval, in the judge's unit."""
    if measure.value is None:
        return "–"
    interval = "" if measure.low is None or measure.high is None else f" ({measure.low:.2f} to {measure.high:.2f})"
    return f"{measure.value:.2f}{interval}"


@judge_app.command()
def compare(
    folder: RunFolder,
    labels: Annotated[
        Path | None,
        typer.Option(help="A file with prompt, response and label (true: executes its request).", metavar="FILE"),
    ] = None,
    top: Annotated[int, typer.Option(help="Responses to print on which judges disagree most.", min=0)] = 5,
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
        pairs.add_row(names, row.on, str(same.n), f"{same.same:.1%}", _number(same.kappa), rates)
    if comparison.pairs:
        out_console.print(pairs)
    labels = Table("against labels", "n", "AUROC", "precision", "recall", "Cohen's κ", box=None, header_style="bold")
    for label in comparison.labels:
        one = label.labels
        shares = ((one.precision, one.precision_interval), (one.recall, one.recall_interval))
        cells = [_number(one.auroc), *(_with_interval(*share) for share in shares), _number(one.agreement.kappa)]
        labels.add_row(label.judge, str(one.agreement.n), *cells)
    if comparison.labels:
        out_console.print(labels)
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
        out_console.print(f"\nPrompt: {_short(disputed.answer.prompt)}\nResponse: {_short(disputed.answer.response)}")
        for name, opinion in disputed.opinions.items():
            decision = "executed" if opinion.verdict else f"not executed ({opinion.reason or 'no reason stated'})"
            out_console.print(f"  {name}: {decision}, score {opinion.score:.3g}")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return printable(line if len(line) <= LONGEST_TEXT else f"{line[:LONGEST_TEXT]}…")
