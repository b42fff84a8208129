"""The status of a run: counted while it runs, or read from its folder, also while it goes on in another process."""

import shutil
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from tamperfuse.records.errors import UserError
from tamperfuse.records.files import NODE, NODES, read_json
from tamperfuse.records.plan import RUN_KEY, RunPlan, read_plan, read_running
from tamperfuse.records.summary import SUMMARY
from tamperfuse.study.remaining import (
    disk_needed,
    finished_keys,
    folder_bytes,
    node_seconds_left,
    resume_bytes,
    run_seconds,
)


class KindStatus(BaseModel):
    """How many nodes of one kind are finished, running and left (not started, or interrupted).

    Attributes:
        done: finished nodes.
        running: nodes that are being computed.
        left: all others.
        seconds_left: estimated time that those running and left take.
    """

    done: int = 0
    running: int = 0
    left: int = 0
    seconds_left: float = 0.0


class NodeCounts(BaseModel):
    """The nodes of a run.

    Attributes:
        kinds: by kind of node.
        nodes: all kinds together.
        timed: number of finished nodes whose times correct the estimates.
    """

    kinds: dict[str, KindStatus]
    nodes: KindStatus
    timed: int


class RunningNode(BaseModel):
    """A node that is being computed.

    Attributes:
        what: its label.
        seconds: since it started.
        host: the machine.
        pid: of the process.
        checked: whether the process is known to exist; false on another machine.
    """

    what: str
    seconds: float
    host: str
    pid: int
    checked: bool


class RunStatus(NodeCounts):
    """How far a run is.

    Attributes:
        state: finished (all nodes and the results), running, or stopped (interrupted, or not started).
        running: the nodes that are being computed.
        interrupted: labels of nodes that a killed process left unfinished; their trainings resume.
        seconds_left: estimated time that the rest takes.
        disk_used: bytes of the run's folder.
        disk_left: bytes that the rest will need at most, estimated.
        disk_free: bytes that are free on the disk.
    """

    folder: str
    state: Literal["finished", "running", "stopped"]
    running: list[RunningNode]
    interrupted: list[str]
    seconds_left: float
    disk_used: int
    disk_left: int
    disk_free: int


def count_nodes(
    plan: RunPlan, taken: Mapping[str, float], done: Collection[str], elapsed: Mapping[str, float]
) -> NodeCounts:
    """Count the nodes of a run, and estimate the time left.

    The arguments are those of :func:`tamperfuse.study.remaining.seconds_left`.
    """
    left = node_seconds_left(plan, taken, done, elapsed)
    nodes = {node.key: node for node in plan.nodes}  # two labels may share a key
    kinds: dict[str, Counter[str]] = {}
    seconds: dict[str, dict[str, float]] = {}
    for key, node in nodes.items():
        state = "done" if key in done else "running" if key in elapsed else "left"
        kinds.setdefault(node.kind, Counter())[state] += 1
        seconds.setdefault(node.kind, {})[key] = left.get(key, 0.0)
    return NodeCounts(
        kinds={kind: _kind_status(count, sum(seconds[kind].values()) / plan.workers) for kind, count in kinds.items()},
        nodes=_kind_status(sum(kinds.values(), Counter()), run_seconds(plan, left)),
        timed=sum(key in taken and node.seconds > 0 for key, node in nodes.items()),
    )


def _kind_status(count: Mapping[str, int], seconds: float) -> KindStatus:
    return KindStatus(done=count["done"], running=count["running"], left=count["left"], seconds_left=round(seconds, 1))


def together(statuses: Iterable[KindStatus]) -> KindStatus:
    """Several kinds as one."""
    total = KindStatus()
    for status in statuses:
        total.done += status.done
        total.running += status.running
        total.left += status.left
        total.seconds_left += status.seconds_left
    return total


def run_status(folder: Path) -> RunStatus:
    """How far a run is.

    Args:
        folder: of the run.

    Raises:
        UserError: it is not the folder of a run, or its plan is damaged.
    """
    plan, now = read_plan(folder), time.time()
    done = finished_keys(folder) & {node.key for node in plan.nodes}
    works = {work.key: work for work in read_running(folder) if work.key not in done}
    alive = {key: work for key, work in works.items() if work.goes_on() is not False}
    run = alive.pop(RUN_KEY, None)
    counts = count_nodes(plan, _taken(folder, plan, done), done, {k: now - w.started for k, w in alive.items()})
    complete = not counts.nodes.running and not counts.nodes.left and _has_summary(folder)
    unfinished = {path.name for path in (folder / "unfinished").glob("*")} | works.keys()
    return RunStatus(
        folder=str(folder),
        state="running" if run or alive else "finished" if complete else "stopped",
        kinds=counts.kinds,
        nodes=counts.nodes,
        timed=counts.timed,
        running=[
            RunningNode(
                what=work.what,
                seconds=round(max(0.0, now - work.started), 1),
                host=work.host,
                pid=work.pid,
                checked=work.goes_on() is True,
            )
            for work in alive.values()
        ],
        interrupted=[node.what for node in plan.nodes if node.key in unfinished - alive.keys() - done],
        seconds_left=counts.nodes.seconds_left,
        disk_used=folder_bytes(folder),
        disk_left=disk_needed(plan.nodes, done, plan.workers, resume_bytes(folder)),
        disk_free=shutil.disk_usage(folder).free,
    )


def _has_summary(folder: Path) -> bool:
    """Whether the results, of which `summary.json` is written last, are there; a damaged one is written again by the next run."""
    with suppress(UserError):
        return isinstance(read_json(folder / SUMMARY), dict)
    return False


def _taken(folder: Path, plan: RunPlan, done: set[str]) -> dict[str, float]:
    """Key → seconds of the finished nodes that ran with as many threads as the plan's nodes do."""
    taken = {}
    for key in done:
        with suppress(UserError, OSError, KeyError, TypeError, ValueError):
            record: dict[str, Any] = read_json(folder / NODES / key / NODE)
            if record["threads"] == plan.threads:
                taken[key] = float(record["seconds"])
    return taken
