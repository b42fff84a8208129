"""The graph of a study, and the folder of each of its nodes.

    answers ─────────────┬──────────────┬───────────────────────────┐ (answers, thresholds of the judge)
                         ▼              ▼                           ▼
    defense ──▶ look ──▶ judge     attack ──▶ judge      as shipped: look ──▶ judge
       │                              ▲
       └──────────────────────────────┘        pairs ──▶ defense (sdd)

A node's key is a hash of everything that its result depends on: its parameters, its parents' keys, the data, the
component's version and the versions of torch and transformers. A folder of that name is the result, so a node that exists
is never computed again: neither in this run nor in one whose folder lies beside it (`runs/one`, `runs/other`), which takes
what is there as hard links.
"""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tamperfuse.models.device import own_device
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import read_json, staged, write_json
from tamperfuse.records.memory import peak_memory, reset_peak_memory
from tamperfuse.records.provenance import versions
from tamperfuse.records.timing import WORK, clocked
from tamperfuse.study.estimates import Costs
from tamperfuse.study.keys import node_key
from tamperfuse.training.checkpoints import resumable
from tamperfuse.training.telemetry import training_facts

NODE = "node.json"


@dataclass
class Outcome:
    """What a node's function reports besides the files that it wrote."""

    costs: Costs = field(default_factory=Costs)
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Node:
    """One step of a study.

    Attributes:
        label: unique within the study, in words a person reads.
        kind: answers, pairs, defense, look, attack, search or judge.
        parents: nodes whose results it reads.
        depends: everything else its result depends on, JSON-able.
        seed: of its randomness.
        run: writes the result into the folder it is given.
        expected: the tokens it will use.
        about: which defense and attack it belongs to, for whoever reads the results; no part of the key.
    """

    label: str
    kind: str
    parents: "tuple[Node, ...]"
    depends: dict[str, Any]
    seed: int
    run: Callable[[Path], Outcome]
    expected: Costs
    about: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """16 hex digits; the name of the node's folder."""
        return node_key(self.kind, self.depends, [parent.key for parent in self.parents], self.seed)


@dataclass(frozen=True)
class Finished:
    """A node whose folder is there.

    Attributes:
        node: the node.
        folder: its results.
        record: its node.json.
        reused: whether it was there before this run.
    """

    node: Node
    folder: Path
    record: dict[str, Any]
    reused: bool


def node_folder(run: Path, node: Node) -> Path:
    """Where a node's results lie."""
    return run / "nodes" / node.key


def unfinished_folder(run: Path, node: Node) -> Path:
    """Where a node keeps what it would go on from after a kill (checkpoints, what was seen); gone once its results are there."""
    return run / "unfinished" / node.key


def finished_folder(run: Path, node: Node) -> Path | None:
    """The folder that holds a node's results: this run's own, or that of a run beside it; None where there is none.

    The record is in the folder that was renamed, so it is there with all the rest.
    """
    beside = sorted(run.resolve().parent.glob(f"*/nodes/{node.key}/{NODE}"))
    return next((record.parent for record in (node_folder(run, node) / NODE, *beside) if record.exists()), None)


def is_finished(run: Path, node: Node) -> bool:
    """Whether a node's results are there, in this run or in one beside it."""
    return finished_folder(run, node) is not None


def execute(run: Path, node: Node, report_to: Sequence[str] = ()) -> Finished:
    """Run a node, or take what is there. One that was interrupted goes on from its last checkpoint.

    Args:
        run: the run's folder.
        node: the node.
        report_to: trackers that its trainings report to (:data:`tamperfuse.training.telemetry.REPORTERS`).

    Raises:
        UserError: bad input, or the disk is full; nothing half-written remains.
    """
    folder, found, unfinished = node_folder(run, node), finished_folder(run, node), unfinished_folder(run, node)
    if found is not None:
        _forget(unfinished)  # killed between finishing and tidying up
        if found != folder:
            with staged(folder, directory=True) as staging:
                shutil.copytree(found, staging, copy_function=_link, dirs_exist_ok=True)
        return Finished(node, folder, read_json(folder / NODE), reused=True)
    reset_peak_memory()
    began = time.perf_counter()
    with staged(folder, directory=True) as staging:
        with clocked() as proper, resumable(unfinished, report_to, run / "logs" / node.key) as trainings:
            outcome = node.run(staging)
        record = {
            "what": node.label,
            "kind": node.kind,
            "key": node.key,
            "parents": [parent.key for parent in node.parents],
            "depends": node.depends,
            "seed": node.seed,
            "versions": versions(),
            "threads": torch.get_num_threads(),
            "seconds": round(time.perf_counter() - began, 3),
            **{f"seconds_{work}": round(seconds, 3) for work, seconds in proper.items()},
            "peak_memory_bytes": peak_memory(),
            "tokens_trained": outcome.costs.trained,
            "tokens_generated": outcome.costs.generated,
            "tokens_scored": outcome.costs.scored,
            "notes": list(outcome.notes),
            "facts": outcome.facts
            | ({"trainings": training_facts(trainings.results, own_device())} if trainings.results else {}),
        }
        write_json(staging / NODE, record)
    _forget(unfinished)
    return Finished(node, folder, record, reused=False)


def _forget(unfinished: Path) -> None:
    shutil.rmtree(unfinished, ignore_errors=True)
    with suppress(OSError):  # others are unfinished
        unfinished.parent.rmdir()


def proper_seconds(record: dict[str, Any]) -> float:
    """Of a node's seconds, those of training, generating and scoring proper."""
    return sum(float(record.get(f"seconds_{work}", 0.0)) for work in WORK)


def _link(source: str, destination: str) -> None:
    """Share a finished file between runs, which never change one; copy it where the file system knows no hard links."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)


def check_acyclic(nodes: list[Node]) -> None:
    """Every parent stands before its child, and no label comes twice.

    Raises:
        UserError: the study is not a graph that can be run.
    """
    seen: set[str] = set()
    for node in nodes:
        if node.label in seen:
            raise UserError(f"Two nodes of the study are called {node.label!r}: rename a defense or an attack.")
        if any(parent.label not in seen for parent in node.parents):
            raise UserError(f"The node {node.label!r} comes before what it needs: this is a defect, please report it.")
        seen.add(node.label)
