"""The command `tamperfuse run`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tamperfuse.cli.options import DryRun, Json, Out, ReportTo, parse_reporters, print_json
from tamperfuse.cli.report import print_report
from tamperfuse.cli.summary_table import print_summary


def run(
    study: Annotated[Path, typer.Argument(help="The study file.", metavar="STUDY.yaml")],
    out: Out,
    dry_run: DryRun = False,
    report_to: ReportTo = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Start a study even if it is estimated to take more than 30 days.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a study: every defense under every attack, for every seed.

    Finished parts of a study are reused, so the same command resumes an interrupted run.

    Example: `tamperfuse run studies/demo.yaml --out runs/demo`
    """
    reporters = parse_reporters(report_to)
    run_study_file(study, out, dry_run=dry_run, report_to=reporters, as_json=as_json, confirmed=yes)


def run_study_file(
    path: Path,
    out: Path,
    *,
    dry_run: bool,
    report_to: Sequence[str] = (),
    as_json: bool = False,
    confirmed: bool = False,
) -> None:
    """Run a study; then print its summary and write its page, unless it was a dry run."""
    from tamperfuse.study.run import run_study
    from tamperfuse.study.spec import load_study

    summary = run_study(load_study(path), out, dry_run=dry_run, report_to=report_to, confirmed=confirmed)
    if summary is None:
        return
    if as_json:
        from tamperfuse.report.page import write_report

        print_json(summary.model_dump(mode="json", by_alias=True))
        write_report(out)
    else:
        print_summary(summary)
        print_report(out)
