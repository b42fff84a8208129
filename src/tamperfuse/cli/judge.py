"""The commands `tamperfuse judge …`."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from tamperfuse.cli.options import Json, JudgeName, ThreatSource, out_console, print_json

judge_app = typer.Typer(help="The judge of harmful execution.", no_args_is_help=True)


@judge_app.command()
def calibrate(
    threat: ThreatSource = "builtin:cooking",
    reference: Annotated[
        str, typer.Option(help="The model whose answers count as executed requests.", metavar="MODEL")
    ] = "smollm2-135m",
    prompts: Annotated[int, typer.Option(help="Prompts of the evaluation part at most.", min=8)] = 96,
    judge: JudgeName = "builtin",
    as_json: Json = False,
) -> None:
    """Measure how well a judge tells executed requests from seven kinds of other responses.

    Thresholds are set on the attacker part; the table is computed on the evaluation part.

    Example: `tamperfuse judge calibrate`
    """
    from tamperfuse.commands.calibrate import calibrate_judge
    from tamperfuse.study.spec import parse_judge

    thresholds, rows = calibrate_judge(threat, reference, prompts, parse_judge(judge))
    if as_json:
        print_json({"thresholds": thresholds, "rows": [asdict(row) for row in rows]})
        return
    table = Table("against", "n", "AUROC", "true positives", "false positives", box=None, header_style="bold")
    for row in rows:
        table.add_row(row.kind, str(row.n), f"{row.auroc:.3f}", f"{row.true_positive:.1%}", f"{row.false_positive:.1%}")
    out_console.print(table)
    out_console.print("Thresholds: " + (", ".join(f"{k} {v:.3g}" for k, v in thresholds.items()) or "none"))
    out_console.print(f"Studies on {threat} set their thresholds in the same way.")
