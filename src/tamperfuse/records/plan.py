"""`plan.json` (the nodes of a run and what they are expected to take) and `running/` (which of them are being computed).

A run writes both, and `tamperfuse status` reads them from another process. A file of `running/` names the process that wrote it,
so that what a killed process left behind is not taken for work that goes on.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tamperfuse.records.errors import UserError
from tamperfuse.records.files import read_json, write_json
from tamperfuse.records.run_files import read_run_file

PLAN = "plan.json"
SCHEMA = 1
RUNNING = "running"
RUN_KEY = "run"  # the file of the run itself among those of its nodes
LONGEST = 1e12  # seconds; an estimate beyond it is written as this

Number = Annotated[int, Field(ge=0, lt=2**63)]
Moment = Annotated[float, Field(ge=0, le=LONGEST)]


class PlannedNode(BaseModel):
    """One node of a run.

    Attributes:
        key: its key; two nodes of equal parameters share one.
        what: its label.
        kind: of the node.
        parents: keys of the nodes whose results it reads.
        seconds: that it is expected to take on the whole machine.
        disk: bytes that its result is expected to take.
        working: bytes that it is expected to take beyond that while it runs.
    """

    model_config = ConfigDict(frozen=True)

    key: str
    what: str
    kind: str
    parents: list[str]
    seconds: Moment
    disk: Number
    working: Number


class RunPlan(BaseModel):
    """`plan.json`, schema 1.

    Attributes:
        workers: number of nodes that run at a time.
        threads: threads of each.
        nodes: parents first.
        started: date and time at which a run was first started in this folder, ISO 8601; "" in plans of older versions.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    version: Literal[1] = Field(1, alias="schema")
    workers: int = Field(ge=1)
    threads: int = Field(ge=1)
    nodes: list[PlannedNode]
    started: str = ""


class DryRun(BaseModel):
    """What a run would do: the JSON of `tamperfuse run --dry-run --json`.

    Attributes:
        plan: all of its nodes.
        finished: keys of those whose results exist.
        seconds: that the others are expected to take.
        disk: bytes that they are expected to take at most.
        unread: what was planned without since the Hub cannot be reached; no finished node is recognised then.
    """

    model_config = ConfigDict(frozen=True)

    plan: RunPlan
    finished: list[str]
    seconds: Moment
    disk: Number
    unread: list[str] = []


class RunningWork(BaseModel):
    """A run, or a node of it, that a process works on.

    Attributes:
        key: of the node; :data:`RUN_KEY` for the run.
        what: label of the node.
        host: name of the machine.
        pid: of the process.
        process_started: when the process started, in seconds since 1970: a later process may have the same number.
        started: when the work started, likewise.
    """

    model_config = ConfigDict(frozen=True)

    key: str
    what: str
    host: str
    pid: int
    process_started: float
    started: float

    def goes_on(self) -> bool | None:
        """Whether the process still exists; None on another machine, where it cannot be checked."""
        if self.host != socket.gethostname():
            return None
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.process_started) < 1)
        except psutil.Error:
            return False


def write_plan(folder: Path, plan: RunPlan) -> None:
    """Write `plan.json`."""
    write_json(folder / PLAN, plan.model_dump(by_alias=True))


def read_plan(folder: Path) -> RunPlan:
    """Read `plan.json`.

    Raises:
        UserError: it is missing, damaged, or of another schema.
    """
    return read_run_file(folder / PLAN, RunPlan, schema=SCHEMA, of="a run")


@contextmanager
def marked_running(folder: Path, key: str, what: str) -> Iterator[None]:
    """Say in `running/` that this process works on a node, or on the run, while the block runs."""
    path = folder / RUNNING / f"{key}.json"
    process = psutil.Process()
    work = RunningWork(
        key=key,
        what=what,
        host=socket.gethostname(),
        pid=os.getpid(),
        process_started=process.create_time(),
        started=time.time(),
    )
    write_json(path, work.model_dump())
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        with suppress(OSError):  # not empty: others are running
            path.parent.rmdir()


def read_running(folder: Path) -> list[RunningWork]:
    """What `running/` names, by start, whether or not its process still exists; files that cannot be read are left out."""
    works = []
    for path in (folder / RUNNING).glob("*.json"):
        with suppress(UserError, ValidationError, OSError):  # removed or replaced at this moment
            works.append(RunningWork.model_validate(read_json(path)))
    return sorted(works, key=lambda work: work.started)
