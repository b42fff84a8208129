"""Nodes on a Ray cluster, of this machine alone: the same results as in one process, also when a worker is killed."""

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from stand_ins import dying_study_nodes, failing_study_nodes, results
from tamperfuse.cli.app import main
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import read_json
from tamperfuse.records.run import read_run
from tamperfuse.study.estimates import Costs
from tamperfuse.study.execution import cluster
from tamperfuse.study.execution.cluster import ClusterMachine, answer_probe, check_shared, divide, living_machines
from tamperfuse.study.execution.ray_tasks import _RayTasks
from tamperfuse.study.execution.worker import WorkerSettings, run_node
from tamperfuse.study.node import Node
from tamperfuse.study.run import run_study
from tamperfuse.study.spec import Study


def priority() -> int:
    """The niceness of this process."""
    return os.nice(0)


def answer_from_another_folder(probe: Path) -> str:
    """What a machine answers that has another folder of the run's name."""
    return f"{probe.name}-elsewhere"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster with room for two nodes, each with this process's number of threads, to which rounding is sensitive."""
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'tamperfuse[ray]'")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # workers import stand-ins
        patch.setattr(torch, "get_num_threads", lambda: 2 * threads)
        cluster_of_this_machine = cluster.connected()
        cluster_of_this_machine.__enter__()
    yield ray.get_runtime_context().gcs_address
    cluster_of_this_machine.__exit__(None, None, None)


@pytest.mark.slow
def test_a_study_on_ray_ends_with_the_same_results_after_an_error_and_a_killed_worker(
    study: Study,
    finished_run: Path,
    tmp_path: Path,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "apart" / "run"  # not beside the finished run, whose results it would reuse
    (tmp_path / "study.yaml").write_text(study.to_yaml())
    # Room for two, however small this machine is.
    monkeypatch.setattr("tamperfuse.study.estimates.OVERHEAD_MEMORY", 2**20)
    command = ["run", str(tmp_path / "study.yaml"), "--out", str(out), "--executor", "ray", "--address", address]
    monkeypatch.setattr("tamperfuse.study.run.study_nodes", failing_study_nodes)
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    printed = capfd.readouterr()
    assert printed.err.splitlines()[-1] == "tamperfuse: This node fails: mend it."
    assert "Traceback" not in printed.err and not printed.out
    finished = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("nodes/*/node.json")}
    assert finished and not list(out.glob("nodes/.tmp-*"))

    monkeypatch.setattr("tamperfuse.study.run.study_nodes", dying_study_nodes)
    with pytest.raises(SystemExit) as ended:
        main([*command, "--json"])
    assert ended.value.code == 0
    printed = capfd.readouterr()
    assert json.loads(printed.out)["schema"] == 2, "nothing but JSON"
    assert (out / "killed").exists()
    assert printed.err.count("its process ended, so it runs again in another one") == 1
    assert "resumes after step 1 of 3" in printed.err
    assert "raylet" not in printed.err
    assert results(out) == results(finished_run)
    records = {path.parent.name: read_json(path) for path in out.glob("nodes/*/node.json")}
    assert records.keys() == {path.name for path in (finished_run / "nodes").iterdir()}
    assert {record["threads"] for record in records.values()} == {torch.get_num_threads()}
    assert {key: (out / "nodes" / key / "node.json").stat().st_mtime_ns for key in finished} == finished
    assert sum(node.reused for node in read_run(out).nodes) == len(finished)
    assert not list(out.glob("running/*")) and not list(out.rglob(".tmp-*"))
    ray = pytest.importorskip("ray")
    assert ray.get(ray.remote(priority).remote()) == priority(), "workers have the priority of this process"


