"""Nodes in several processes of this machine.

    main process                              worker 1 … N, each with its own context, models and 1/N of the threads
    ─────────────                             ─────────────
    nodes whose parents have results ──key──▶ node.run, as in the main process; its lock is held
    log, progress, disk ceiling ◀──record──── node.json, written into nodes/<key>/

A worker that dies (killed, out of memory) is replaced, and its node runs again on the new one, where its training resumes. An
error of a node ends the run, as in the main process. Workers end with the main process, even if it is killed.
"""

import logging
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from tamperfuse.records.errors import UserError
from tamperfuse.records.files import clear_staging, locked
from tamperfuse.records.plan import RUNNING, marked_running
from tamperfuse.study.node import FinishedNode, Node, execute, is_finished, node_folder, reuse_result
from tamperfuse.study.watch import RunWatch

log = logging.getLogger("tamperfuse")

ATTEMPTS = 3  # of a node whose workers die
SPAWN = multiprocessing.get_context("spawn")  # a forked process cannot use torch's threads

#: Builds all nodes of a study; called in every worker, so it must be picklable.
NodeSource = Callable[[], Sequence[Node]]


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs to run nodes.

    Attributes:
        source: builds the nodes.
        out: the run's folder.
        report_to: trackers that trainings report to.
        threads: that it may use.
    """

    source: NodeSource
    out: Path
    report_to: Sequence[str]
    threads: int


def run_in_processes(
    nodes: Sequence[Node], settings: WorkerSettings, workers: int, watch: RunWatch
) -> list[FinishedNode]:
    """Run all nodes that have no result, each as soon as its parents have theirs.

    Args:
        nodes: parents first, all of them with their parents.
        settings: of the workers.
        workers: number of processes.
        watch: of the run.

    Raises:
        UserError: bad input, the disk is full, or a node ends its process several times.
    """
    results: dict[str, FinishedNode] = {}
    for node in nodes:
        reused = (
            reuse_result(settings.out, node) if node.key not in results and is_finished(settings.out, node) else None
        )
        if reused is not None:
            results[node.key] = reused
            watch.end(reused)
    todo = {node.key: node for node in reversed(nodes) if node.key not in results}  # of several labels the first
    with _WorkerPool(settings, workers) as pool:
        while todo:
            for node in reversed(todo.values()):
                ready = all(parent.key in results for parent in node.parents) and not pool.runs(node)
                if not ready:
                    continue
                if pool.is_full() or (pool.is_busy() and not watch.fits(node)):
                    break
                watch.begin(node)
                pool.start(node)
            for node, record, reused_there in pool.results():
                if record is None:
                    watch.interrupt(node)
                    continue
                results[node.key] = FinishedNode(node, node_folder(settings.out, node), record, reused_there)
                del todo[node.key]
                watch.end(results[node.key])
    return [_named(node, results[node.key]) for node in nodes]


def _named(node: Node, done: FinishedNode) -> FinishedNode:
    """A node's result; of a second label for the same parameters it is a reused one."""
    return done if done.node.label == node.label else FinishedNode(node, done.folder, done.record, reused=True)


@dataclass
class _WorkerProcess:
    """One worker, and the node that it runs."""

    process: SpawnProcess
    connection: Connection
    node: Node | None = None


