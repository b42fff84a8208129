"""Nodes as tasks of a Ray cluster.

A task takes the threads, the memory and the GPU that its node needs. If its worker or its machine dies, Ray runs it again on
another one, where its training resumes. Ray is imported on first use: it is an extra.
"""

import logging
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tamperfuse.records.errors import UserError
from tamperfuse.records.files import NODES, clear_staging
from tamperfuse.records.plan import RUNNING
from tamperfuse.study.execution.cluster import living_machines, node_gpus, node_memory, ray_reason, worker_environment
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

MESSAGE_SECONDS = 2.0  # between two looks for messages of workers
CANCEL_SECONDS = 10.0  # that workers have to end
LOCK_SECONDS = 120.0  # after which a file server has released the locks of a machine that died


def run_on_cluster(
    nodes: Sequence[Node], settings: WorkerSettings, workers: int, size: int, watch: RunWatch
) -> list[FinishedNode]:
    """Run all nodes that have no result on the cluster that this process is connected to.

    Args:
        nodes: parents first, all of them with their parents.
        settings: of the workers; the run's folder is an absolute path.
        workers: number of nodes that run at a time.
        size: parameters of the model.
        watch: of the run.

    Raises:
        UserError: bad input, the disk is full, or a node's workers died several times.
    """
    with _RayTasks(settings, size) as tasks:
        return run_nodes(nodes, settings.out, tasks, workers, watch)


class _RayTasks:
    """Tasks of the cluster; a context manager, at whose end those that still run are stopped."""

    def __init__(self, settings: WorkerSettings, size: int) -> None:
        import ray
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._messages = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self._running: dict[Any, Node] = {}
        self._without_machine: set[str] = set()  # labels of nodes of which this was said
        self._threads = settings.threads
        self._out, self._size = settings.out, size
        self._arguments = uuid.uuid4().hex, ray.put(settings), os.getcwd(), self._messages
        self._task, self._options = (
            ray.remote(run_task),
            {
                "num_cpus": settings.threads,
                "num_gpus": node_gpus(),
                "max_retries": ATTEMPTS - 1,
                "runtime_env": worker_environment(settings.threads),
            },
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        with suppress(ray.exceptions.RayError):  # the cluster is gone
            for task in self._running:
                ray.cancel(task, force=True)
            if self._running:
                ray.wait(list(self._running), num_returns=len(self._running), timeout=CANCEL_SECONDS)
            self._messages.shutdown(force=True)
        for node in self._running.values():
            self._mark(node).unlink(missing_ok=True)
            clear_staging(self._out / NODES, node.key)

    def _mark(self, node: Node) -> Path:
        """The file that names the process which runs the node; one that was killed leaves it, and may be on another machine."""
        return self._out / RUNNING / f"{node.key}.json"

    def start(self, node: Node) -> None:
        """Give a node to Ray."""
        self._mark(node).unlink(missing_ok=True)
        task = self._task.options(memory=node_memory(node, self._size), name=node.label, **self._options)
        self._running[task.remote(node.key, node.label, *self._arguments)] = node

    def results(self) -> Iterator[EndedNode]:
        """Wait a while for a task that ends, and log what workers say.

        Raises:
            UserError: a node failed, or its workers died several times.
        """
        import ray

        ended, _ = ray.wait(list(self._running), timeout=MESSAGE_SECONDS)
        for level, text, label in self._messages.get_nowait_batch(self._messages.qsize()):
            relog(level, text, label)
        if not ended:
            self._log_without_machine()
        for task in ended:
            node = self._running.pop(task)
            try:
                word, *rest = ray.get(task)
            except ray.exceptions.RayTaskError as error:  # before the function began, which raises nothing itself
                raise UserError(
                    f"{node.label!r} could not be started on the Ray cluster ({ray_reason(error)}): install the same versions of "
                    "tamperfuse and of its plug-ins on every machine."
                ) from error
            except ray.exceptions.RayError as error:
                raise UserError(
                    f"{node.label!r} ended {ATTEMPTS} times without a result on the Ray cluster ({ray_reason(error)}): lower "
                    "--workers, or use machines with more memory; finished work stays."
                ) from error
            if word == "failed":
                raise rest[0]
            yield node, *rest

    def _log_without_machine(self) -> None:
        """Say once of a node that no living machine has room for it: Ray waits for one, which may never come."""
        living = living_machines()
        for node in self._running.values():
            if node.label not in self._without_machine and not any(
                machine.room(self._threads, node_memory(node, self._size), node_gpus()) for machine in living
            ):
                self._without_machine.add(node.label)
                log.warning(
                    "%r waits for a machine: none that the Ray cluster has now is large enough. Add one, or stop this run; "
                    "finished work stays.",
                    node.label,
                )


# The run whose nodes this worker has built, and the nodes by key.
_prepared: tuple[str, dict[str, Node]] = ("", {})


def run_task(key: str, label: str, run: str, settings: WorkerSettings, folder: str, messages: Any) -> tuple[Any, ...]:
    """What a worker of the cluster does with a node.

    Args:
        key: of the node.
        label: of the node.
        run: identifies the run: a worker that has built its nodes does not build them again.
        settings: of the workers.
        folder: the main process's current folder, to which paths in a study file are relative.
        messages: the queue of log messages.

    Returns:
        "done", node.json and whether it was there before; or "failed" and the error, which Ray would change.
    """
    global _prepared
    send_log(partial(_send, messages, label))
    try:
        if _prepared[0] != run:
            with suppress(OSError):  # not shared: a study with absolute paths does not need it
                os.chdir(folder)
            _prepared = ("", {})  # frees the models of another run
            _prepared = (run, prepare_worker(settings))
        again = (settings.out / RUNNING / f"{key}.json").exists()
        if again:
            log.warning("its process ended, so it runs again in another one.")
        done = run_node(_prepared[1], key, settings, LOCK_SECONDS if again else 0.0)
        return "done", done.record, done.reused
    except Exception as error:
        return "failed", picklable(error)


def _send(messages: Any, label: str, level: int, text: str) -> None:
    from ray.exceptions import RayError

    with suppress(RayError):  # the main process has ended
        messages.put((level, text, label))
