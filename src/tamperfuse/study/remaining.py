"""The unfinished part of a run: nodes, time, disk. Imports no model library, so that `tamperfuse status` starts quickly."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from tamperfuse.records.plan import PlannedNode, RunPlan

NODE = "node.json"  # a folder that has it is complete


def finished_keys(run: Path) -> set[str]:
    """Keys of all nodes whose results exist, in a run's folder or in those beside it. Checksums are not compared."""
    folders = {run / "nodes", *run.resolve().parent.glob("*/nodes")}
    return {path.name for folder in folders if folder.is_dir() for path in folder.iterdir() if (path / NODE).exists()}


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
    nodes = {node.key: node for node in plan.nodes}  # two labels may share a key
    slower = {kind: _slower(nodes.values(), taken, plan.workers, kind) for kind in {n.kind for n in nodes.values()}}
    left = [
        max(0.0, node.seconds * slower[node.kind] - elapsed.get(node.key, 0.0))
        for node in nodes.values()
        if node.key not in done
    ]
    # Not even with a worker for each node does the run end before its longest one.
    return max(sum(left) / plan.workers, max(left, default=0.0))


def _slower(nodes: Iterable[PlannedNode], taken: Mapping[str, float], workers: int, kind: str) -> float:
    """How many times as long as estimated nodes of a kind take; of all kinds where none of this one has finished."""
    measured = [node for node in nodes if node.key in taken and node.seconds > 0]
    same = [node for node in measured if node.kind == kind] or measured
    if not same:
        return float(workers)  # estimates are for the whole machine, which the workers share
    return sum(taken[node.key] for node in same) / sum(node.seconds for node in same)


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


def disk_needed(nodes: Iterable[PlannedNode], done: Collection[str], workers: int) -> int:
    """Bytes that the rest of a run needs at most at one time: all results, and what the largest nodes need while they run."""
    left = {node.key: node for node in nodes if node.key not in done}.values()
    working = sorted((node.working for node in left), reverse=True)[:workers]
    return sum(node.disk for node in left) + sum(working)
