"""How far a run is: from its folder, while it runs, after a kill."""

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from stand_ins import Killed
from tamperfuse.cli.app import main
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import read_json
from tamperfuse.records.plan import PlannedNode, RunningWork, RunPlan, marked_running, read_plan, write_plan
from tamperfuse.study.execution import progress
from tamperfuse.study.node import FinishedNode, Node, execute
from tamperfuse.study.remaining import disk_needed, seconds_left
from tamperfuse.study.run import run_study
from tamperfuse.study.spec import Study
from tamperfuse.study.status import RunStatus, run_status


def planned(key: str, kind: str = "attack", seconds: float = 10.0, **more: Any) -> PlannedNode:
    return PlannedNode(
        key=key, what=f"node {key}", kind=kind, parents=[], seconds=seconds, **{"disk": 1, "working": 5, **more}
    )


def plan(*nodes: PlannedNode, workers: int = 1) -> RunPlan:
    return RunPlan(schema=1, workers=workers, threads=1, nodes=list(nodes))


def test_a_finished_run(finished_run: Path, tmp_path: Path) -> None:
    status = run_status(finished_run)
    assert status.state == "finished" and status.nodes.left == status.nodes.running == 0
    damaged = shutil.copytree(finished_run, tmp_path / "run")
    (damaged / "summary.json").write_bytes((finished_run / "summary.json").read_bytes()[:100])
    assert run_status(damaged).state == "stopped", "its results are damaged"
    assert status.kinds["defense"].done == 2 and status.kinds["attack"].done == 4
    assert (status.seconds_left, status.disk_left, status.running, status.interrupted) == (0, 0, [], [])
    assert status.disk_used > 0 and status.disk_free > 0


def test_a_run_seen_from_inside_and_after_it_was_killed(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    statuses: list[RunStatus] = []

    def dying(run: Path, node: Node, report_to: tuple[str, ...] = ()) -> FinishedNode:
        if node.kind != "defense":
            return execute(run, node)
        statuses.append(run_status(run))
        marks = {path: path.read_text() for path in (run / "running").iterdir()}
        monkeypatch.setattr("tamperfuse.records.plan.Path.unlink", lambda path: None)  # as after `kill -9`
        for path, text in marks.items():
            path.write_text(text.replace(f'"pid": {os.getpid()}', '"pid": 4194303'))
        raise Killed

    monkeypatch.setattr("tamperfuse.study.run.compute", dying)
    with pytest.raises(Killed):
        run_study(study, tmp_path / "run")
    [during] = statuses
    assert during.state == "running" and during.nodes.running == 1
    assert during.running[0].what == "refusal, seed 0" and during.running[0].checked
    assert during.kinds["defense"].left == 1 and during.seconds_left > 0
    after = run_status(tmp_path / "run")
    assert after.state == "stopped" and after.running == [] and after.interrupted == ["refusal, seed 0"]
    assert after.nodes.done == during.nodes.done and after.nodes.left == during.nodes.left + 1
    for arguments in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            main(["status", str(tmp_path / "run"), *arguments])
        assert not ended.value.code
        text = capsys.readouterr().out
        if arguments:
            assert json.loads(text)["nodes"]["done"] == after.nodes.done
        else:
            assert "Interrupted: refusal, seed 0" in text and "is stopped" in text and "left" in text


def test_a_folder_without_a_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no plan\.json"):
        run_status(tmp_path)
    write_plan(tmp_path, plan(planned("a")))
    assert read_plan(tmp_path) == plan(planned("a"))
    (tmp_path / "plan.json").write_text('{"schema": 0}')
    with pytest.raises(UserError, match="has schema 0, and this version reads schema 1"):
        run_status(tmp_path)


def test_work_of_another_process_with_the_same_number_does_not_go_on(tmp_path: Path) -> None:
    with marked_running(tmp_path, "a", "node a"):
        work = RunningWork.model_validate(read_json(tmp_path / "running" / "a.json"))
        assert work.goes_on()
        assert work.model_copy(update={"process_started": work.process_started - 60}).goes_on() is False
        assert work.model_copy(update={"host": "elsewhere"}).goes_on() is None
    assert not (tmp_path / "running").exists()


def test_time_left_follows_what_nodes_took() -> None:
    nodes = plan(planned("a"), planned("b"), planned("c", "judge", 1.0), planned("d"))
    assert seconds_left(nodes, {}, set(), {}) == 31
    assert seconds_left(nodes, {"a": 20}, {"a"}, {}) == 2 * 21, "twice as slow as estimated, whatever the kind"
    assert seconds_left(nodes, {"a": 20, "c": 1}, {"a", "c"}, {}) == 2 * 20
    assert seconds_left(nodes, {"a": 20}, {"a"}, {"b": 15.0}) == 5 + 2 + 20
    parallel = plan(*nodes.nodes, workers=2)
    assert seconds_left(parallel, {}, set(), {}) == 31, "workers share the machine that estimates are for"
    assert seconds_left(parallel, {"a": 20}, {"a"}, {}) == 21
    assert seconds_left(plan(planned("a"), planned("a")), {}, set(), {}) == 10, "two labels of one key run once"


def test_disk_left_counts_results_and_the_largest_running_nodes() -> None:
    nodes = [planned("a", disk=10, working=3), planned("b", disk=20, working=7), planned("c", disk=1, working=5)]
    assert disk_needed(nodes, set(), 1) == 31 + 7
    assert disk_needed(nodes, set(), 2) == 31 + 12
    assert disk_needed(nodes, {"b"}, 1) == 11 + 5


def test_a_log_has_a_line_a_minute(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(progress, "HEARTBEAT", 0.01)
    with progress.RunProgress(plan(planned("a"), planned("b")), ["a"]) as current:
        current.begin("b", "node b")
        deadline = time.monotonic() + 300
        while not (said := [line for line in caplog.messages if "node b" in line]) and time.monotonic() < deadline:
            time.sleep(0.01)  # the first line may say that no node runs yet
        assert re.fullmatch(r"\[1 of 2 nodes done; now: node b \(for [\w ]+\); about [\w ]+ left\]", said[0])
        current.finish("b", 1.0)
        assert current.text() == "2 of 2 nodes done; now: between two nodes; about 0 s left"
