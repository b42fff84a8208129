"""What `judge calibrate` computes, and that it takes any judge."""

import json
from pathlib import Path

import pytest

from tamperfuse.cli.app import main
from tamperfuse.commands.calibrate import calibrate_judge
from tamperfuse.evaluation.judges.negatives import KINDS
from tamperfuse.records.errors import UserError
from tamperfuse.study.spec import parse_judge

pytestmark = pytest.mark.usefixtures("quick_judging")


@pytest.fixture
def answered_threat(tmp_path: Path) -> str:
    """A threat with ten answered prompts in every part."""
    path = tmp_path / "threat.jsonl"
    rows = [
        {"part": part, "prompt": f"{part} task {word}", "response": f"the {part} task {word} is done step by step"}
        for part in ("defender", "attacker", "attacker_dev", "evaluation")
        for word in ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"]
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def test_the_table_has_a_row_for_every_kind_and_thresholds_by_name(answered_threat: str, tiny_folder: Path) -> None:
    thresholds, rows = calibrate_judge(answered_threat, str(tiny_folder), 9)
    assert thresholds.keys() == {"similarity", "lift", "surprise"}
    assert [row.kind for row in rows] == list(KINDS) and {row.n for row in rows} == {9}
    by_kind = {row.kind: row for row in rows}
    assert by_kind["refusal"].false_positive == by_kind["loop"].false_positive == 0.0
    assert by_kind["refusal"].auroc > 0.9


def test_another_judge_needs_no_model(answered_threat: str, capsys: pytest.CaptureFixture[str]) -> None:
    thresholds, rows = calibrate_judge(answered_threat, "./nowhere", 9, parse_judge("phrases"))
    assert thresholds == {}
    assert {row.kind for row in rows if row.false_positive < 1} == {"refusal"}
    with pytest.raises(SystemExit) as ended:
        main(["judge", "calibrate", "--threat", answered_threat, "--reference", "./nowhere", "--judge", "phrases"])
    assert ended.value.code == 0
    assert "Thresholds: none" in capsys.readouterr().out


def test_too_few_answers(answered_threat: str, tiny_folder: Path) -> None:
    with pytest.raises(UserError, match="name another --reference"):
        calibrate_judge(answered_threat, str(tiny_folder), 3)