@pytest.mark.slow
@pytest.mark.usefixtures("address")
def test_a_node_for_which_no_machine_is_left_says_that_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    memory = 2**45  # bytes; as if the machine that had them died
    monkeypatch.setattr("tamperfuse.study.execution.ray_tasks.node_memory", lambda *_: memory)
    waiting = Node("a node", "pairs", (), {}, 0, Mock(), Costs())
    with _RayTasks(WorkerSettings(list, tmp_path, (), 1), 1) as tasks:
        tasks.start(waiting)
        assert [*tasks.results(), *tasks.results()] == []
    assert [message for message in caplog.messages if "waits for a machine" in message] == [
        "'a node' waits for a machine: none that the Ray cluster has now is large enough. Add one, or stop this run; finished "
        "work stays."
    ]


def test_the_threads_of_a_cluster_are_divided_among_the_nodes(caplog: pytest.LogCaptureFixture) -> None:
    gib = 2**30
    machines = [ClusterMachine("a", "a", 16, 64 * gib, 0), ClusterMachine("b", "b", 8, 64 * gib, 1)]
    assert divide(machines, 1, gib, 0) == (1, 16)
    assert divide(machines, 2, gib, 0) == (2, 8)
    assert divide(machines, 3, gib, 0) == (3, 8)
    assert divide(machines, 4, gib, 0) == (4, 5)
    assert divide(machines, 4, 40 * gib, 0) == (2, 8), "memory for one node on each machine"
    assert divide(machines, 4, gib, 1) == (1, 8), "one GPU"
    with pytest.raises(UserError, match=r"No machine of the Ray cluster has .* 65\.0 GiB of memory; add"):
        divide(machines, 2, 65 * gib, 0)


def test_a_machine_that_sees_another_folder_is_noticed(tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    assert answer_probe(probe) == ""
    probe.write_text("of another run")
    assert answer_probe(probe) == ""
    probe.write_text(probe.name)
    assert (tmp_path / answer_probe(probe)).exists()


def test_a_machine_that_computes_other_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"computes other keys than the main process .*: on another machine, install the same"
    ):
        run_node({}, "0123456789abcdef", WorkerSettings(list, tmp_path, (), 1))


@pytest.mark.slow
@pytest.mark.usefixtures("address")
def test_a_machine_that_does_not_see_the_folder_of_the_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = living_machines()
    check_shared(tmp_path, machines, torch.get_num_threads())
    monkeypatch.setattr(cluster, "answer_probe", answer_from_another_folder)
    with pytest.raises(
        UserError, match=r"of the Ray cluster cannot write to .*: choose an --out on a file system that all"
    ):
        check_shared(tmp_path, machines, torch.get_num_threads())
    assert not list(tmp_path.iterdir())


def test_ray_that_is_not_installed_is_a_sentence(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tamperfuse.records.ray_workers.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'tamperfuse\[ray\]'"):
        run_study(study, tmp_path / "run", executor="ray")
    with pytest.raises(UserError, match="--address names a Ray cluster: add --executor ray"):
        run_study(study, tmp_path / "run", address="auto")


@pytest.mark.parametrize("listens", ["nobody", "another service", "nobody who answers"])
def test_an_address_that_does_not_answer_is_a_sentence_before_ray_is_asked(
    listens: str, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.5)
    connect = Mock()
    monkeypatch.setattr(cluster, "_connect", connect)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens != "nobody":
            server.listen()
        if listens == "another service":
            threading.Thread(
                target=lambda: server.accept()[0].sendall(b"HTTP/1.1 400 Bad Request"), daemon=True
            ).start()
        with pytest.raises(UserError, match=r"No Ray cluster answers at 127\.0\.0\.1:\d+ \("):
            run_study(study, tmp_path / "run", executor="ray", address=f"127.0.0.1:{server.getsockname()[1]}")
    connect.assert_not_called()  # which would try for minutes
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["ray://head:10001", "head", "head:port", "head:99999", "/head:1"])
def test_an_address_that_is_none_is_a_sentence(text: str, study: Study, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Ray printed when"):
        run_study(study, tmp_path / "run", executor="ray", address=text)
