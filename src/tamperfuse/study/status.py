"""The status of a run, read from its folder, also while the run goes on in another process."""

import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from tamperfuse.records.errors import UserError
from tamperfuse.records.files import read_json
from tamperfuse.records.plan import RUN_KEY, RunPlan, read_plan, read_running
from tamperfuse.records.reading import path_exists
from tamperfuse.records.summary import SUMMARY
from tamperfuse.study.remaining import NODE, disk_needed, finished_keys, folder_bytes, seconds_left


class KindStatus(BaseModel):
    """How many nodes of one kind are finished, running and left (not started, or interrupted)."""

    done: int = 0
    running: int = 0
    left: int = 0


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


class RunStatus(BaseModel):
    """How far a run is.

    Attributes:
        state: finished (all nodes and the results), running, or stopped (interrupted, or not started).
        kinds: by kind of node.
        nodes: all kinds together.
        running: the nodes that are being computed.
        interrupted: labels of nodes that a killed process left unfinished; their trainings resume.
        seconds_left: estimated time that the rest takes.
        disk_used: bytes of the run's folder.
        disk_left: bytes that the rest will need at most, estimated.
        disk_free: bytes that are free on the disk.
    """

    folder: str
    state: Literal["finished", "running", "stopped"]
    kinds: dict[str, KindStatus]
    nodes: KindStatus
    running: list[RunningNode]
    interrupted: list[str]
    seconds_left: float
    disk_used: int
    disk_left: int
    disk_free: int


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
    kinds: dict[str, KindStatus] = {}
    for node in {node.key: node for node in plan.nodes}.values():
        status = kinds.setdefault(node.kind, KindStatus())
        if node.key in done:
            status.done += 1
        elif node.key in alive:
            status.running += 1
        else:
            status.left += 1
    total = KindStatus(
        **{name: sum(getattr(kind, name) for kind in kinds.values()) for name in KindStatus.model_fields}
    )
    complete = not total.running and not total.left and path_exists(folder / SUMMARY)
    unfinished = {path.name for path in (folder / "unfinished").glob("*")} | works.keys()
    return RunStatus(
        folder=str(folder),
        state="running" if run or alive else "finished" if complete else "stopped",
        kinds=kinds,
        nodes=total,
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
        seconds_left=round(
            seconds_left(plan, _taken(folder, plan, done), done, {k: now - w.started for k, w in alive.items()}), 1
        ),
        disk_used=folder_bytes(folder),
        disk_left=disk_needed(plan.nodes, done, plan.workers),
        disk_free=shutil.disk_usage(folder).free,
    )


def _taken(folder: Path, plan: RunPlan, done: set[str]) -> dict[str, float]:
    """Key → seconds of the finished nodes that ran with as many threads as the plan's nodes do."""
    taken = {}
    for key in done:
        with suppress(UserError, OSError, KeyError, TypeError, ValueError):
            record: dict[str, Any] = read_json(folder / "nodes" / key / NODE)
            if record["threads"] == plan.threads:
                taken[key] = float(record["seconds"])
    return taken
