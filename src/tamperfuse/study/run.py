"""Run a study: print its nodes and their cost, run those without a result, write the results."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from tamperfuse.models.encoder import TextEncoder
from tamperfuse.models.load import parameter_count
from tamperfuse.models.precision import compute_dtype
from tamperfuse.records.errors import HubUnreachable, UserError
from tamperfuse.records.files import LOCK, NODES, UNFINISHED, clear_staging, locked, write_text
from tamperfuse.records.plan import LONGEST, RUN_KEY, DryRun, RunPlan, marked_running, read_plan, write_plan
from tamperfuse.records.provenance import versions
from tamperfuse.records.results import write_results
from tamperfuse.records.run import STUDY, NodeRun, RunRecord, read_run, write_run, write_samples
from tamperfuse.records.searches import write_searches
from tamperfuse.records.summary import Summary, write_summary
from tamperfuse.study.announce import announce, log_fewer, log_left_over, log_shared_prompts, log_work, plan_nodes
from tamperfuse.study.context import StudyContext, existing_objects_left_out
from tamperfuse.study.disk import DiskCeiling, shared_bytes
from tamperfuse.study.dry_run import dry_run_sentences, open_without_hub
from tamperfuse.study.estimates import check_affordable
from tamperfuse.study.execution import cluster
from tamperfuse.study.execution.processes import run_in_processes
from tamperfuse.study.execution.progress import RunProgress
from tamperfuse.study.execution.ray_tasks import run_on_cluster
from tamperfuse.study.execution.watch import RunWatch
from tamperfuse.study.execution.worker import WorkerSettings
from tamperfuse.study.keys import NUMERICS
from tamperfuse.study.node import FinishedNode, Node, compute, reuse_result
from tamperfuse.study.paid_judges import check_judges, request_estimates
from tamperfuse.study.plan import build_nodes
from tamperfuse.study.remaining import disk_needed, finished_keys, resume_bytes
from tamperfuse.study.results.load import StudyMeasurements
from tamperfuse.study.results.rows import result_rows
from tamperfuse.study.results.samples import sample_answers
from tamperfuse.study.results.searches import summarize_searches
from tamperfuse.study.results.summary import summarize
from tamperfuse.study.run_folder import check_run_folder, set_aside_results
from tamperfuse.study.selection import select_nodes
from tamperfuse.study.spec import Study

log = logging.getLogger("tamperfuse")

ExecutorName = Literal["local", "processes", "ray"]


def run_study(
    study: Study,
    out: Path,
    *,
    dry_run: bool = False,
    only: Sequence[str] = (),
    executor: ExecutorName = "local",
    workers: int = 2,
    address: str | None = None,
    disk: float | None = None,
    report_to: Sequence[str] = (),
    confirmed: bool = False,
) -> Summary | DryRun | None:
    """Run a study in a folder, reusing every result that exists.

    Args:
        study: the study; its presets are resolved.
        out: the run's folder, created if it does not exist.
        dry_run: print the plan and stop; without the Hub, of what can be read (:mod:`tamperfuse.study.dry_run`).
        only: patterns of labels: only nodes that match one run, with those that they depend on. Results are written once all
            nodes of the study have run.
        executor: "local" runs one node after another in this process, "processes" several at a time in processes of their own,
            "ray" several at a time on a Ray cluster, whose machines see `out` through a shared file system.
        workers: number of nodes that run at a time; they share the threads of this process, or of the cluster.
        address: of the Ray cluster (:func:`tamperfuse.study.execution.cluster.connected`).
        disk: size in GB (10**9 bytes) that the run's folder may reach; None for no limit.
        report_to: experiment trackers that trainings report to.
        confirmed: whether a study that is estimated to take more than 30 days may start.

    Returns:
        The summary; of a dry run what it would do; None while nodes are left.

    Raises:
        UserError: bad input; the folder is in use by another run, holds a study of another model or threat, or files of another
            version of tamperfuse; the study needs more memory, disk or time than there is; a judge cannot be used; Ray is not
            installed, its cluster does not answer, or a machine of it does not see the folder.
    """
    if disk is not None and not math.isfinite(disk):
        raise UserError(f"--disk is {disk}: write a number of GB, or leave it out for no limit.")
    if address is not None and executor != "ray":
        raise UserError("--address names a Ray cluster: add --executor ray, or leave it out.")
    start, now = time.perf_counter(), datetime.now(UTC)
    check_run_folder(out, study)  # before anything is read; again under the lock
    with ExitStack() as stack:
        stack.enter_context(existing_objects_left_out())
        machines = stack.enter_context(cluster.connected(address)) if executor == "ray" and not dry_run else []
        context, every_node, size, unread = _open(study, out, dry_run)
        nodes = select_nodes(every_node, only)
        workers, threads = _division(nodes, size, executor, workers, machines)
        todo = _announce(context, nodes, size, workers, threads, unread)
        if dry_run:
            return _dry_run(todo, unread)
        check_judges(context, nodes, todo.done)
        processes = 0 if executor == "ray" else workers  # Ray knows the memory of its machines
        check_affordable(todo.seconds, todo.disk, size, out, confirmed=confirmed, processes=processes)
        ceiling = (
            DiskCeiling(out, None) if disk is None else DiskCeiling(out, round(disk * 1e9), shared_bytes(out, nodes))
        )
        ceiling.check_plan(todo.disk)
        with locked(out / LOCK, out), marked_running(out, RUN_KEY, "the run"):
            started = _begin(out, context.study, plan_nodes(every_node, size, workers, threads), now)
            finished = _run_nodes(todo, executor, machines, ceiling, report_to)
            with suppress(OSError):  # other nodes are unfinished
                (out / UNFINISHED).rmdir()
            log_work(finished)
            if len(nodes) < len(every_node):
                _log_rest(out, every_node)
                return None
            record = _record(finished, started, time.perf_counter() - start)
            return _write_results(context.study, out, finished, record)


@dataclass(frozen=True)
class _ToDo:
    """What a run is about to do.

    Attributes:
        context: of the study.
        nodes: those that were selected.
        size: of the model, in parameters.
        workers: nodes that run at a time; `threads` of each.
        plan: of the selected nodes.
        done: keys of the nodes that have a result.
        seconds: estimate for the nodes that have none.
        disk: bytes that they need, at most.
    """

    context: StudyContext
    nodes: Sequence[Node]
    size: int
    workers: int
    threads: int
    plan: RunPlan
    done: set[str]
    seconds: float
    disk: int


def _announce(
    context: StudyContext, nodes: Sequence[Node], size: int, workers: int, threads: int, unread: Mapping[str, str]
) -> _ToDo:
    """Print what a run is about to do."""
    out = context.run
    plan, done = plan_nodes(nodes, size, workers, threads), finished_keys(out)
    if not unread:
        log_fewer(context)
        if any(node.key not in done for node in nodes):
            log_shared_prompts(context)
    disk = disk_needed(plan.nodes, done, workers, resume_bytes(out))
    seconds = announce(nodes, done, out, size, disk)
    for sentence in request_estimates(context, nodes, done):
        log.info("%s", sentence)
    return _ToDo(context, nodes, size, workers, threads, plan, done, seconds, disk)


def _dry_run(todo: _ToDo, unread: Mapping[str, str]) -> DryRun:
    """Print what is said of a dry run alone, and return what the run would do."""
    for sentence in dry_run_sentences(todo.context.study, todo.nodes, todo.done, todo.size, unread):
        log.info("%s", sentence)
    finished = sorted({node.key for node in todo.nodes} & todo.done)
    seconds, disk = min(LONGEST, todo.seconds), min(2**62, todo.disk)
    return DryRun(plan=todo.plan, finished=finished, seconds=seconds, disk=disk, unread=list(unread))


def _open(study: Study, out: Path, dry_run: bool) -> tuple[StudyContext, list[Node], int, dict[str, str]]:
    """The study's context, its nodes, the size of its model, and for a dry run without the Hub what could not be read."""
    try:
        context = StudyContext.open(study, out)
        return context, build_nodes(context), parameter_count(context.study.model), {}
    except HubUnreachable:
        if not dry_run:
            raise
    context, size, unread = open_without_hub(study, out)
    return context, build_nodes(context), size, unread


