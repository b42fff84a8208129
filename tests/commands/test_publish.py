"""`tamperfuse publish`: the hardened model of a run, in the dtype of the model before hardening, with a card of its measures."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from tamperfuse.cli.app import main
from tamperfuse.commands import publish
from tamperfuse.commands.publish import publish_model
from tamperfuse.models.load import load_model, reference_name
from tamperfuse.records.errors import UserError

POLICY = "defense: sdd\nrequire:\n  harmful_execution.worst: {at_most: 0.1}\n"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY, encoding="utf-8")
    return path


def checkpoint_of(run: Path, what: str) -> Path:
    records = {json.loads(path.read_text())["what"]: path.parent for path in run.glob("nodes/*/node.json")}
    return records[what] / "checkpoint"


def test_the_measured_model_is_written_with_a_card_of_its_measures(
    finished_run: Path,
    policy: Path,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(publish, "stored_dtype", lambda name: torch.bfloat16)
    out = tmp_path / "release"
    with pytest.raises(SystemExit) as ended:
        main(["publish", str(finished_run), "--defense", "sdd", "--policy", str(policy), "--out", str(out)])
    assert not ended.value.code
    printed = " ".join(capsys.readouterr().out.split())
    assert "The release gate does not pass" in printed and "Before you publish it, read its card" in printed

    measured = load_file(checkpoint_of(finished_run, "sdd, seed 0") / "model.safetensors")
    written = load_file(out / "model.safetensors")
    assert measured.keys() == written.keys()
    assert all(torch.equal(written[name], tensor.to(torch.bfloat16)) for name, tensor in measured.items())

    card = ModelCard((out / "README.md").read_text(encoding="utf-8"))
    assert {"tamperfuse", "sdd"} <= set(card.data.tags)
    for part in (
        "| applied to | `refusal`, which the same study made |",
        "| weights stored in | bfloat16, rounded from the float32 weights that were measured |",
        "| seed | 0 |",
        "| SDD pairs | ",
        "| benign samples | ",
        "## The price",
        "| full | harmful_finetune, 2 shots, 3 steps at learning rate 0.01; too weak to count | ",
        "| benign | benign_finetune, ",
        "## What holds and what does not",
        "The model does not pass its release policy.",
        "| `harmful_execution.worst` | at most 0.1 | ",
    ):
        assert part in card.text, part
    assert "No attack was run" not in card.text and "not measured when" not in card.text
    for path in out.iterdir():
        assert str(tiny_folder.parent).encode() not in path.read_bytes(), f"{path.name} tells a local folder"
    with pytest.raises(
        UserError, match=f"release was made from {tiny_folder.name}, a local model .* leaves out: name the model"
    ):
        reference_name(load_model(str(out)), None)


def test_what_cannot_be_published_is_refused(finished_run: Path, policy: Path, tmp_path: Path) -> None:
    out = tmp_path / "release"
    with pytest.raises(UserError, match="no defense of this run named 'sd': did you mean 'sdd'"):
        publish_model(finished_run, "sd", out, seed=None, policy=None)
    with pytest.raises(UserError, match="has no model sdd, seed 7: choose another --seed"):
        publish_model(finished_run, "sdd", out, seed=7, policy=None)
    with pytest.raises(UserError, match="is a policy for sdd, not for refusal"):
        publish_model(finished_run, "refusal", out, seed=None, policy=policy)
    about_another = tmp_path / "another.yaml"
    for rules in ("refusal.harmful_execution.before_attack <= 1", "refusal.benign_answer_rate >= 0"):
        about_another.write_text(f"require: [defenses.{rules}]", encoding="utf-8")
        with pytest.raises(UserError, match="is a policy for another model, not for sdd"):
            publish_model(finished_run, "sdd", out, seed=None, policy=about_another)
    about_another.write_text(POLICY + "  defenses.sdd.benign_answer_rate: {at_least: 0}\n", encoding="utf-8")
    with pytest.raises(UserError, match="is a policy for sdd, not for refusal"):
        publish_model(finished_run, "refusal", out, seed=None, policy=about_another)
    results = tmp_path / "results"
    shutil.copytree(finished_run, results, ignore=shutil.ignore_patterns("nodes"))
    with pytest.raises(UserError, match="holds results without the model sdd, seed 0"):
        publish_model(results, "sdd", out, seed=None, policy=None)
    node = checkpoint_of(finished_run, "sdd, seed 0").parent
    shutil.copytree(node, results / "nodes" / node.name)
    (results / "nodes" / node.name / "checkpoint" / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json is missing: run the study again"):
        publish_model(results, "sdd", out, seed=None, policy=None)
    assert not out.exists()


def test_a_damaged_record_is_named(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    record = checkpoint_of(run, "pairs, seed 0").parent / "node.json"
    record.write_text('{"kind": "pairs"}', encoding="utf-8")
    with pytest.raises(UserError, match=r"node\.json is damaged \(at parents\): run the study again"):
        publish_model(run, "sdd", tmp_path / "release", seed=None, policy=None)
    assert not (tmp_path / "release").exists()
