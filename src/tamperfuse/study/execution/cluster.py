"""A Ray cluster: connecting to it, the threads, memory and GPUs of its machines, and whether they share the run's folder.

Ray is imported on first use: it is an extra.
"""

import logging
import os
import socket
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from tamperfuse.records.errors import UserError, shown
from tamperfuse.records.files import STAGING_PREFIX, write_text
from tamperfuse.records.ray_workers import prepare_ray
from tamperfuse.study.estimates import memory_needed
from tamperfuse.study.execution.worker import ATTEMPTS
from tamperfuse.study.node import Node

log = logging.getLogger("tamperfuse")

CONNECT_SECONDS = 5.0  # that a cluster has to answer; Ray itself would try for minutes
PROBE_SECONDS = 300.0  # that a machine has to load tamperfuse and to read the run's folder
OBJECT_STORE = 100_000_000  # bytes of a cluster of this machine alone: results are files
# What an HTTP/2 server, which Ray's head is, answers with a frame of type 4 (RFC 9113, sections 3.4 and 6.5).
PREFACE, SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 4


@dataclass(frozen=True)
class ClusterMachine:
    """One machine of the cluster, and what Ray may use of it.

    Attributes:
        node: Ray's id of it.
        host: its name.
        cpus: threads.
        memory: bytes.
        gpus: number of GPUs.
    """

    node: str
    host: str
    cpus: int
    memory: int
    gpus: int

    def room(self, threads: int, memory: int, gpus: int) -> int:
        """How many nodes that need so much it can run at a time, were it idle."""
        return min(self.cpus // threads, self.memory // memory, self.gpus // gpus if gpus else sys.maxsize)


@contextmanager
def connected(address: str | None = None) -> Iterator[list[ClusterMachine]]:
    """Connect to a cluster for the duration of the context; yields its machines.

    Args:
        address: HOST:PORT of the cluster's head, or "auto" for the one that this machine belongs to. By default it is the
            environment variable RAY_ADDRESS; without it a cluster of this machine alone is started, and stopped at the end.

    Raises:
        UserError: Ray is not installed, or no cluster answers.
    """
    prepare_ray()
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address not in ("auto", "local"):
        _check_answers(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_oom_retries", str(ATTEMPTS - 1))  # where memory is short: Ray would retry for ever
    import ray

    if ray.is_initialized():  # by the calling program, which also ends the connection
        yield living_machines()
        return
    try:
        _connect(address)
        yield living_machines()
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Check within seconds that a server of Ray's protocol listens at an address."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise UserError(
            f"The address {shown(repr(address))} of a Ray cluster is not HOST:PORT: name the one that Ray printed when its head "
            "was started, or auto."
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as connection:
            connection.sendall(PREFACE)
            answer = connection.recv(9) if os.environ.get("RAY_USE_TLS", "0") == "0" else PREFACE[-9:]
        problem = "" if answer[3:4] == bytes([SETTINGS]) else "it is the port of another service"
    except (OSError, OverflowError, ValueError) as error:
        problem = str(error)
    if problem:
        raise UserError(
            f"No Ray cluster answers at {shown(address)} ({problem}): check the address, which Ray printed when its head was "
            "started, and that the cluster runs."
        )


def _connect(address: str) -> None:
    import ray

    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Ray prints events such as a worker's death on standard output, where --json may be; its debugger has this switch as well.
    with suppress(AttributeError):
        ray._private.worker._worker_logs_enabled = False
    try:
        if address == "local":
            threads = torch.get_num_threads()
            ray.init("local", num_cpus=threads, include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet)
        else:
            ray.init(address, **quiet)
    except Exception as error:  # of several classes, with several lines
        raise UserError(
            f"The Ray cluster ({address}) cannot be used ({ray_reason(error)}): run this command on a machine of the cluster, "
            "with the versions of Ray and Python that it has."
        ) from error


def living_machines() -> list[ClusterMachine]:
    """The living machines of the cluster that this process is connected to."""
    import ray

    return [
        ClusterMachine(
            node=node["NodeID"],
            host=node["NodeManagerHostname"],
            cpus=int(node["Resources"].get("CPU", 0)),
            memory=int(node["Resources"].get("memory", 0)),
            gpus=int(node["Resources"].get("GPU", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def divide(machines: Sequence[ClusterMachine], workers: int, memory: int, gpus: int) -> tuple[int, int]:
    """Divide a cluster's threads among nodes that run at the same time.

    Args:
        machines: of the cluster.
        workers: number of nodes.
        memory: bytes that a node needs.
        gpus: number of GPUs that a node needs.

    Returns:
        How many nodes run at a time, at most `workers`, and the largest number of threads with which they all find a place.

    Raises:
        UserError: no machine has room for a node.
    """

    def room(threads: int) -> int:
        return sum(machine.room(threads, memory, gpus) for machine in machines)

    fitting = min(workers, room(1))
    if not fitting:
        needs = f"a free processor core, {memory / 2**30:.1f} GiB of memory{' and a GPU' if gpus else ''}"
        raise UserError(
            f"No machine of the Ray cluster has what a node of this study needs: {needs}; add such a machine."
        )
    if fitting < workers:
        log.warning("The Ray cluster has room for %d nodes at a time, fewer than --workers.", fitting)
    most = max(machine.cpus for machine in machines)
    threads = max(threads for threads in range(1, most + 1) if room(threads) >= fitting)
    log.info("Ray cluster of %d machines: nodes at a time: %d, threads of each: %d.", len(machines), fitting, threads)
    return fitting, threads


def check_shared(out: Path, machines: Iterable[ClusterMachine], threads: int) -> None:
    """Check that every machine of the cluster can read and write the run's folder.

    Args:
        out: the run's folder.
        machines: of the cluster.
        threads: of a node; the workers that are started for this check run nodes afterwards.

    Raises:
        UserError: one cannot, or has no tamperfuse.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = out / f"{STAGING_PREFIX}probe-{uuid.uuid4().hex[:8]}"
    write_text(probe, probe.name)
    task, environment = ray.remote(answer_probe), worker_environment(threads)
    answers = {
        machine: task.options(
            num_cpus=0,
            max_retries=0,
            runtime_env=environment,
            scheduling_strategy=NodeAffinitySchedulingStrategy(machine.node, soft=False),
        ).remote(probe)
        for machine in machines
        if machine.cpus
    }
    try:
        for machine, answer in answers.items():
            try:
                name = ray.get(answer, timeout=PROBE_SECONDS)
            except ray.exceptions.RayError as error:
                raise UserError(
                    f"The machine {machine.host} of the Ray cluster cannot run nodes ({ray_reason(error)}): install the same "
                    "version of tamperfuse there."
                ) from error
            if not name or not (out / name).exists():
                raise UserError(
                    f"The machine {machine.host} of the Ray cluster cannot write to {out}, or writes to another folder of that "
                    "name: choose an --out on a file system that all machines share."
                )
    finally:
        for path in out.glob(f"{probe.name}*"):
            path.unlink(missing_ok=True)


def answer_probe(probe: Path) -> str:
    """What a machine of the cluster does with the probe file: writes another one beside it.

    Returns:
        The other file's name; "" if the folder is not the one that the main process sees.
    """
    answer = probe.with_name(f"{probe.name}-{socket.gethostname()}-{os.getpid()}")
    try:
        if probe.read_text(encoding="utf-8") != probe.name:
            return ""
        answer.write_text("", encoding="utf-8")
    except OSError:
        return ""
    return answer.name


def worker_environment(threads: int) -> dict[str, dict[str, str]]:
    """The environment of a worker; the number of threads is read when its libraries are loaded."""
    return {"env_vars": {"OMP_NUM_THREADS": str(threads)}}


def node_memory(node: Node, size: int) -> int:
    """Main memory that a node needs, in bytes, estimated.

    Args:
        node: the node.
        size: parameters of the model.
    """
    return memory_needed(size, node.budget.memory_copies if node.expected.trained > 0 else None)


def node_gpus() -> int:
    """Number of GPUs that a node uses: 1 where this process has one, since results depend on the kind of device."""
    return int(torch.cuda.is_available())


def ray_reason(error: Exception) -> str:
    """The last line of a message of Ray, which is the innermost error; its first ones are about Ray."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shown(lines[-1].rstrip(".") if lines else type(error).__name__)
