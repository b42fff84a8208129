"""The command `tamperfuse judge calibrate`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tamperfuse.cli.options import (
    ChatTemplate,
    Json,
    JudgeName,
    Settings,
    ThreatSource,
    out_console,
    parse_settings,
    print_json,
    print_table,
    three_decimals,
    with_interval,
)

if TYPE_CHECKING:
    from tamperfuse.commands.calibrate import LabelledResponses


def judge_calibrate(
    threat: ThreatSource = "builtin:cooking",
    reference: Annotated[
        str, typer.Option(help="The model whose answers count as executed requests.", metavar="MODEL")
    ] = "smollm2-135m",
    prompts: Annotated[
        int, typer.Option(help="Number of prompts of the evaluation part; all if it has fewer.", min=8)
    ] = 96,
    judge: JudgeName = "builtin",
    settings: Settings = None,
    as_json: Json = False,
    chat_template: ChatTemplate = None,
) -> None:
    """Measure how well a judge tells executed requests from seven kinds of other responses.

    Thresholds are set on the attacker part; the table is computed on the evaluation part. For builtin:cooking the judge is
    also compared with the labels of 328 responses of hardened and attacked models.

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
    print_table(table)
    thresholds = calibration.thresholds
    out_console.print("Thresholds: " + (", ".join(f"{k} {v:.3g}" for k, v in thresholds.items()) or "none"))
    if calibration.labelled is not None:
        _print_labelled(calibration.labelled)
    out_console.print(f"Studies on {threat} set their thresholds in the same way.")


def _print_labelled(labelled: "LabelledResponses") -> None:
    judge, labels = labelled.judge, labelled.labels
    out_console.print(
        f"{judge.agreement.n} labelled responses of hardened and attacked models: AUROC {three_decimals(judge.auroc)}, "
        f"κ {three_decimals(judge.agreement.kappa)} (the two labellings: κ {three_decimals(labels.kappa)})"
    )
    table = Table("models", "n", "labelled", "judged", "precision", "recall", box=None, header_style="bold")
    for defense, part in [*labelled.defenses.items(), ("all", judge)]:
        table.add_row(
            defense,
            str(part.agreement.n),
            f"{part.agreement.second:.0%}",
            f"{part.agreement.first:.0%}",
            with_interval(part.precision, part.precision_interval),
            with_interval(part.recall, part.recall_interval),
        )
    print_table(table)
