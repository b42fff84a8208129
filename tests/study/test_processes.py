"""Nodes in worker processes: the same results as in one process, also when a worker or the run is killed."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from fork_server import CONTEXT
from stand_ins import GraphOfNodes, is_alive, quick_study_nodes, results
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import read_json
from tamperfuse.records.run import read_run
from tamperfuse.study.announce import plan_nodes
from tamperfuse.study.disk import DiskCeiling
from tamperfuse.study.execution import processes
from tamperfuse.study.execution.processes import run_in_processes
from tamperfuse.study.execution.progress import RunProgress
from tamperfuse.study.execution.watch import RunWatch
from tamperfuse.study.execution.worker import WorkerSettings
from tamperfuse.study.node import FinishedNode, execute
from tamperfuse.study.run import run_study
from tamperfuse.study.spec import Study

pytestmark = pytest.mark.slow  # every worker loads torch
WIDE = ((), (), (0,), (0, 1), (2, 3), (), (5, 4))  # two chains that meet


@pytest.fixture
def quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that start quickly."""
    monkeypatch.setattr(processes, "SPAWN", CONTEXT)


def in_processes(graph: GraphOfNodes, workers: int = 2, threads: int = 1) -> list[FinishedNode]:
    nodes = graph()
    plan = plan_nodes(nodes, 1, workers, threads)
    watch = RunWatch(nodes, plan, DiskCeiling(graph.out, None), RunProgress(plan))
    return run_in_processes(nodes, WorkerSettings(graph, graph.out, (), threads), workers, watch)


def values(finished: list[FinishedNode]) -> list[str]:
    return [(done.folder / "value").read_text() for done in finished]


def graph(out: Path, **more: float) -> GraphOfNodes:
    out.mkdir(exist_ok=True)
    return GraphOfNodes(out, WIDE, tuple(range(1, 8)), **more)  # type: ignore[arg-type]


def expected(tmp_path: Path) -> list[str]:
    (tmp_path / "elsewhere").mkdir()
    alone = graph(tmp_path / "elsewhere" / "run")  # not beside the run, which would reuse its results
    return values([execute(alone.out, node) for node in alone()])


def test_workers_give_the_same_results_also_when_one_of_them_is_killed(
    quick_start: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = graph(tmp_path / "run", seconds=0.2, dies=3, deaths=1)
    finished = in_processes(tasks)
    assert values(finished) == expected(tmp_path)
    assert caplog.text.count("node 3: its process ended (exit code -9), so it runs again") == 1
    assert not list((tmp_path / "run" / "nodes").glob(".tmp-*"))
    assert not list((tmp_path / "run" / "running").glob("*"))
    notes = [done.record["notes"][0] for done in finished]
    numbers = {note.split()[2] for note in notes}
    assert len(numbers) >= 2 and str(os.getpid()) not in numbers
    assert all(note.endswith("with 1 threads") for note in notes), "the machine's threads are shared"
    assert not any(done.reused for done in finished)
    assert "[7/7] node 6: in process" in caplog.text, "a line says which node it is about"
    assert all(done.reused for done in in_processes(tasks))


def test_a_node_that_ends_its_workers_again_and_again_ends_the_run(
    quick_start: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "ATTEMPTS", 1)
    with pytest.raises(UserError, match=r"'node 0' ended 1 times without a result .*lower --workers"):
        in_processes(graph(tmp_path / "run", dies=0, deaths=9), workers=1)


def test_an_interrupt_while_a_worker_starts_is_delivered_afterwards() -> None:
    after = False
    with pytest.raises(KeyboardInterrupt), processes._interrupts_later():
        os.kill(os.getpid(), signal.SIGINT)
        child = subprocess.run(
            [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('goes on')"],
            stdout=subprocess.PIPE,
            check=False,
        )
        after = True
    assert after and child.stdout == b"goes on\n"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


def test_an_error_of_a_node_ends_the_run_and_finished_work_stays(quick_start: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Node 2 fails: mend it") as failure:
        in_processes(graph(tmp_path / "run", fails=2), workers=1)
    assert "stand_ins.py" in "".join(failure.value.__notes__), "the worker's traceback, for --debug"
    assert not multiprocessing.active_children()
    nodes = tmp_path / "run" / "nodes"
    assert len(list(nodes.glob("*/node.json"))) == 2 and not list(nodes.glob(".tmp-*"))


MAIN = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from study.test_processes import graph, in_processes
if __name__ == "__main__":
    in_processes(graph(Path({out!r}), seconds={seconds}))
"""


def test_workers_end_with_a_main_process_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    tests = Path(__file__).parents[1]
    script.write_text(MAIN.format(paths=[str(tests), str(tests.parent)], out=str(tmp_path / "run"), seconds=2.0))
    main = subprocess.Popen([sys.executable, str(script)])
    running = tmp_path / "run" / "running"
    wait_until(lambda: len(list(running.glob("*.json"))) == 2)
    workers = psutil.Process(main.pid).children()
    main.send_signal(signal.SIGKILL)
    main.wait()
    wait_until(lambda: not any(is_alive(worker.pid) for worker in workers))
    finished = in_processes(graph(tmp_path / "run"))  # not refused because of locks that nobody holds
    assert values(finished) == expected(tmp_path)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_study_in_processes_ends_with_the_same_results(
    study: Study, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tamperfuse.study.run.study_nodes", quick_study_nodes)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2 * read_threads(finished_run))
    run_study(study, tmp_path / "apart" / "run", executor="processes", workers=2)
    assert results(tmp_path / "apart" / "run") == results(finished_run)
    assert not any(node.reused for node in read_run(tmp_path / "apart" / "run").nodes)


def read_threads(run: Path) -> int:
    """Threads with which the nodes of a run were computed: rounding depends on their number."""
    return int(read_json(next((run / "nodes").glob("*/node.json")))["threads"])
