"""The command `tamperfuse gate`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tamperfuse.cli.options import Json, RunFolder, out_console, print_json


def gate(
    folder: RunFolder,
    policy: Annotated[Path, typer.Option(help="YAML file with the limits.", metavar="FILE")],
    as_json: Json = False,
) -> None:
    """Check a finished run against a release policy.

    Exit code 0: the policy is met; 1: it is not; 2: the run or the policy cannot be used.

    Example: `tamperfuse gate runs/demo --policy studies/policy.yaml`
    """
    from tamperfuse.report.gate import check_gate

    result = check_gate(folder, policy)
    if as_json:
        print_json({"passed": result.passed, **result.model_dump(mode="json")})
        raise typer.Exit(0 if result.passed else 1)
    table = Table("measure", "rule", "value", "95% interval", "verdict", box=None, header_style="bold")
    for check in result.checks:
        value = "–" if check.value is None else f"{check.value:.3f}"
        table.add_row(
            check.measure,
            check.rule,
            value,
            _interval(check.low, check.high),
            "pass" if check.passed else f"FAIL: {check.why}",
        )
    out_console.print(table)
    out_console.print("The release gate passes." if result.passed else "The release gate does not pass.")
    raise typer.Exit(0 if result.passed else 1)


def _interval(low: float | None, high: float | None) -> str:
    """The interval as text; one end of it is missing for a bound, such as the cost of an attack that never succeeded."""
    if low is not None and high is not None:
        return f"{low:.3f} to {high:.3f}"
    if low is not None:
        return f"{low:.3f} or more"
    return "–" if high is None else f"{high:.3f} or less"
