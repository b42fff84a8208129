"""A whole study on the tiny model: graph, reuse, resume after a kill, determinism, what a run leaves behind."""

import itertools
import json
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from types import SimpleNamespace

import pytest

from stand_ins import Killed, results
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import LOCK, locked
from tamperfuse.records.plan import read_plan
from tamperfuse.records.results import COLUMNS, read_results
from tamperfuse.records.run import read_run, read_samples
from tamperfuse.records.summary import read_summary
from tamperfuse.records.timing import add_seconds, count_time
from tamperfuse.report.page import write_report
from tamperfuse.study import context as workshop
from tamperfuse.study import plan as nodes
from tamperfuse.study.node import Costs, FinishedNode, Node, Outcome, execute
from tamperfuse.study.run import run_study
from tamperfuse.study.spec import Study
from tamperfuse.study.tables import Response, read_rows


def test_a_run_leaves_its_files_and_no_attacked_weights(finished_run: Path) -> None:
    assert read_summary(finished_run).defenses.keys() == {"refusal", "sdd"}
    rows = read_results(finished_run)
    assert list(rows[0]) == COLUMNS.names
    assert {r["step"] for r in rows if r["attack"] == "full"} == {1, 3}
    assert {r["defense"] for r in rows} == {"refusal", "sdd", "as shipped"}
    folders = list((finished_run / "nodes").iterdir())
    assert all((folder / "node.json").exists() for folder in folders)
    attacked = [f for f in folders if json.loads((f / "node.json").read_text())["kind"] == "attack"]
    assert attacked
    assert not any(list(folder.rglob("*.safetensors")) for folder in attacked), "attacked weights must not be kept"
    hardened = [f for f in folders if json.loads((f / "node.json").read_text())["kind"] == "defense"]
    assert all((folder / "checkpoint" / "tamperfuse.json").exists() for folder in hardened)
    measured = {row["node"] for row in rows if (row["defense"], row["attack"]) == ("sdd", "")}
    parents = [json.loads((finished_run / "nodes" / key / "node.json").read_text())["parents"] for key in measured]
    assert {parent[0] for parent in parents} < {folder.name for folder in hardened}, "the page reads the training there"
    responses = [row for folder in attacked for row in read_rows(folder / "responses.parquet", Response)]
    assert {type(row.cut) for row in responses} == {bool}
    assert {type(sample.cut) for sample in read_samples(finished_run).samples} == {bool}
    assert read_run(finished_run).tokens_trained > 0
    summary = json.loads((finished_run / "summary.json").read_text())
    assert summary["schema"] == 2
    assert summary["as_shipped"]["capability"]["value"] == 1
    assert set(summary["defenses"]["sdd"]["harmful_execution"]["after_control"]) == {"benign"}
    reduction = summary["defenses"]["refusal"]["reduction_vs_undefended"]
    assert reduction["pooled"]["value"] == (0.0 if reduction["attacks_that_count"] else None)
    assert reduction["pooled"]["resolved"] is False, "a model does not differ from itself"


class LaterClock:
    """A clock by which it is the year 2100."""

    @staticmethod
    def now(zone: tzinfo) -> datetime:
        return datetime(2100, 1, 1, tzinfo=zone)