@dataclass
class _WorkerPool:
    """Worker processes, started when they are needed; a context manager, at whose end they are stopped."""

    settings: WorkerSettings
    size: int
    _workers: list[_WorkerProcess] = field(default_factory=list)
    _attempts: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.connection.close()  # an idle worker ends by itself
            if worker.node is not None:
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join(5)
            worker.process.kill()
            worker.process.join()

    def is_full(self) -> bool:
        """Whether every worker runs a node."""
        return sum(worker.node is not None for worker in self._workers) >= self.size

    def is_busy(self) -> bool:
        """Whether any worker runs a node."""
        return any(worker.node is not None for worker in self._workers)

    def runs(self, node: Node) -> bool:
        """Whether a worker runs this node."""
        return any(worker.node is not None and worker.node.key == node.key for worker in self._workers)

    def start(self, node: Node) -> None:
        """Give a node to an idle worker, or to a new one."""
        worker = next((worker for worker in self._workers if worker.node is None), None) or self._new_worker()
        worker.node = node
        try:
            worker.connection.send(node.key)
        except OSError:  # it died while it was idle, which `results` notices
            self._attempts[node.key] = self._attempts.get(node.key, 0) - 1

    def _new_worker(self) -> _WorkerProcess:
        connection, far_end = SPAWN.Pipe()
        process = SPAWN.Process(target=_work, args=(far_end, self.settings), name="tamperfuse worker")
        with _environment(OMP_NUM_THREADS=str(self.settings.threads)):  # read when its libraries are loaded
            process.start()
        far_end.close()
        worker = _WorkerProcess(process, connection)
        self._workers.append(worker)
        return worker

    def results(self) -> Iterator[tuple[Node, dict[str, Any] | None, bool]]:
        """Wait until a worker says something; yield (node, node.json, reused) of results, (node, None, False) of dead workers'.

        Raises:
            UserError: a node failed, or ended its process several times.
        """
        wait([item for worker in self._workers for item in (worker.connection, worker.process.sentinel)])
        for worker in list(self._workers):
            try:
                while worker.connection.poll():
                    word, *rest = worker.connection.recv()
                    if word == "log":
                        _relog(worker, *rest)
                    elif word == "failed":
                        raise rest[0]
                    elif worker.node is not None:
                        node, worker.node = worker.node, None
                        yield node, *rest
            except (EOFError, ConnectionError):
                yield from self._bury(worker)

    def _bury(self, worker: _WorkerProcess) -> Iterator[tuple[Node, None, bool]]:
        """Forget a dead worker; its node runs again unless that was tried too often."""
        worker.process.join()
        worker.connection.close()
        self._workers.remove(worker)
        node = worker.node
        if node is None:
            return
        code, attempts = worker.process.exitcode, self._attempts.get(node.key, 0) + 1
        self._attempts[node.key] = attempts
        if attempts >= ATTEMPTS:
            raise UserError(
                f"The process of {node.label!r} ended {attempts} times without a result (exit code {code}; -9 is often a lack of "
                "memory): lower --workers, or use a larger machine; finished work stays."
            )
        log.warning("%s: its process ended (exit code %s), so it runs again in another one.", node.label, code)
        clear_staging(self.settings.out / "nodes", node.key)
        yield node, None, False


def _relog(worker: _WorkerProcess, level: int, text: str) -> None:
    """Log a worker's message in the main process, with the node that it is about."""
    place = f"{worker.node.label}: " if worker.node else ""
    log.log(level, "      %s%s", place, text.strip())


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set environment variables while the block runs."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(connection: Connection, settings: WorkerSettings) -> None:
    """The main function of a worker: runs the nodes whose keys it receives until the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C the main process takes care
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(settings.threads)
    log.handlers, log.propagate = [_SendingHandler(connection)], False
    try:
        log.setLevel(logging.WARNING)  # the main process has said all of this
        nodes = {node.key: node for node in reversed(settings.source())}
        log.setLevel(logging.INFO)
        while True:
            key = connection.recv()
            if key not in nodes:
                raise UserError(
                    f"A worker computes other keys than the main process ({key}): this is a bug, please report it."
                )
            done = run_node(settings.out, nodes[key], settings.report_to)
            connection.send(("done", done.record, done.reused))
    except EOFError:
        return
    except Exception as error:
        connection.send(("failed", _picklable(error)))


def run_node(out: Path, node: Node, report_to: Sequence[str] = ()) -> FinishedNode:
    """Run a node in a process of its own: its lock is held, and `running/` names it.

    Raises:
        UserError: bad input, the disk is full, or another process runs the same node.
    """
    with locked(out / RUNNING / f"{node.key}.lock", out), marked_running(out, node.key, node.label):
        return execute(out, node, report_to)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _picklable(error: Exception) -> Exception:
    """The error with its traceback as a note; by its text where it cannot be sent to another process."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:  # of any class, with any constructor
        return RuntimeError(f"{type(error).__name__}: {error}")


class _SendingHandler(logging.Handler):
    """Sends log messages to the main process."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        """Send one message; handlers are called by one thread at a time."""
        self._connection.send(("log", record.levelno, record.getMessage()))
