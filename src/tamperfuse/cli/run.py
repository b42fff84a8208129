"""The command `tamperfuse run`."""

import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tamperfuse.cli.options import Disk, DryRun, Json, Only, Out, ReportTo, parse_reporters, print_json
from tamperfuse.cli.report import print_report
from tamperfuse.cli.summary_table import print_summary
from tamperfuse.records.errors import UserError

log = logging.getLogger("tamperfuse")


class Executor(StrEnum):
    """Where nodes run."""

    local = "local"
    processes = "processes"
    ray = "ray"


def run(
    study: Annotated[Path, typer.Argument(help="The study file.", metavar="STUDY.yaml")],
    out: Out,
    dry_run: DryRun = False,
    only: Only = None,
    executor: Annotated[
        Executor,
        typer.Option(help="local: one node after another; processes: several at a time; ray: on a Ray cluster."),
    ] = Executor.local,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=256,
            help="Nodes that run at a time with processes or ray (default: 2); they share the threads of the machine or cluster.",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster: HOST:PORT of its head, or auto. By default RAY_ADDRESS, or one of this machine alone.",
            metavar="ADDRESS",
        ),
    ] = None,
    disk: Disk = None,
    report_to: ReportTo = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Start a study even if it is estimated to take more than 30 days.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a study: every defense under every attack, for every seed.

    Finished parts of a study are reused, so the same command resumes an interrupted run. `tamperfuse status` says how far it is.

    Example: `tamperfuse run studies/demo.yaml --out runs/demo`

    Example: `tamperfuse run studies/attacks.yaml --out runs/attacks --only "sdd under merge*" --dry-run`

    Example: `tamperfuse run studies/attacks.yaml --out runs/attacks --executor processes --workers 4 --disk 50`

    Example: `tamperfuse run studies/attacks.yaml --out /shared/attacks --executor ray --address auto --workers 8`
    """
    if workers is not None and executor is Executor.local:
        raise UserError("--workers is for several nodes at a time: add --executor processes or ray, or leave it out.")
    options = {
        "only": only or [],
        "executor": executor.value,
        "workers": workers or 2,
        "address": address,
        "disk": disk,
        "report_to": parse_reporters(report_to),
        "confirmed": yes,
    }
    run_study_file(study, out, dry_run=dry_run, as_json=as_json, **options)


def run_study_file(path: Path, out: Path, *, dry_run: bool, as_json: bool = False, **options: Any) -> None:
    """Run a study; then print its summary and write its page, unless it was a dry run or a part of the study.

    Args:
        path: of the study file.
        out: the run's folder.
        dry_run: print the plan and stop.
        as_json: print the summary, or the plan of a dry run, as JSON.
        options: further ones of :func:`tamperfuse.study.run.run_study`.
    """
    from tamperfuse.records.plan import DryRun
    from tamperfuse.study.run import run_study
    from tamperfuse.study.run_folder import check_study_file
    from tamperfuse.study.spec import load_study

    if not dry_run:
        check_study_file(path, out)
    outcome = run_study(load_study(path), out, dry_run=dry_run, **options)
    if isinstance(outcome, DryRun):
        if as_json:
            print_json(outcome.model_dump(mode="json", by_alias=True))
        else:
            log.info("Nothing was computed: the same command without --dry-run starts the run, or goes on with it.")
    elif outcome is None:
        if as_json:
            print_json(None)
    elif as_json:
        from tamperfuse.report.page import write_report

        print_json(outcome.model_dump(mode="json", by_alias=True))
        write_report(out)
    else:
        print_summary(outcome)
        print_report(out)
