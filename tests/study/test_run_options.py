"""--only, --dry-run, --disk, and what a changed `at_steps` costs."""

import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
from safetensors.torch import load_file, save_file

from stand_ins import results
from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.models.fingerprint import model_fingerprint
from tamperfuse.records.errors import UserError
from tamperfuse.records.plan import PlannedNode
from tamperfuse.study.context import StudyContext
from tamperfuse.study.disk import DiskCeiling
from tamperfuse.study.estimates import Costs
from tamperfuse.study.node import Node, Outcome
from tamperfuse.study.remaining import disk_needed, resume_bytes
from tamperfuse.study.run import run_study
from tamperfuse.study.selection import select_nodes
from tamperfuse.study.spec import Study, parse_study


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
    assert select_nodes(nodes, [d.label]) == [a, c, d], "brackets in a label are no pattern"
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


@pytest.mark.parametrize("name", ["prompts", "curve_prompts", "dev_prompts"])
def test_more_prompts_than_the_threat_has_are_refused(study: Study, tmp_path: Path, name: str) -> None:
    evaluate = study.evaluate.model_copy(update={name: 7})
    with pytest.raises(UserError, match=rf"needs 7 prompts of the part .* has 6: lower `{name}` in `evaluate`"):
        run_study(study.model_copy(update={"evaluate": evaluate}), tmp_path / "run", dry_run=True)


