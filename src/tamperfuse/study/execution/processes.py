"""Nodes in several processes of this machine, each with its own context, models and 1/N of the threads.

A worker that dies (killed, out of memory) is replaced, and its node runs again on the new one, where its training resumes.
Workers end with the main process, even if it is killed.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Self

from tamperfuse.records.errors import UserError
from tamperfuse.records.files import NODES, clear_staging
from tamperfuse.study.execution.schedule import EndedNode, run_nodes
from tamperfuse.study.execution.watch import RunWatch
from tamperfuse.study.execution.worker import (
    ATTEMPTS,
    WorkerSettings,
    picklable,
    prepare_worker,
    relog,
    run_node,
    send_log,
)
from tamperfuse.study.node import FinishedNode, Node

log = logging.getLogger("tamperfuse")

SPAWN = multiprocessing.get_context("spawn")  # a forked process cannot use torch's threads


def run_in_processes(
    nodes: Sequence[Node], settings: WorkerSettings, workers: int, watch: RunWatch
) -> list[FinishedNode]:
    """Run all nodes that have no result in processes of this machine.

    Args:
        nodes: parents first, all of them with their parents.
        settings: of the workers.
        workers: number of processes.
        watch: of the run.

    Raises:
        UserError: bad input, the disk is full, or a node ends its process several times.
    """
    with _WorkerPool(settings) as pool:
        return run_nodes(nodes, settings.out, pool, workers, watch)


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
            if worker.node is not None:
                clear_staging(self.settings.out / NODES, worker.node.key)

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
        threads = str(self.settings.threads)
        with _interrupts_later(), _environment(OMP_NUM_THREADS=threads):  # read when its libraries are loaded
            process.start()
        far_end.close()
        worker = _WorkerProcess(process, connection)
        self._workers.append(worker)
        return worker

    def results(self) -> Iterator[EndedNode]:
        """Wait until a worker says something.

        Raises:
            UserError: a node failed, or ended its process several times.
        """
        wait([item for worker in self._workers for item in (worker.connection, worker.process.sentinel)])
        for worker in list(self._workers):
            try:
                while worker.connection.poll():
                    word, *rest = worker.connection.recv()
                    if word == "log":
                        level, text = rest
                        relog(level, text, worker.node.label if worker.node else "")
                    elif word == "failed":
                        raise rest[0]
                    elif worker.node is not None:
                        node, worker.node = worker.node, None
                        yield node, *rest
            except (EOFError, ConnectionError):
                yield from self._bury(worker)

    def _bury(self, worker: _WorkerProcess) -> Iterator[EndedNode]:
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
        yield node, None, False


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


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Ctrl-C is delivered after the block. A process that starts in the block never receives it, not even while it imports."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    received: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    # Another thread may receive the signal, whose handler then interrupts the main thread all the same.
    deferred = threading.current_thread() is threading.main_thread() and handler is not None
    resource_tracker.ensure_running()  # otherwise the first start of a process starts it, which lifts the block
    if deferred:
        signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by the process
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if deferred:
            signal.signal(signal.SIGINT, handler)
    if received:
        signal.raise_signal(signal.SIGINT)


def _work(connection: Connection, settings: WorkerSettings) -> None:
    """The main function of a worker: runs the nodes whose keys it receives until the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    threading.Thread(target=_end_with_parent, daemon=True).start()
    send_log(lambda level, text: connection.send(("log", level, text)))
    try:
        nodes = prepare_worker(settings)
        while True:
            done = run_node(nodes, connection.recv(), settings)
            connection.send(("done", done.record, done.reused))
    except EOFError:
        return
    except Exception as error:
        connection.send(("failed", picklable(error)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
