"""One node of a study: its key, the folder of its results, and when that folder is reused.

    answers before hardening ──▶ calibration (thresholds) ──▶ every judge node
       │
       └──────────────────────▶ attack, search (the attacker's samples)

    as shipped: measure ──▶ judge        pairs, defender answers ──▶ defense
                   │                                                   │
                   └──▶ defense: measure ──▶ judge    attack ──▶ judge ◀┘

A node's key (:mod:`tamperfuse.study.keys`) is a hash of everything that its result depends on, and names the folder of the
result. A folder that exists and whose files have their checksums is reused: by a later run in the same folder, and by runs in
folders beside it (`runs/one`, `runs/other`), which share the files as hard links.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tamperfuse.models.device import own_device
from tamperfuse.models.finite import Diverged
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import NODE, NODES, UNFINISHED, read_json, sha256_of, staged, write_json
from tamperfuse.records.memory import peak_memory, reset_peak_memory
from tamperfuse.records.plan import PlannedNode
from tamperfuse.records.provenance import versions
from tamperfuse.records.registry import Budget
from tamperfuse.records.timing import WORK, measure_work
from tamperfuse.study.estimates import Costs
from tamperfuse.study.keys import node_key
from tamperfuse.study.remaining import has_result
from tamperfuse.training.checkpoints import resumable
from tamperfuse.training.telemetry import training_facts

log = logging.getLogger("tamperfuse")

_NUMBERS = ("seconds", "peak_memory_bytes", "tokens_trained", "tokens_generated", "tokens_scored")  # of node.json


@dataclass
class Outcome:
    """What a node's function reports, apart from the files that it wrote.

    Attributes:
        costs: tokens that it used.
        notes: sentences for people.
        facts: further values of node.json, JSON-able.
        seconds_before: time of the parts of an interrupted node that were kept, apart from those of trainings that resumed.
    """

    costs: Costs = field(default_factory=Costs)
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    seconds_before: float = 0.0


@dataclass(frozen=True)
class Node:
    """One step of a study.

    Attributes:
        label: for people; unique within the study.
        kind: answers before hardening, calibration, defender answers, pairs, self-made samples, benign set, defense, measure,
            attack, search or judge.
        parents: nodes whose results it reads; their keys are part of its key.
        depends: everything else that its result depends on, JSON-able.
        seed: of its randomness.
        run: writes the result into a folder.
        expected: tokens that it will use, estimated.
        about: the defense and the attack that it belongs to, for the results; not part of the key.
        responses: how many responses it will hold for judges, estimated; not part of the key, as the next one.
        budget: of its training, for estimates of memory and disk.
        predictions: response tokens for which its result holds a model's predictions, estimated; for the disk.
        compared: further nodes that it reads, of whose results only a part matters, which `depends` names.
    """

    label: str
    kind: str
    parents: "tuple[Node, ...]"
    depends: dict[str, Any]
    seed: int
    run: Callable[[Path], Outcome]
    expected: Costs
    about: dict[str, Any] = field(default_factory=dict)
    responses: int = 0
    budget: Budget = field(default_factory=Budget)
    predictions: int = 0
    compared: "tuple[Node, ...]" = ()

    @property
    def reads(self) -> "tuple[Node, ...]":
        """All nodes that have to be finished before it."""
        return self.parents + self.compared

    @cached_property
    def key(self) -> str:
        """16 hex digits; the name of the node's folder."""
        return node_key(self.kind, self.depends, [parent.key for parent in self.parents], self.seed)


@dataclass(frozen=True)
class FinishedNode:
    """A node whose result exists.

    Attributes:
        node: the node.
        folder: its result.
        record: its node.json.
        reused: whether it existed before this run.
    """

    node: Node
    folder: Path
    record: dict[str, Any]
    reused: bool


def node_folder(run: Path, node: Node) -> Path:
    """The folder of a node's result."""
    return run / NODES / node.key


def unfinished_folder(run: Path, node: Node | PlannedNode) -> Path:
    """The folder of what an interrupted node resumes from (training states, measured steps); removed when it is finished."""
    return run / UNFINISHED / node.key


def finished_folders(run: Path, node: Node) -> list[Path]:
    """Folders that hold a node's result: this run's own first, then those of runs beside it.

    `node.json` is written with everything else before the folder is renamed into place, so a folder that has it is complete.
    """
    beside = sorted(run.resolve().parent.glob(f"*/nodes/{node.key}"))
    own_folder = node_folder(run, node)
    folders = [own_folder, *(folder for folder in beside if folder != own_folder.resolve())]
    return [folder for folder in folders if has_result(folder)]


def is_finished(run: Path, node: Node) -> bool:
    """Whether a node's result exists, in this run or in one beside it. Checksums are not compared."""
    return bool(finished_folders(run, node))


def execute(run: Path, node: Node, report_to: Sequence[str] = ()) -> FinishedNode:
    """Reuse a node's result, or compute it as :func:`compute` does."""
    return reuse_result(run, node) or compute(run, node, report_to)


