"""What the runner of studies adds to its nodes: time of 1,000 and of 10,000 nodes that do nothing.

    python benchmarks/runner_overhead.py            1,000 and 10,000 nodes
    python benchmarks/runner_overhead.py --quick    100 and 1,000 nodes

Every node has up to three parents and writes one file of a few bytes. What is measured is all that `tamperfuse run` does for
a node: its key, the plan, looking for a result, the log, node.json with checksums, renaming into place; then a second run that
reuses every result. Imports and the study's own data are not included. "ours" is the time a node with the larger number of
nodes, "rival" that with the smaller one: a ratio of 1 means that the time is linear. Processor time is printed as well ("cpu"),
since on a busy machine the wall time contains the waiting for a processor. The last line is JSON.
"""

import argparse
import json
import logging
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tamperfuse.records.plan import RUN_KEY, marked_running
from tamperfuse.study.announce import announce, plan_nodes
from tamperfuse.study.disk import DiskCeiling
from tamperfuse.study.estimates import Costs
from tamperfuse.study.execution.progress import RunProgress
from tamperfuse.study.execution.watch import RunWatch
from tamperfuse.study.node import Node, Outcome
from tamperfuse.study.remaining import disk_needed, finished_keys
from tamperfuse.study.run import run_here

SIZE = 1_000_000  # parameters of the model that estimates are for


def empty_nodes(count: int) -> list[Node]:
    """Nodes in a random graph."""
    rng, nodes = random.Random(0), list[Node]()
    for i in range(count):
        parents = tuple(rng.sample(nodes, min(i, rng.randrange(4))))
        nodes.append(Node(f"node {i}", "pairs", parents, {"node": i}, 0, write_little, Costs()))
    return nodes


def write_little(folder: Path) -> Outcome:
    """What an empty node does."""
    (folder / "value").write_text("1")
    return Outcome()


@dataclass(frozen=True)
class Taken:
    """What some work took, in seconds or in milliseconds a node."""

    wall: float
    cpu: float

    def __add__(self, other: "Taken") -> "Taken":
        return Taken(self.wall + other.wall, self.cpu + other.cpu)

    def per_node(self, count: int) -> "Taken":
        """Milliseconds a node."""
        return Taken(1e3 * self.wall / count, 1e3 * self.cpu / count)


@contextmanager
def timed(phases: dict[str, Taken], phase: str) -> Iterator[None]:
    """Write into `phases` what the block takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    phases[phase] = Taken(time.perf_counter() - wall, time.process_time() - cpu)


def run(nodes: list[Node], out: Path) -> None:
    """A run, from the plan on."""
    plan, done = plan_nodes(nodes, SIZE, 1, 1), finished_keys(out)
    announce(nodes, done, out, SIZE, disk_needed(plan.nodes, done, plan.workers))
    with marked_running(out, RUN_KEY, "the run"), RunProgress(plan, done) as progress:
        watch = RunWatch(nodes, plan, DiskCeiling(out, 10**12), progress)
        for node in nodes:
            run_here(out, node, watch)


def measure(count: int) -> dict[str, Taken]:
    """Milliseconds a node, by phase."""
    phases: dict[str, Taken] = {}
    with timed(phases, "keys"):
        nodes = empty_nodes(count)
        assert len({node.key for node in nodes}) == count
    with tempfile.TemporaryDirectory() as place:
        for phase in ("first run", "second run"):
            with timed(phases, phase):
                run(nodes, Path(place) / "run")
    return {phase: taken.per_node(count) for phase, taken in phases.items()}


def main() -> None:
    """Measure both sizes and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100 and 1,000 nodes")
    counts = (100, 1_000) if parser.parse_args().quick else (1_000, 10_000)
    log = logging.getLogger("tamperfuse")
    log.setLevel(logging.INFO)  # messages are formatted, as in a run, but not printed
    log.addHandler(logging.NullHandler())
    log.propagate = False
    measure(10)  # imports
    sizes = {}
    for count in counts:
        sizes[count] = measure(count)
        phases = (f"{phase} {t.wall:.2f} ms (cpu {t.cpu:.2f})" for phase, t in sizes[count].items())
        print(f"{count:,} nodes: {', '.join(phases)}", flush=True)
    rival, ours = (sizes[count]["keys"] + sizes[count]["first run"] for count in counts)
    reused = [sizes[count]["keys"] + sizes[count]["second run"] for count in counts]
    print(
        json.dumps(
            {
                "benchmark": "runner_overhead",
                "ours": round(ours.wall, 3),
                "rival": round(rival.wall, 3),
                "unit": "ms a node",
                "ratio": round(ours.wall / rival.wall, 3),
                "nodes": counts,
                "cpu": [round(rival.cpu, 3), round(ours.cpu, 3)],
                "reused": [round(taken.wall, 3) for taken in reused],
                "reused_cpu": [round(taken.cpu, 3) for taken in reused],
            }
        )
    )


if __name__ == "__main__":
    main()
