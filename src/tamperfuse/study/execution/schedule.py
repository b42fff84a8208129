"""Nodes of a run, several at a time: each starts as soon as its parents have results.

    this process                              workers: processes of this machine (processes.py) or of a Ray cluster (cluster.py)
    ────────────                              ───────
    nodes whose parents have results ──key──▶ node.run, as in this process; its lock is held (worker.py)
    log, progress, disk ceiling ◀──record──── node.json, written into nodes/<key>/

An error of a node ends the run, as when nodes run one after the other; finished nodes stay.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tamperfuse.study.execution.watch import RunWatch
from tamperfuse.study.node import FinishedNode, Node, is_finished, node_folder, reuse_result

#: A node that a worker has ended, its node.json, and whether the result was there before; no node.json if the worker died.
EndedNode = tuple[Node, dict[str, Any] | None, bool]


class NodePool(Protocol):
    """Workers that nodes are handed to."""

    def start(self, node: Node) -> None:
        """Start a node; it is called for as many nodes at a time as there are workers."""

    def results(self) -> Iterable[EndedNode]:
        """Wait a while for nodes that end. Nodes whose worker died without a result are started again by the caller.

        Raises:
            UserError: a node failed, or its workers died several times.
        """


def run_nodes(nodes: Sequence[Node], out: Path, pool: NodePool, workers: int, watch: RunWatch) -> list[FinishedNode]:
    """Run all nodes that have no result.

    Args:
        nodes: parents first, all of them with their parents.
        out: the run's folder.
        pool: runs the nodes.
        workers: number of nodes that run at a time.
        watch: of the run.

    Raises:
        UserError: bad input, the disk is full, or a node's workers died several times.
    """
    results: dict[str, FinishedNode] = {}
    for node in nodes:
        reused = reuse_result(out, node) if node.key not in results and is_finished(out, node) else None
        if reused is not None:
            results[node.key] = reused
            watch.end(reused)
    todo: dict[str, Node] = {}
    for node in nodes:
        if node.key not in results:
            todo.setdefault(node.key, node)  # of several labels the first
    running: set[str] = set()
    while todo:
        for node in list(todo.values()):
            if node.key in running or not all(parent.key in results for parent in node.reads):
                continue
            if len(running) >= workers or (running and not watch.fits(node)):
                break
            watch.begin(node)
            pool.start(node)
            running.add(node.key)
        for node, record, reused_there in pool.results():
            running.discard(node.key)
            if record is None:
                watch.interrupt(node)
                continue
            results[node.key] = FinishedNode(node, node_folder(out, node), record, reused_there)
            del todo[node.key]
            watch.end(results[node.key])
    return [_named(node, results[node.key]) for node in nodes]


def _named(node: Node, done: FinishedNode) -> FinishedNode:
    """A node's result; of a second label for the same parameters it is a reused one."""
    return done if done.node.label == node.label else FinishedNode(node, done.folder, done.record, reused=True)
