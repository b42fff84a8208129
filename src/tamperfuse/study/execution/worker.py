"""A worker: a process that runs nodes for another one, on this machine or in a Ray cluster."""

import gc
import logging
import pickle
import socket
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tamperfuse.records.errors import UserError
from tamperfuse.records.files import NODES, clear_staging, locked
from tamperfuse.records.plan import RUNNING, marked_running
from tamperfuse.study.node import FinishedNode, Node, execute

log = logging.getLogger("tamperfuse")

ATTEMPTS = 3  # of a node whose workers die

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


def prepare_worker(settings: WorkerSettings) -> dict[str, Node]:
    """Set this process's number of threads, and build the nodes.

    Returns:
        The nodes, by key.
    """
    torch.set_num_threads(settings.threads)
    log.setLevel(logging.WARNING)  # the main process has said all of this
    gc.freeze()  # as `existing_objects_left_out`, for as long as the process lives
    nodes = {node.key: node for node in reversed(settings.source())}
    log.setLevel(logging.INFO)
    return nodes


def run_node(nodes: Mapping[str, Node], key: str, settings: WorkerSettings, patience: float = 0.0) -> FinishedNode:
    """Run a node in a process of its own: its lock is held, and `running/` names it.

    Args:
        nodes: by key.
        key: of the node.
        settings: of this worker.
        patience: seconds to wait for the node's lock.

    Raises:
        UserError: bad input, the disk is full, another process runs the same node, or there is none with this key.
    """
    if key not in nodes:
        raise UserError(
            f"A worker on {socket.gethostname()} computes other keys than the main process ({key}): on another machine, install "
            "the same versions and use the same device there (of GPUs, the same model); on the same one this is a bug, please "
            "report it."
        )
    node, out = nodes[key], settings.out
    with locked(out / RUNNING / f"{key}.lock", out, patience), marked_running(out, key, node.label):
        clear_staging(out / NODES, key)  # of a worker that died
        return execute(out, node, settings.report_to)


def send_log(send: Callable[[int, str], object]) -> None:
    """Send this process's log to another process.

    Args:
        send: receives level and text of every message.
    """
    log.handlers, log.propagate = [_SendingHandler(send)], False


def relog(level: int, text: str, label: str = "") -> None:
    """Log a worker's message in the main process, with the node that it is about."""
    log.log(level, "      %s%s", f"{label}: " if label else "", text.strip())


def picklable(error: Exception) -> Exception:
    """The error with its traceback as a note; by its text where it cannot be sent to another process."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:  # of any class, with any constructor
        return RuntimeError(f"{type(error).__name__}: {error}")


class _SendingHandler(logging.Handler):
    """Sends log messages to the main process; handlers are called by one thread at a time."""

    def __init__(self, send: Callable[[int, str], object]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Send one message."""
        self._send(record.levelno, record.getMessage())
