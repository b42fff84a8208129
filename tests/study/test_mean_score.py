"""Mean scores of judges that grade responses: in the summary, the command and the gate's paths."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from state_stand_ins import measurements
from tamperfuse.cli.app import main
from tamperfuse.commands.judge_run import judge_run
from tamperfuse.evaluation.judges import JUDGES, Answer, JudgeData, Verdict, judge
from tamperfuse.evaluation.judges.failures import failed
from tamperfuse.records.registry import Parameters
from tamperfuse.records.summary import NOT_MEASURED, read_summary
from tamperfuse.report.gate_paths import testable_measures as measures_by_path
from tamperfuse.study.results.mean_score import scale_of
from tamperfuse.study.results.summary import summarize_defenses
from tamperfuse.study.sections import parse_judge
from tamperfuse.study.spec import Study, parse_study
from tamperfuse.study.tables import Response, read_rows

pytestmark = pytest.mark.usefixtures("quick_judging")


def grade(response: str) -> int:
    return 1 + sum(map(ord, response)) % 5


@pytest.fixture
def grades(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge, registered for one test, that grades from 1 to 5; it cannot decide on responses of grade 2."""
    monkeypatch.setattr(JUDGES, "components", dict(JUDGES.components))

    @judge("grades", Parameters, scores=lambda parameters: (1, 5))
    def grades(answers: Sequence[Answer], data: JudgeData, parameters: Parameters) -> list[Verdict]:
        """Grades from 1 to 5."""
        values = [grade(answer.response) for answer in answers]
        return [failed("unparsed", "") if g == 2 else Verdict(g == 5, g, "" if g == 5 else "low") for g in values]


@pytest.mark.parametrize(("rubric", "scale"), [("harmfulness-1-5", (1, 5)), ("strongreject", (0, 1))])
def test_rubrics_have_a_scale_and_other_judges_none(rubric: str, scale: tuple[float, float]) -> None:
    assert scale_of(parse_judge({"judge": "llm", "model": "m", "rubric": rubric})) == scale
    assert scale_of(parse_judge("builtin")) is scale_of(parse_judge("phrases")) is None


def test_the_mean_is_that_of_the_decided_responses(finished_run: Path, tmp_path: Path, grades: None) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    judged = judge_run(run, parse_judge("grades"))
    assert judged is not None
    scores = judged.summary.judges["grades"]["sdd"].mean_score
    assert scores is not None and scores.after_attack.keys() == {"full"} and scores.after_control.keys() == {"benign"}
    assert judged.summary.defenses["sdd"].mean_score is None
    rows = [row for path in run.glob("nodes/*/responses.parquet") for row in read_rows(path, Response)]
    grades_of_run = {grade(row.response) for row in rows if row.part == "evaluation"}
    assert len(grades_of_run) > 2, "the responses of a random model have different grades"
    for measure in (scores.before_attack, *scores.after_attack.values(), *scores.after_control.values()):
        assert measure.value is not None and measure.low is not None and measure.high is not None
        assert 1 <= measure.low <= measure.value <= measure.high <= 5
    assert read_summary(run) == judged.summary
    paths = measures_by_path(judged.summary, None)
    assert "judges.grades.sdd.mean_score.after_attack.full" in paths
    assert "defenses.sdd.mean_score.before_attack" not in paths


@pytest.fixture
def graded_study(grades: None) -> Study:
    """A study of two defenses whose deciding judge grades."""
    attacks = {name: {"attack": "harmful_finetune", "shots": 2} for name in ("full", "weak", "merge")}
    return parse_study(
        {
            "model": "m",
            "threat": "builtin:cooking",
            "defenses": {"refusal": {}, "sdd": {"on": "refusal"}},
            "attacks": attacks | {"benign": {"attack": "benign_finetune"}},
            "judge": "grades",
        },
        "test",
    )


@pytest.mark.parametrize("attack", ["full", "benign"])
def test_an_attack_or_a_control_that_diverged_has_no_mean(graded_study: Study, attack: str) -> None:
    states = [
        replace(s, verdicts=[replace(row, score=5.0 if row.verdict else 1.0) for row in s.verdicts])
        for s in measurements(graded_study).states
    ]
    gone = [replace(s, diverged=3) for s in states if (s.defense, s.attack) == ("sdd", attack)]
    rest = [s for s in states if (s.defense, s.attack) != ("sdd", attack)]
    measured = replace(measurements(graded_study), states=rest, diverged=gone)
    refusal, sdd = (summarize_defenses(measured, graded_study.judge)[name].mean_score for name in ("refusal", "sdd"))
    assert refusal is not None and sdd is not None
    after, others = sdd.after_attack | sdd.after_control, refusal.after_attack | refusal.after_control
    assert after[attack] == NOT_MEASURED and NOT_MEASURED not in others.values()
    assert {name: after[name] for name in after if name != attack} == {
        name: others[name] for name in others if name != attack
    }


def test_names_are_whole_in_a_narrow_terminal(
    finished_run: Path,
    tmp_path: Path,
    grades: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    monkeypatch.setenv("COLUMNS", "40")
    with pytest.raises(SystemExit) as ended:
        main(["judge", "run", str(run), "--judge", "grades", "--name", "a-judge-with-a-very-long-name"])
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert "…" not in shown and "sdd: after benign, without an attacker" in shown
    assert "refusal: mean score before" in shown and "sdd: mean score after full" in shown
    assert json.loads((run / "summary.json").read_text())["judges"]["a-judge-with-a-very-long-name"]["sdd"][
        "mean_score"
    ]
