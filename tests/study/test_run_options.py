"""--only, --dry-run, --disk, and what a changed `at_steps` costs."""

import logging
from pathlib import Path

import pytest

from stand_ins import results
from tamperfuse.records.errors import UserError
from tamperfuse.study.estimates import Costs
from tamperfuse.study.node import Node, Outcome
from tamperfuse.study.run import run_study
from tamperfuse.study.selection import select_nodes
from tamperfuse.study.spec import Study


def node(label: str, *parents: Node) -> Node:
    return Node(label, "pairs", parents, {"label": label}, 0, lambda folder: Outcome(), Costs())


def test_only_selects_matching_nodes_with_all_that_they_depend_on() -> None:
    a = node("answers")
    b, c = node("refusal, seed 0", a), node("sdd, seed 0", a)
    d = node("sdd under [full], seed 0", c)
    nodes = [a, b, c, d]
    assert select_nodes(nodes, []) == nodes
    assert [n.label for n in select_nodes(nodes, ["sdd under*"])] == [a.label, c.label, d.label]
    assert [n.label for n in select_nodes(nodes, ["refusal*", "answers"])] == [a.label, b.label]
    with pytest.raises(UserError, match="nearest is 'refusal, seed 0'"):
        select_nodes(nodes, ["refusl, seed 0"])


def test_a_part_of_a_study_then_all_of_it(
    study: Study, tmp_path: Path, finished_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    assert run_study(study, out, only=["sdd under full*"]) is None
    records = [path.read_text() for path in (out / "nodes").glob("*/node.json")]
    assert any('"sdd under full, seed 0"' in text for text in records)
    assert not any("under benign" in text for text in records)
    assert "run the study without --only to write the results" in caplog.text
    assert not (out / "summary.json").exists()
    assert run_study(study, out) is not None
    assert results(out) == results(finished_run)


def test_a_dry_run_says_hours_and_disk(study: Study, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_study(study, tmp_path / "run", dry_run=True)
    [budget] = [message for message in caplog.messages if message.startswith("Budget")]
    assert " min on this machine" in budget or " s on this machine" in budget
    assert "GB on disk" in budget


def test_a_run_that_would_exceed_its_disk_ceiling_does_not_start(study: Study, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"The run would take up to .* more than --disk allows"):
        run_study(study, tmp_path / "run", disk=0.001)
    assert not (tmp_path / "run").exists()


def test_a_run_stops_before_its_disk_ceiling_is_exceeded(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished_run: Path
) -> None:
    """Results that are larger than estimated are noticed before the next node starts; finished work stays."""
    monkeypatch.setattr("tamperfuse.study.disk.TABLES", 1_000)
    monkeypatch.setattr("tamperfuse.study.run.disk_needed", lambda *_: 0)
    out = tmp_path / "run"
    with pytest.raises(UserError, match=r"The run stops before .* finished work stays; raise --disk"):
        run_study(study, out, disk=0.002)
    finished = list((out / "nodes").glob("*/node.json"))
    assert finished
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) < 2_000_000
    run_study(study, out)
    assert results(out) == results(finished_run)


def test_changed_steps_say_that_attacks_run_again(
    study: Study, finished_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = study.model_copy(update={"evaluate": study.evaluate.model_copy(update={"at_steps": (0, 1, 2, 3)})})
    run_study(other, finished_run, dry_run=True)
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("`at_steps` or `capability_at` has changed, so 2 attacks with results")
    caplog.clear()
    run_study(study, finished_run, dry_run=True)
    more = study.attacks["full"].model_copy(update={"parameters": {**study.attacks["full"].parameters, "shots": 3}})
    run_study(study.model_copy(update={"attacks": {"full": more}}), finished_run, dry_run=True)
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]
