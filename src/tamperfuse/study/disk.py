"""Disk space of a study's nodes, and the limit of a run (`--disk`)."""

from collections.abc import Iterable
from pathlib import Path

from tamperfuse.records.amounts import gigabytes
from tamperfuse.records.errors import UserError
from tamperfuse.records.plan import PlannedNode
from tamperfuse.study.estimates import BYTES_PER_PARAMETER
from tamperfuse.study.node import Node, finished_folders, node_folder, unfinished_folder
from tamperfuse.study.remaining import folder_bytes, has_result
from tamperfuse.training.distillation import BYTES_PER_RESPONSE_TOKEN

TABLES = 4_000_000  # bytes of a node's texts and scores
RESUME_STATES = 2  # of a training, while one replaces another


def result_bytes(node: Node, size: int) -> int:
    """Bytes that a node's result takes; only defenses keep their weights, and only two nodes hold predictions.

    Args:
        node: the node.
        size: parameters of the model.
    """
    weights = BYTES_PER_PARAMETER * size if node.kind == "defense" else 0
    return TABLES + weights + BYTES_PER_RESPONSE_TOKEN * node.predictions


def working_bytes(node: Node, size: int) -> int:
    """Bytes that a node takes besides its result while it runs; the trials of a search write no resume state."""
    trains = node.expected.trained > 0 and node.kind != "search"
    return RESUME_STATES * node.budget.resume_copies * BYTES_PER_PARAMETER * size if trains else 0


def shared_bytes(run: Path, nodes: Iterable[Node]) -> int:
    """Bytes of results in neighbouring runs that a run reuses and does not have yet; they will count as its own."""
    missing = {node.key: node for node in nodes if not has_result(node_folder(run, node))}
    results = [finished_folders(run, node) for node in missing.values()]
    return sum(folder_bytes(folders[0]) for folders in results if folders)


class DiskCeiling:
    """Keeps a run's folder below a size: a node starts only if it still fits.

    Args:
        run: the run's folder.
        limit: bytes; None for no limit.
        shared: bytes that come into the folder from neighbouring runs (:func:`shared_bytes`).
    """

    def __init__(self, run: Path, limit: int | None, shared: int = 0) -> None:
        self._run, self._limit = run, limit
        self._used = shared + folder_bytes(run) if limit is not None else 0
        self._running: dict[
            str, tuple[int, int]
        ] = {}  # key → bytes reserved, and bytes of the resume state that it found

    def check_plan(self, needed: int) -> None:
        """Check, before anything runs, that the whole run is expected to fit.

        Args:
            needed: bytes that the rest of the run needs at most at one time.

        Raises:
            UserError: it is not.
        """
        if self._limit is not None and needed and self._used + needed > self._limit:  # a finished run is never refused
            raise UserError(
                f"The run would take up to {gigabytes(self._used + needed)} in {self._run} ({gigabytes(self._used)} are there "
                f"or come from neighbouring runs), more than --disk allows ({gigabytes(self._limit)}): raise --disk, or lower "
                "the number of defenses or seeds."
            )

    def fits(self, node: PlannedNode) -> bool:
        """Whether a node fits beside what is there and what the running nodes may still write."""
        return self._limit is None or self._with(node) <= self._limit

    def begin(self, node: PlannedNode) -> None:
        """Reserve what a node may write.

        Raises:
            UserError: it does not fit.
        """
        if self._limit is None:
            return
        if not self.fits(node):
            raise UserError(
                f"The run stops before {node.what!r}: with it {self._run} could grow to {gigabytes(self._with(node))}, more "
                f"than --disk allows ({gigabytes(self._limit)}): finished work stays; raise --disk and start the same command "
                "again."
            )
        self._running[node.key] = self._needs(node), self._resume_bytes(node)

    def _with(self, node: PlannedNode) -> int:
        return self._used + sum(reserved for reserved, _ in self._running.values()) + self._needs(node)

    def _needs(self, node: PlannedNode) -> int:
        return node.disk + max(0, node.working - self._resume_bytes(node))

    def _resume_bytes(self, node: PlannedNode | Node) -> int:
        return folder_bytes(unfinished_folder(self._run, node))

    def cancel(self, node: Node) -> None:
        """Release what was reserved for a node that ended without a result; what it resumes from stays."""
        if node.key in self._running:
            self._used += self._resume_bytes(node) - self._running.pop(node.key)[1]

    def end(self, node: Node) -> None:
        """Count a node's result, in place of what it resumed from."""
        if node.key in self._running:
            self._used += folder_bytes(node_folder(self._run, node)) - self._running.pop(node.key)[1]
