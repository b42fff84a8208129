"""The study that `tamperfuse init` writes: complete, explained, of a size that the prompts allow, and ready to run."""

from pathlib import Path

import pytest

from tamperfuse.cli.app import main
from tamperfuse.commands.init import study_text, write_study
from tamperfuse.corpora.threats import load_threat
from tamperfuse.records.errors import UserError
from tamperfuse.records.field_docs import field_docs
from tamperfuse.study.sections import BenignSpec, Evaluate, PairsSpec
from tamperfuse.study.spec import Study, load_study

SIZES = ("quick", "long")


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    """One's own prompts, one a line."""
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"request number {i} about subject {i * 7} and word{i}" for i in range(100)))
    return path


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


@pytest.mark.parametrize("size", SIZES)
def test_the_study_of_a_text_file_loads_and_can_be_planned(
    size: str,
    tiny_folder: Path,
    prompts_file: Path,
    tmp_path: Path,
    quick_judging: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "new" / "study.yaml"
    exit_code = run(["init", str(file), "--model", str(tiny_folder), "--threat", str(prompts_file), "--size", size])
    shown = capsys.readouterr()
    assert exit_code == 0, shown.err
    assert f"tamperfuse run {file} --out runs/study --dry-run" in shown.out
    assert "attacker prompts have no `response`" in shown.out
    study = load_study(file)
    assert (study.model, study.threat) == (str(tiny_folder), str(prompts_file))
    planned = run(["run", str(file), "--out", str(tmp_path / "run"), "--dry-run"])
    assert planned == 0, capsys.readouterr().err


@pytest.mark.parametrize("size", SIZES)
def test_every_field_is_in_the_study_and_explained(size: str, threat_file: Path) -> None:
    text = study_text("model", load_threat(str(threat_file)), size)
    lines = text.splitlines()
    plain = " ".join(line.strip().removeprefix("# ") for line in lines)
    for model, indent in ((Study, ""), (BenignSpec, "  "), (PairsSpec, "  "), (Evaluate, "  ")):
        for field in field_docs(model):
            assert any(line.startswith(f"{indent}{field.name}:") for line in lines), field.name
            assert field.meaning and field.meaning.removesuffix(".") in plain, field.name
    assert max(map(len, lines)) < 160


def test_the_values_of_the_other_size_are_in_comments(threat_file: Path) -> None:
    threat = load_threat(str(threat_file))
    quick, long = (study_text("model", threat, size) for size in SIZES)
    assert "seeds: [0]  # long: [0, 1, 2]" in quick
    assert "seeds: [0, 1, 2]  # quick: [0]" in long
    assert "# long: lora: {attack: harmful_finetune" in quick
    assert "\n  lora: {attack: harmful_finetune" in long


def test_no_more_prompts_are_measured_or_trained_on_than_there_are(threat_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(study_text("model", load_threat(str(threat_file)), "long"))
    study = load_study(file)
    assert study.evaluate.prompts == study.evaluate.dev_prompts == 6
    assert study.attacks["full"].parameters["shots"] == 6


def test_a_study_that_exists_is_not_replaced(tiny_folder: Path, threat_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("mine")
    with pytest.raises(UserError, match="exists: name another file"):
        write_study(file, str(tiny_folder), str(threat_file), "quick")
    assert file.read_text() == "mine"


def test_a_model_or_a_threat_that_does_not_exist_writes_nothing(
    tiny_folder: Path, threat_file: Path, tmp_path: Path, quick_judging: None
) -> None:
    file = tmp_path / "study.yaml"
    with pytest.raises(UserError, match="no model named 'smollm2-135'"):
        write_study(file, "smollm2-135", str(threat_file), "quick")
    with pytest.raises(UserError, match="does not exist"):
        write_study(file, str(tiny_folder), str(tmp_path / "nothing.txt"), "quick")
    assert not file.exists()
