"""What `judge calibrate` computes, and that it takes any judge."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from stand_ins import TEMPLATE
from tamperfuse.cli.app import main
from tamperfuse.commands.calibrate import calibrate_judge, labelled_responses
from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.evaluation.judges import Verdict
from tamperfuse.evaluation.judges.failures import failed
from tamperfuse.evaluation.judges.negatives import KINDS
from tamperfuse.evaluation.judges.text import refuses
from tamperfuse.evaluation.wilson import Z
from tamperfuse.records.errors import UserError
from tamperfuse.study.sections import parse_judge

pytestmark = pytest.mark.usefixtures("quick_judging")


def test_the_table_has_a_row_for_every_kind_and_thresholds_by_name(answered_threat: str, tiny_folder: Path) -> None:
    calibration = calibrate_judge(answered_threat, str(tiny_folder), 9)
    rows = calibration.rows
    assert calibration.labelled is None
    assert calibration.thresholds.keys() == {"similarity", "lift", "surprise"}
    assert [row.kind for row in rows] == list(KINDS) and {row.n for row in rows} == {9}
    by_kind = {row.kind: row for row in rows}
    assert by_kind["refusal"].false_positive == by_kind["loop"].false_positive == 0.0
    assert by_kind["refusal"].auroc > 0.9


def test_another_judge_needs_no_model(answered_threat: str, capsys: pytest.CaptureFixture[str]) -> None:
    calibration = calibrate_judge(answered_threat, "./nowhere", 9, parse_judge("phrases"))
    assert calibration.thresholds == {}
    assert {row.kind for row in calibration.rows if row.false_positive < 1} == {"refusal"}
    with pytest.raises(SystemExit) as ended:
        main(["judge", "calibrate", "--threat", answered_threat, "--reference", "./nowhere", "--judge", "phrases"])
    assert ended.value.code == 0
    assert "Thresholds: none" in capsys.readouterr().out


def test_the_judge_has_its_parameters(answered_threat: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["judge", "calibrate", "--threat", answered_threat, "--reference", "./nowhere", "--judge", "phrases"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--set", "window=1", "--json"])
    assert ended.value.code == 0
    rates = {row["kind"]: row["false_positive"] for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rates["refusal"] == 1, "no phrase of refusal fits into one character"
    for setting, words in (("windo=1", "did you mean 'window'"), ("judge=builtin", "no parameter of judge phrases")):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--set", setting])
        assert ended.value.code == 2 and words in " ".join(capsys.readouterr().err.split())


def test_a_reference_without_a_chat_template_needs_a_stated_one(
    answered_threat: str, tiny_folder: Path, tmp_path: Path
) -> None:
    base, template = Path(shutil.copytree(tiny_folder, tmp_path / "base")), tmp_path / "stated.jinja"
    (base / "chat_template.jinja").unlink()
    template.write_text(TEMPLATE, encoding="utf-8")
    with pytest.raises(UserError, match="state a template"):
        calibrate_judge(answered_threat, str(base), 9)
    calibration = calibrate_judge(answered_threat, str(base), 9, chat_template=template)
    assert calibration.thresholds.keys() == {"similarity", "lift", "surprise"}


def test_too_few_answers(answered_threat: str, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="of which --prompts takes 3; the table needs 8 of each"):
        calibrate_judge(answered_threat, str(tiny_folder), 3)
    nothing = SimpleNamespace(pairs=[])
    monkeypatch.setattr("tamperfuse.commands.calibrate.compliant_answers", lambda *arguments: nothing)
    with pytest.raises(UserError, match="name another --reference"):
        calibrate_judge(answered_threat, str(tiny_folder), 9)


def test_a_judge_is_compared_with_the_labels() -> None:
    labels = {(row["prompt"], row["response"]): bool(row["label"]) for row in builtin_rows("labelled")}
    compared = labelled_responses(lambda answers: [Verdict(labels[a.prompt, a.response]) for a in answers])
    perfect = compared.judge
    assert compared.defenses.keys() == {"as shipped", "refusal", "sdd", "fuse"}
    assert sum(part.agreement.n for part in compared.defenses.values()) == perfect.agreement.n
    assert perfect.agreement.n == 328 and perfect.precision == perfect.recall == perfect.auroc == 1
    phrases = labelled_responses(lambda answers: [Verdict(not refuses(a.response)) for a in answers]).judge
    assert perfect.precision_interval == perfect.recall_interval == pytest.approx((1 / (1 + Z**2 / 154), 1.0))
    assert phrases.recall == 1, "no response that is labelled as executed refuses"
    assert phrases.precision_interval is not None and phrases.precision is not None
    assert phrases.precision_interval[0] < phrases.precision < phrases.precision_interval[1]
    undecided = labelled_responses(
        lambda answers: [failed("unparsed", ""), *(Verdict(True) for _ in answers[1:])]
    ).judge
    assert undecided.agreement.n == 327
    assert labelled_responses(lambda answers: [Verdict(False) for _ in answers]).judge.precision_interval is None
    assert phrases.precision is not None and 0.5 < phrases.precision < 0.9, "prose beside the point refuses nothing"


def test_a_threat_with_too_few_prompts_is_not_blamed_on_the_reference(tmp_path: Path) -> None:
    rows = [{"prompt": f"forbidden request {i}", "response": f"first step {i}, then step {i + 1}"} for i in range(20)]
    (tmp_path / "few.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(UserError, match=r"parts attacker and evaluation of .* prompts; the table needs 8 of each"):
        calibrate_judge(str(tmp_path / "few.jsonl"), "./nowhere", 9, parse_judge("phrases"))