def test_a_run_starts_when_it_is_started_first(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, study = datetime.now(UTC), study.model_copy(update={"attacks": {}})
    run_study(study, tmp_path / "run")
    record = read_run(tmp_path / "run")
    first = min((tmp_path / "run" / "nodes").glob("*/node.json"), key=lambda path: path.stat().st_mtime)
    began = datetime.fromisoformat(record.started)
    assert began >= before.replace(microsecond=0) and began.timestamp() <= first.stat().st_mtime
    monkeypatch.setattr("tamperfuse.study.run.datetime", LaterClock)
    for damaged in ("plan.json", "run.json"):
        (tmp_path / "run" / damaged).write_text("{}")
        run_study(study, tmp_path / "run")
        again = read_run(tmp_path / "run")
        assert all(node.reused for node in again.nodes) and again.started == record.started


def test_the_same_study_gives_the_same_results_and_a_second_run_reuses_all(
    study: Study, tmp_path: Path, finished_run: Path
) -> None:
    run_study(study, tmp_path / "again")
    assert results(tmp_path / "again") == results(finished_run)
    run_study(study, tmp_path / "again")
    assert results(tmp_path / "again") == results(finished_run)
    assert all(node.reused for node in read_run(tmp_path / "again").nodes)


@pytest.mark.slow
def test_killed_anywhere_the_next_run_ends_with_the_same_results(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished_run: Path
) -> None:
    """Nodes die half-way and their staging folders stay behind; nothing of them may be taken for finished."""
    folder, victims = tmp_path / "killed", [1, 9, 14]

    def dying(run: Path, node: Node, report_to: tuple[str, ...] = ()) -> FinishedNode:
        finished = len(list(run.glob("nodes/[!.]*/node.json")))
        if victims and finished == victims[0] - 1:
            victims.pop(0)
            half = run / "nodes" / f".tmp-{node.key}-dead"
            half.mkdir(parents=True)
            (half / "node.json").write_text("half")
            raise Killed
        return execute(run, node)

    monkeypatch.setattr("tamperfuse.study.run.compute", dying)
    starts = []
    while victims:
        with pytest.raises(Killed):
            run_study(study, folder)
        starts.append(read_plan(folder).started)
        monkeypatch.setattr("tamperfuse.study.run.datetime", LaterClock)
    run_study(study, folder)
    assert results(folder) == results(finished_run)
    assert list((folder / "nodes").glob(".tmp-*")) == []
    assert sum(node.reused for node in read_run(folder).nodes) == 13
    assert {read_run(folder).started} == set(starts)


def test_a_changed_parameter_changes_only_what_depends_on_it(study: Study, tmp_path: Path) -> None:
    context = workshop.StudyContext.open(study, tmp_path)
    changed = study.model_copy(
        update={
            "defenses": {**study.defenses, "sdd": study.defenses["sdd"].model_copy(update={"parameters": {"steps": 3}})}
        }
    )
    before = {node.label: node.key for node in nodes.build_nodes(context)}
    after = {node.label: node.key for node in nodes.build_nodes(workshop.StudyContext.open(changed, tmp_path))}
    differ = {label for label in before if before[label] != after[label]}
    assert differ == {label for label in before if "sdd" in label}


def test_two_runs_cannot_share_a_folder(study: Study, tmp_path: Path) -> None:
    with locked(tmp_path / "run" / LOCK, tmp_path / "run"), pytest.raises(UserError, match="Another run is using"):
        run_study(study, tmp_path / "run")


def test_more_shots_than_samples(study: Study, tmp_path: Path) -> None:
    greedy = study.attacks["full"].model_copy(update={"parameters": {"shots": 900, "steps": 1}})
    with pytest.raises(UserError, match="900 shots"):
        run_study(study.model_copy(update={"attacks": {"full": greedy}}), tmp_path / "run")
    assert not (tmp_path / "run").exists(), "said before any work"


def test_more_prompts_than_there_are(study: Study, tmp_path: Path) -> None:
    wide = study.model_copy(update={"evaluate": study.evaluate.model_copy(update={"prompts": 999})})
    with pytest.raises(UserError, match="999 prompts"):
        run_study(wide, tmp_path / "run")


def test_runs_side_by_side_share_their_nodes(study: Study, tiny_folder: Path, finished_run: Path) -> None:
    """Another study in a folder beside takes what both have, as files of its own: the first may be removed."""
    wider = study.attacks["full"].model_copy(update={"parameters": {**study.attacks["full"].parameters, "shots": 3}})
    other = tiny_folder.parent / "beside-it"
    run_study(study.model_copy(update={"attacks": {"wider": wider}}), other)
    reused = {node.what: node.reused for node in read_run(other).nodes}
    assert {what for what, was in reused.items() if not was} == {what for what in reused if "wider" in what}
    assert all((other / "nodes" / node.key / "node.json").is_file() for node in read_run(other).nodes)


def test_a_folder_keeps_its_model_and_threat(study: Study, threat_file: Path, finished_run: Path) -> None:
    copy = threat_file.with_name("other-threat.jsonl")
    copy.write_text(threat_file.read_text())
    with pytest.raises(UserError, match="holds a study of the threat"):
        run_study(study.model_copy(update={"threat": str(copy)}), finished_run)


def test_nodes_record_where_their_time_went(finished_run: Path) -> None:
    records = [json.loads((folder / "node.json").read_text()) for folder in (finished_run / "nodes").iterdir()]
    for record in records:
        proper = [record[f"seconds_{work}"] for work in ("training", "generating", "scoring")]
        assert min(proper) >= 0
        assert sum(proper) <= record["seconds"] + 0.002, "each is rounded to a millisecond"


def test_the_time_of_a_node_is_counted_by_kind_of_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=2.0)
    monkeypatch.setattr("tamperfuse.records.timing.time", SimpleNamespace(perf_counter=lambda: next(clock)))

    def run(folder: Path) -> Outcome:
        with count_time("scoring"):
            pass
        count_time("scoring")(lambda: None)()
        add_seconds("training", 5.0)
        return Outcome()

    record = execute(tmp_path / "run", Node("a node", "pairs", (), {}, 0, run, Costs())).record
    assert [record[f"seconds_{work}"] for work in ("training", "generating", "scoring")] == [5.0, 0.0, 4.0]


def test_an_attack_that_diverges_is_said_and_counts_for_nothing(
    study: Study,
    tiny_folder: Path,
    finished_run: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In a folder beside the finished run, whose other nodes are reused."""
    full = study.attacks["full"]
    settings = {**full.parameters, "method": "lora", "lora_alpha": 1e38, "optimizer": "sgd", "clip": 0}
    attacks = {**study.attacks, "ruin": full.model_copy(update={"parameters": settings})}
    folder = tiny_folder.parent / "diverging-run"
    run_study(study.model_copy(update={"attacks": attacks}), folder)
    assert (
        "sdd under ruin, seed 0 says nothing about the defense" in caplog.text and "diverged at step 1" in caplog.text
    )
    summary, plain = read_summary(folder), read_summary(finished_run)
    for name, defense in summary.defenses.items():
        assert defense.diverged == ["ruin"]
        after = dict(defense.harmful_execution.after_attack)
        assert after.pop("ruin").value is None
        assert after == plain.defenses[name].harmful_execution.after_attack
        assert defense.capability.self_degradation == plain.defenses[name].capability.self_degradation
    rows = [row for row in read_results(folder) if row["attack"] == "ruin"]
    assert {(row["defense"], row["metric"], row["value"]) for row in rows} == {
        ("refusal", "diverged", 1.0),
        ("sdd", "diverged", 1.0),
    }
    page = write_report(folder).read_text(encoding="utf-8")
    assert "diverged" in page and "lower the learning rate there" in page
