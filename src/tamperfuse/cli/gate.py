"""The command `tamperfuse gate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from tamperfuse.cli.options import Json, RunFolder, out_console, print_json, print_table
from tamperfuse.records.errors import UserError, printable

if TYPE_CHECKING:
    from tamperfuse.report.gate import GateResult


def gate(
    folder: RunFolder,
    policy: Annotated[Path, typer.Option(help="YAML file with the limits.", metavar="FILE")],
    junit: Annotated[
        Path | None, typer.Option(help="Also write the checks as a JUnit file, which CI services show.", metavar="FILE")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Also write a section for the model card.", metavar="FILE")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a finished run against a release policy.

    Exit code 0: the policy is met; 1: it is not; 2: the run or the policy cannot be used.

    Example: `tamperfuse gate runs/demo --policy studies/policy.yaml`
    """
    from tamperfuse.records.files import check_output_file, write_text
    from tamperfuse.records.result_files import inputs_of
    from tamperfuse.report.gate import check_gate
    from tamperfuse.report.gate_files import junit_text, markdown_text

    for path in (junit, markdown):
        if path is not None:
            check_output_file(path, [policy, *inputs_of(folder)])
    if junit is not None and markdown is not None and junit.absolute() == markdown.absolute():
        raise UserError("--junit and --markdown name the same file: name two.")
    result = check_gate(folder, policy)
    if junit is not None:
        write_text(junit, junit_text(result))
    if markdown is not None:
        write_text(markdown, markdown_text(result))
    if as_json:
        print_json({"passed": result.passed, **result.model_dump(mode="json")})
    else:
        _print_checks(result)
    raise typer.Exit(0 if result.passed else 1)


def _print_checks(result: "GateResult") -> None:
    """Print a table of the rules, and below it the reason of each that is not met."""
    from tamperfuse.report.gate_files import interval_text, number_text

    names = [printable(check.measure) for check in result.checks]
    # A table that is wider than the terminal shortens its columns, but a name that is cut cannot be looked up.
    widest = max(map(len, names))
    columns = [Column("measure", min_width=widest, no_wrap=True)]
    columns += [Column(head, overflow="fold") for head in ("rule", "value", "95% interval", "margin", "verdict")]
    table = Table(*columns, box=None, header_style="bold")
    for name, check in zip(names, result.checks, strict=True):
        figures = number_text(check.value), interval_text(check), number_text(check.margin, signed=True)
        table.add_row(name, check.rule, *figures, "pass" if check.passed else check.verdict.upper())
    print_table(table)
    for name, check in zip(names, result.checks, strict=True):
        if not check.passed:
            out_console.print(f"{name}: {printable(check.why)}.")
    if result.passed:
        out_console.print("The release gate passes.")
    else:
        out_console.print(
            "The release gate does not pass. Rules that are not resolved need a larger study; rules that fail need another "
            "defense. `tamperfuse report` shows the details."
        )