def _division(
    nodes: Sequence[Node], size: int, executor: ExecutorName, workers: int, machines: Sequence[cluster.ClusterMachine]
) -> tuple[int, int]:
    """How many nodes run at a time, and the threads of each."""
    if machines:
        memory = max(cluster.node_memory(node, size) for node in nodes)
        return cluster.divide(machines, workers, memory, cluster.node_gpus())
    workers = 1 if executor == "local" else workers
    return workers, max(1, torch.get_num_threads() // workers)


def _begin(out: Path, study: Study, plan: RunPlan, now: datetime) -> str:
    """Write the study and the plan of all its nodes into the folder; returns when the run was started first.

    What other studies left unfinished in it is named, and stays.
    """
    check_run_folder(out, study)
    clear_staging(out / NODES)
    log_left_over(out, {node.key for node in plan.nodes})
    started = _first_start(out, now)
    set_aside_results(out, study, plan)
    write_text(out / STUDY, study.to_yaml())
    write_plan(out, plan.model_copy(update={"started": started}))
    return started


def _run_nodes(
    todo: _ToDo,
    executor: ExecutorName,
    machines: Sequence[cluster.ClusterMachine],
    ceiling: DiskCeiling,
    report_to: Sequence[str],
) -> list[FinishedNode]:
    """Run the nodes that have no result; in this process messages name the folder as the user did."""
    out, nodes = todo.context.run, todo.nodes
    with RunProgress(todo.plan, todo.done) as progress:
        watch = RunWatch(nodes, todo.plan, ceiling, progress)
        if executor == "local":
            return [run_here(out, node, watch, report_to) for node in nodes]
        place = out.absolute()  # other processes may have another current folder
        source = partial(study_nodes, todo.context.study, place, todo.context.encoder)
        settings = WorkerSettings(source, place, report_to, todo.threads)
        if executor == "processes":
            return run_in_processes(nodes, settings, todo.workers, watch)
        cluster.check_shared(place, machines, todo.threads)
        return run_on_cluster(nodes, settings, todo.workers, todo.size, watch)


def study_nodes(study: Study, out: Path, encoder: TextEncoder) -> list[Node]:
    """All nodes of a study, built in another process."""
    return build_nodes(StudyContext.open(study, out, encoder=encoder))


def run_here(out: Path, node: Node, watch: RunWatch, report_to: Sequence[str] = ()) -> FinishedNode:
    """Run a node in this process, or reuse its result; one whose files are damaged runs again."""
    done = reuse_result(out, node)
    if done is None:
        watch.begin(node)
        with marked_running(out, node.key, node.label):
            done = compute(out, node, report_to)
    watch.end(done)
    return done


def _log_rest(out: Path, nodes: Sequence[Node]) -> None:
    """After a part of a study: say what is left before results can be written."""
    done = finished_keys(out)
    left = sum(node.key not in done for node in nodes)
    rest = f"{left} of {len(nodes)} nodes are left" if left else "all nodes have run"
    log.info("The selected nodes have run; %s: run the study without --only to write the results.", rest)


def _write_results(study: Study, out: Path, finished: Sequence[FinishedNode], record: RunRecord) -> Summary:
    measured = StudyMeasurements.from_nodes(study, finished)
    summary = summarize(measured, record.seconds, record.peak_memory_bytes)
    write_results(out, result_rows(measured))
    write_samples(out, sample_answers(measured))
    write_searches(out, summarize_searches(measured))
    write_run(out, record)
    write_summary(out, summary)
    return summary


def _first_start(out: Path, now: datetime) -> str:
    """When a run was first started in this folder, ISO 8601: a run that resumes, or reuses all results, has not begun now."""
    for read in (read_plan, read_run):
        with suppress(UserError):  # it is missing or damaged, and is written again
            if earlier := read(out).started:
                return earlier
    return now.isoformat(timespec="seconds")


def _record(finished: Sequence[FinishedNode], started: str, seconds: float) -> RunRecord:
    records = list({done.node.key: done.record for done in finished}.values())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return RunRecord(
        started=started,
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
        numerics=NUMERICS,
        nodes=[
            NodeRun(key=done.node.key, what=done.node.label, seconds=done.record["seconds"], reused=done.reused)
            for done in finished
        ],
    )
