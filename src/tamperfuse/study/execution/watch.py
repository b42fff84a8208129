"""Steps before and after every node of a run, whichever executor runs it: the disk ceiling, the log, the progress."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tamperfuse.records.plan import RunPlan
from tamperfuse.study.announce import log_end, log_start
from tamperfuse.study.disk import DiskCeiling
from tamperfuse.study.execution.progress import RunProgress
from tamperfuse.study.node import FinishedNode, Node


@dataclass
class RunWatch:
    """Keeps count of a run.

    Attributes:
        nodes: of the run, parents first.
        plan: of these nodes.
        ceiling: of the run's folder.
        progress: shown while the run goes on.
    """

    nodes: Sequence[Node]
    plan: RunPlan
    ceiling: DiskCeiling
    progress: RunProgress
    _places: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        total = len(self.nodes)
        self._places = {node.label: f"[{i}/{total}] {node.label}" for i, node in enumerate(self.nodes, 1)}
        self._planned = {node.key: node for node in self.plan.nodes}

    def fits(self, node: Node) -> bool:
        """Whether a node may start now without exceeding the disk ceiling."""
        return self.ceiling.fits(self._planned[node.key])

    def begin(self, node: Node) -> None:
        """A node starts.

        Raises:
            UserError: it may take the run beyond its disk ceiling.
        """
        self.ceiling.begin(self._planned[node.key])
        log_start(self._places[node.label])
        self.progress.begin(node.key, node.label)

    def interrupt(self, node: Node) -> None:
        """A node ended without a result, and will start again."""
        self.ceiling.cancel(node)
        self.progress.interrupt(node.key)

    def end(self, done: FinishedNode) -> None:
        """A node has a result."""
        log_end(self._places[done.node.label], done, parallel=self.plan.workers > 1)
        self.ceiling.end(done.node)
        comparable = done.record.get("threads") == self.plan.threads
        self.progress.finish(done.node.key, float(done.record["seconds"]) if comparable else None)
