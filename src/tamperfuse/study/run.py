"""Run a study: print its nodes and their cost, run those without a result, write the results."""

import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from tamperfuse.models.load import parameter_count
from tamperfuse.models.precision import compute_dtype
from tamperfuse.records.errors import UserError, shown
from tamperfuse.records.files import LOCK, clear_staging, locked, write_text
from tamperfuse.records.provenance import versions
from tamperfuse.records.reading import path_exists
from tamperfuse.records.results import write_results
from tamperfuse.records.run import NodeRun, RunRecord, write_run, write_samples
from tamperfuse.records.searches import write_searches
from tamperfuse.records.summary import Summary, write_summary
from tamperfuse.records.timing import WORK
from tamperfuse.records.yaml import read_yaml
from tamperfuse.study.context import StudyContext
from tamperfuse.study.estimates import Costs, check_affordable, seconds_for
from tamperfuse.study.node import FinishedNode, Node, execute, is_finished, work_seconds
from tamperfuse.study.plan import build_nodes
from tamperfuse.study.results.load import StudyMeasurements
from tamperfuse.study.results.rows import result_rows
from tamperfuse.study.results.samples import sample_answers
from tamperfuse.study.results.searches import summarize_searches
from tamperfuse.study.results.summary import summarize
from tamperfuse.study.spec import Study

log = logging.getLogger("tamperfuse")


def run_study(
    study: Study, out: Path, *, dry_run: bool = False, report_to: Sequence[str] = (), confirmed: bool = False
) -> Summary | None:
    """Run a study in a folder, reusing every result that exists.

    Args:
        study: the study; its presets are resolved.
        out: the run's folder, created if it does not exist.
        dry_run: print the plan and stop.
        report_to: experiment trackers that trainings report to.
        confirmed: whether a study that is estimated to take more than 30 days may start.

    Returns:
        The summary; None for a dry run.

    Raises:
        UserError: bad input; the folder is in use by another run, or holds a study of another model or threat; the study needs
            more memory, disk or time than there is.
    """
    start, started = time.perf_counter(), datetime.now(UTC)
    context = StudyContext.open(study, out)
    study = context.study
    nodes = build_nodes(context)
    seconds = announce(nodes, out, study)
    if dry_run:
        return None
    checkpoints = sum(node.kind == "defense" and not is_finished(out, node) for node in nodes)
    check_affordable(seconds, checkpoints, parameter_count(study.model), out, confirmed=confirmed)
    with locked(out / LOCK, out):
        _check_same(out / "study.yaml", study)
        clear_staging(out / "nodes")
        write_text(out / "study.yaml", study.to_yaml())
        finished = [_run_one(out, node, i, len(nodes), report_to) for i, node in enumerate(nodes, 1)]
        record = _record(finished, started, time.perf_counter() - start)
        _log_work(finished)
        measured = StudyMeasurements.from_nodes(study, finished)
        summary = summarize(measured, record.seconds, record.peak_memory_bytes)
        write_results(out, result_rows(measured, context.threat.source))
        write_samples(out, sample_answers(measured))
        write_searches(out, summarize_searches(measured))
        write_run(out, record)
        write_summary(out, summary)
    return summary


def announce(nodes: list[Node], out: Path, study: Study) -> float:
    """Print the nodes, which of them have a result, and what the others will cost.

    Returns:
        The estimated time of the others, in seconds.
    """
    todo = [node for node in nodes if not is_finished(out, node)]
    total = sum((node.expected for node in todo), Costs())
    log.info("%d nodes, %d of them finished", len(nodes), len(nodes) - len(todo))
    for node in nodes:
        mark = "·" if node in todo else "✓"
        parents = ", ".join(parent.label for parent in node.parents)
        log.info("  %s %s%s", mark, node.label, f"  ← {parents}" if parents else "")
    seconds = 0.0
    if todo:
        loads = sum(int(node.about.get("trials", 1)) for node in todo)
        seconds = seconds_for(total, loads, parameter_count(study.model))
        log.info(
            "Budget: about %s tokens trained, %s generated, %s scored; about %.0f min on this machine.",
            *(shown(f"{round(value, -3):,}") for value in (total.trained, total.generated, total.scored)),
            seconds / 60,
        )
    return seconds


def _run_one(out: Path, node: Node, number: int, total: int, report_to: Sequence[str]) -> FinishedNode:
    place = f"[{number}/{total}] {node.label}"
    if not is_finished(out, node):
        log.info("%s …", place)
    done = execute(out, node, report_to)
    if done.reused:
        log.info("%s: reused", place)
        return done
    record = done.record
    for note in record["notes"]:
        log.info("      %s", note)
    used = [
        f"{record[name]:,} tokens {word}"
        for name, word in (
            ("tokens_trained", "trained"),
            ("tokens_generated", "generated"),
            ("tokens_scored", "scored"),
        )
        if record[name]
    ]
    log.info(
        "      %.0f s (%.0f%% training, generating and scoring)%s, peak %.1f GiB",
        record["seconds"],
        100 * work_seconds(record) / max(record["seconds"], 1e-9),
        "".join(f", {u}" for u in used),
        record["peak_memory_bytes"] / 2**30,
    )
    return done


def _log_work(finished: list[FinishedNode]) -> None:
    """Print the share of time spent on training, generating and scoring; the rest is loading, the encoder and files."""
    records = {done.node.key: done.record for done in finished}.values()
    seconds = sum(float(record["seconds"]) for record in records)
    parts = {work: sum(float(record.get(f"seconds_{work}", 0.0)) for record in records) for work in WORK}
    log.info(
        "Training, generating and scoring took %.0f%% of %.1f min (%s).",
        100 * sum(parts.values()) / max(seconds, 1e-9),
        seconds / 60,
        ", ".join(f"{work} {100 * part / max(seconds, 1e-9):.0f}%" for work, part in parts.items()),
    )


def _record(finished: list[FinishedNode], started: datetime, seconds: float) -> RunRecord:
    records = list({done.node.key: done.record for done in finished}.values())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return RunRecord(
        started=started.isoformat(timespec="seconds"),
        # Reused nodes count as well: this is the cost of the study without any earlier run.
        seconds=max(seconds, sum(float(record["seconds"]) for record in records)),
        peak_memory_bytes=max(int(record["peak_memory_bytes"]) for record in records),
        tokens_trained=sum(record["tokens_trained"] for record in records),
        tokens_generated=sum(record["tokens_generated"] for record in records),
        tokens_scored=sum(record["tokens_scored"] for record in records),
        threads=torch.get_num_threads(),
        device=str(device),
        precision=compute_dtype(device)[1],
        versions=versions(),
        nodes=[
            NodeRun(key=done.node.key, what=done.node.label, seconds=done.record["seconds"], reused=done.reused)
            for done in finished
        ],
    )


def _check_same(path: Path, study: Study) -> None:
    """Refuse a folder of another model's or threat's study; a changed study of the same ones may continue in it."""
    if not path_exists(path):
        return
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise UserError(
            f"{path} does not hold a study: choose another --out, or remove that file, which is then written again."
        )
    for key, value in (("model", study.model), ("threat", study.threat)):
        if values.get(key) != value:
            raise UserError(
                f"{path.parent} holds a study of the {key} {shown(repr(values.get(key)))}, not {value!r}: choose another "
                "--out; runs in folders side by side share results."
            )