def compute(run: Path, node: Node, report_to: Sequence[str] = ()) -> FinishedNode:
    """Run a node that has no result. An interrupted node resumes; one that diverged does not.

    Args:
        run: the run's folder.
        node: the node.
        report_to: trackers that its trainings report to (:data:`tamperfuse.training.telemetry.REPORTERS`).

    Raises:
        UserError: bad input, a training that diverged, or the disk is full; no partial result remains.
    """
    folder, unfinished = node_folder(run, node), unfinished_folder(run, node)
    reset_peak_memory()
    start = time.perf_counter()
    with staged(folder, directory=True) as staging:
        training = resumable(unfinished, report_to, run / "logs" / node.key, memory_copies=node.budget.memory_copies)
        with measure_work() as seconds, training as block:
            try:
                outcome = node.run(staging)
            except Diverged:  # it would diverge again
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
        # Of the parts that were interrupted, those that were kept.
        before = outcome.seconds_before + sum(fit.seconds_before for fit in block.results)
        record = {
            "what": node.label,
            "kind": node.kind,
            "key": node.key,
            "parents": [parent.key for parent in node.reads],
            "depends": node.depends,
            "seed": node.seed,
            "versions": versions(),
            "threads": torch.get_num_threads(),
            "seconds": round(time.perf_counter() - start + before, 3),
            **{f"seconds_{work}": round(value, 3) for work, value in seconds.items()},
            "peak_memory_bytes": peak_memory(),
            "tokens_trained": outcome.costs.trained,
            "tokens_generated": outcome.costs.generated,
            "tokens_scored": outcome.costs.scored,
            "notes": list(outcome.notes),
            "facts": outcome.facts
            | ({"trainings": training_facts(block.results, own_device())} if block.results else {}),
            "files": {name: sha256_of(staging / name) for name in _files(staging)},
        }
        write_json(staging / NODE, record)
    shutil.rmtree(unfinished, ignore_errors=True)
    return FinishedNode(node, folder, record, reused=False)


def reuse_result(run: Path, node: Node) -> FinishedNode | None:
    """The result of an earlier run; None where there is none, or none whose files are as they were written."""
    folder = node_folder(run, node)
    for source in finished_folders(run, node):
        try:
            damage = damage_of(source)
        except UserError:
            if source == folder:
                raise
            damage = f"{source} of another run cannot be read"
        if damage:
            log.warning("%s: %s, so it is computed again.", node.label, damage)
            if source == folder:
                shutil.rmtree(source)
            continue
        if source != folder:
            try:
                with staged(folder, directory=True) as staging:
                    shutil.copytree(source, staging, copy_function=_link, dirs_exist_ok=True)
            except OSError:
                if source.exists():
                    raise
                log.warning("%s: the result in %s has just been removed.", node.label, source)
                continue
        # The process may have been killed between finishing the node and removing this folder.
        shutil.rmtree(unfinished_folder(run, node), ignore_errors=True)
        return FinishedNode(node, folder, read_json(folder / NODE), reused=True)
    return None


def damage_of(folder: Path) -> str:
    """What is wrong with the files of a node's folder, in words; "" if node.json is complete and each has its checksum there.

    Raises:
        UserError: a file cannot be read.
    """
    try:
        record = read_json(folder / NODE)
        checksums = record["files"]
        numbers = [float(record[name]) for name in _NUMBERS]
        if not (min(numbers) >= 0 and isinstance(record["facts"], dict) and isinstance(record["notes"], list)):
            raise ValueError("a field of the record is of another type")
        for name, checksum in checksums.items():
            if not (folder / name).is_file():
                return f"{folder / name} is missing"
            if sha256_of(folder / name) != checksum:
                return f"{folder / name} has changed since it was written"
    except (UserError, KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error.__cause__, OSError):  # of the disk or the network: the files may be as they were
            raise
        return f"{folder / NODE} is damaged"
    except OSError as error:  # likewise
        raise UserError(
            f"{error.filename or folder} cannot be read ({error.strerror or error}). Nothing was removed: repeat the command "
            "once it can be read."
        ) from error
    return ""


def _files(folder: Path) -> Iterator[str]:
    """Paths of all files in a folder, relative to it, sorted."""
    yield from sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def work_seconds(record: dict[str, Any]) -> float:
    """Seconds that a node spent on training, generating and scoring; loading and writing excluded."""
    return sum(float(record.get(f"seconds_{work}", 0.0)) for work in WORK)


def _link(source: str, destination: str) -> None:
    """Share a finished file between runs, which never change it; copy it where the file system has no hard links."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)


def check_graph(nodes: Sequence[Node]) -> None:
    """Check that every parent comes before its child and that labels are unique.

    Raises:
        UserError: they do not, or are not.
    """
    labels: set[str] = set()
    for node in nodes:
        if node.label in labels:
            raise UserError(f"Two nodes of the study are called {node.label!r}: rename a defense or an attack.")
        if any(parent.label not in labels for parent in node.reads):
            raise UserError(f"The node {node.label!r} comes before one that it reads: this is a bug, please report it.")
        labels.add(node.label)