def test_fewer_harmless_prompts_and_documents_than_asked_for_are_said(
    study: Study, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_study(study, tmp_path / "run", dry_run=True)
    assert not [message for message in caplog.messages if message.startswith("The study asks for")]
    evaluate = study.evaluate.model_copy(update={"harmless": 9_000, "heldout": 9_001})
    run_study(study.model_copy(update={"evaluate": evaluate}), tmp_path / "run", dry_run=True)
    harmless, heldout = (message for message in caplog.messages if message.startswith("The study asks for"))
    count = len(builtin_rows("harmless"))
    assert harmless == (
        f"The study asks for 9000 harmless prompts outside the threat (`harmless`); there are {count}, which are all used."
    )
    assert "9001 held-out documents (`heldout`); there are 284," in heldout


def test_near_duplicates_in_different_parts_are_said(
    study: Study, tmp_path: Path, threat_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings(threat: Path) -> list[str]:
        caplog.clear()
        run_study(study.model_copy(update={"threat": str(threat)}), tmp_path / "run", dry_run=True)
        return [message for message in caplog.messages if "Near-duplicates" in message]

    rows = [json.loads(line) for line in threat_file.read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows):
        row["prompt"] = " ".join(f"{word}{number}" for word in row["prompt"].split())
    distinct, shared = tmp_path / "distinct.jsonl", tmp_path / "shared.jsonl"
    distinct.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert warnings(distinct) == []
    words = " ".join(f"word{number}" for number in range(13))
    more = [{"part": part, "prompt": f"{part}: {words}"} for part in ("attacker", "evaluation")]
    shared.write_text("\n".join(map(json.dumps, rows + more)), encoding="utf-8")
    (warning,) = warnings(shared)
    assert (
        f"different parts of {shared}: 1, such as 'evaluation: word0 " in warning
        and "' and 'attacker: word0" in warning
    )
    unnamed = tmp_path / "unnamed.jsonl"
    rows += more
    unnamed.write_text(
        "\n".join(json.dumps({"prompt": f"{row['prompt']} {i}"}) for i, row in enumerate(40 * rows)), encoding="utf-8"
    )
    assert warnings(unnamed) == [], "a file without parts is split without near-duplicates"


def test_a_run_that_would_exceed_its_disk_ceiling_does_not_start(study: Study, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"The run would take up to .* more than --disk allows"):
        run_study(study, tmp_path / "run", disk=0.001)
    assert not (tmp_path / "run").exists()


def test_results_of_neighbouring_runs_count_for_the_disk_ceiling(
    study: Study, tmp_path: Path, finished_run: Path
) -> None:
    """They count once the run has them, so a run that starts could not be resumed otherwise."""
    shutil.copytree(finished_run / "nodes", tmp_path / "other" / "nodes")
    (last,) = (
        path.parent
        for path in (tmp_path / "other" / "nodes").glob("*/node.json")
        if "judge sdd under full" in path.read_text()
    )
    shutil.rmtree(last)
    with pytest.raises(UserError, match="come from neighbouring runs"):
        run_study(study, tmp_path / "run", disk=0.0042)  # 4 MB for the node that is left, and those of the others


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
    start = "`at_steps` or `capability_at` has changed, so"
    [warning] = [message for message in caplog.messages if message.startswith(start)]
    assert warning.startswith(f"{start} 2 attacks with results")
    caplog.clear()
    run_study(study, finished_run, dry_run=True)
    more = study.attacks["full"].model_copy(update={"parameters": {**study.attacks["full"].parameters, "shots": 3}})
    run_study(study.model_copy(update={"attacks": {"full": more}}), finished_run, dry_run=True)
    assert not [message for message in caplog.messages if message.startswith(start)]


def test_a_place_in_a_study_has_no_names_of_types() -> None:
    values = {
        "model": "m",
        "threat": "t",
        "defenses": {"str": {"defense": "refusal"}},
        "evaluate": {"capability_items": 0},
    }
    with pytest.raises(UserError, match=r"evaluate\.capability_items is 0, which cannot be used"):
        parse_study(values, "study.yaml")


def test_a_hub_model_that_changes_while_a_run_goes_on_is_not_loaded(
    study: Study, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--acme--tiny"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (repository / "refs").mkdir(parents=True)
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(tiny_folder, repository / "snapshots" / commit)
    (repository / "refs" / "main").write_text("a" * 40)
    context = StudyContext.open(study.model_copy(update={"model": "acme/tiny"}), tmp_path / "run")
    assert context.reference().name == "acme/tiny"
    context.free_reference()
    (repository / "refs" / "main").write_text("b" * 40)
    with pytest.raises(UserError, match="acme/tiny has changed since this run began"):
        context.reference()
    with pytest.raises(UserError, match="acme/tiny has changed since this run began"), context.model("acme/tiny"):
        pass


def test_a_local_model_that_is_saved_again_while_a_run_goes_on_is_not_loaded(
    study: Study, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    context = StudyContext.open(study.model_copy(update={"model": str(folder)}), tmp_path / "run")
    hashed = Mock(wraps=model_fingerprint)
    monkeypatch.setattr("tamperfuse.study.context.model_fingerprint", hashed)
    with context.model(str(folder)):
        assert hashed.call_count == 0, "its weights are not read twice at each load"
    (folder / "model.safetensors").touch()
    for _ in range(2):
        with context.model(str(folder)):
            assert hashed.call_count == 1, "the same weights, with another time"
    weights = load_file(folder / "model.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="model has changed since this run began"), context.model(str(folder)):
        pass
    with pytest.raises(UserError, match="model has changed since this run began"):
        context.reference()


def test_a_run_with_nothing_left_is_not_refused_for_its_disk(study: Study, tmp_path: Path, finished_run: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    assert run_study(study, tmp_path / "run", disk=1e-6) is not None


def test_a_limit_that_just_fits_a_run_lets_it_resume(tmp_path: Path) -> None:
    """What an interrupted node resumes from is a part of what it needs while it runs."""
    first, second = (
        PlannedNode(key=key, what=key, kind="attack", parents=[], seconds=1.0, disk=100, working=1000) for key in "ab"
    )

    a = Mock(key="a")

    def state(size: int) -> None:
        (tmp_path / "unfinished" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "unfinished" / "a" / "state").write_bytes(bytes(size))

    def needed() -> int:
        return disk_needed([first], set(), 1, resume_bytes(tmp_path))

    assert needed() == 1100
    DiskCeiling(tmp_path, 1100).check_plan(1100)
    state(800)
    assert needed() == 300
    with pytest.raises(UserError, match="more than --disk allows"):
        DiskCeiling(tmp_path, 1099).check_plan(needed())
    ceiling = DiskCeiling(tmp_path, 1100)
    ceiling.check_plan(needed())
    ceiling.begin(first)
    assert not ceiling.fits(second)
    state(900)
    ceiling.cancel(a)  # its worker died
    ceiling.begin(first)
    shutil.rmtree(tmp_path / "unfinished")
    (tmp_path / "nodes" / "a").mkdir(parents=True)
    (tmp_path / "nodes" / "a" / "result").write_bytes(bytes(100))
    ceiling.end(a)
    assert not ceiling.fits(second), "100 bytes are used, and 1,100 more are needed"
    assert ceiling.fits(second.model_copy(update={"disk": 0}))
