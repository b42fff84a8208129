"""The unfinished part of a run: nodes, time, disk. Imports no model library, so that `tamperfuse status` starts quickly."""

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from tamperfuse.records.files import NODE, NODES, UNFINISHED
from tamperfuse.records.plan import PlannedNode, RunPlan


def finished_keys(run: Path) -> set[str]:
    """Keys of all nodes whose results exist, in a run's folder or in those beside it. Checksums are not compared."""
    folders = {run / NODES, *run.resolve().parent.glob(f"*/{NODES}")}
    return {path.name for folder in folders for path in folder.glob("*") if has_result(path)}


def has_result(folder: Path) -> bool:
    """Whether a node's folder holds a result that this process may read; a run beside this one may belong to another user."""
    return os.access(folder / NODE, os.R_OK)


def seconds_left(
    plan: RunPlan, taken: Mapping[str, float], done: Collection[str], elapsed: Mapping[str, float]
) -> float:
    """Time that the rest of a run will take: the estimates of its nodes, corrected by what finished ones of their kind took.

    Args:
        plan: of the run.
        taken: key → seconds that finished nodes took with as many threads as the others have.
        done: keys of all finished nodes.
        elapsed: key → seconds for which running nodes have been running.
    """
    return run_seconds(plan, node_seconds_left(plan, taken, done, elapsed))


def node_seconds_left(
    plan: RunPlan, taken: Mapping[str, float], done: Collection[str], elapsed: Mapping[str, float]
) -> dict[str, float]:
    """Key → time that an unfinished node will take from now on; the arguments are those of :func:`seconds_left`."""
    nodes = {node.key: node for node in plan.nodes}  # two labels may share a key
    slower = _slower(nodes.values(), taken, plan.workers)
    return {
        key: max(0.0, node.seconds * slower[node.kind] - elapsed.get(key, 0.0))
        for key, node in nodes.items()
        if key not in done
    }


def run_seconds(plan: RunPlan, left: Mapping[str, float]) -> float:
    """Time that nodes take together, in seconds.

    Args:
        plan: of the run.
        left: key → seconds of each node, all of them unfinished.
    """
    # Not even with a worker for each node does the run end before its longest one.
    return max(sum(left.values()) / plan.workers, max(left.values(), default=0.0))


def _slower(nodes: Iterable[PlannedNode], taken: Mapping[str, float], workers: int) -> dict[str, float]:
    """Kind → how many times as long as estimated its nodes take; as those of all kinds where none of this one has finished."""
    measured: dict[str, float] = {}
    estimated: dict[str, float] = {}
    for node in nodes:
        measured.setdefault(node.kind, 0.0)
        estimated.setdefault(node.kind, 0.0)
        if node.key in taken and node.seconds > 0:
            measured[node.kind] += taken[node.key]
            estimated[node.kind] += node.seconds
    whole = sum(estimated.values())
    # Estimates are for the whole machine, which the workers share.
    average = sum(measured.values()) / whole if whole else float(workers)
    return {kind: measured[kind] / estimated[kind] if estimated[kind] else average for kind in measured}


def folder_bytes(folder: Path) -> int:
    """Size of all files in a folder, in bytes."""
    total = 0
    for path in folder.rglob("*"):
        try:
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_size
        except OSError:  # removed at this moment
            continue
    return total


def resume_bytes(run: Path) -> dict[str, int]:
    """Key → size of what an interrupted node of a run resumes from, in bytes."""
    return {folder.name: folder_bytes(folder) for folder in (run / UNFINISHED).glob("*/")}


def disk_needed(
    nodes: Iterable[PlannedNode], done: Collection[str], workers: int, resume: Mapping[str, int] = MappingProxyType({})
) -> int:
    """Bytes that the rest of a run needs at most at one time, beyond those that are there.

    They are all results, and what the largest nodes need while they run.

    Args:
        nodes: of the run.
        done: keys of all finished nodes.
        workers: number of nodes that run at a time.
        resume: key → bytes that an interrupted node resumes from, and which it replaces.
    """
    left = {node.key: node for node in nodes if node.key not in done}.values()
    working = sorted((max(0, node.working - resume.get(node.key, 0)) for node in left), reverse=True)[:workers]
    return sum(node.disk for node in left) + sum(working)
