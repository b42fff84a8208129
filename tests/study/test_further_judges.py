"""Further judges: in a study, and on the responses of a finished run; agreement between them."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from command_stand_ins import output
from stand_ins import results
from tamperfuse.commands.judge_compare import compare_judges, read_labels
from tamperfuse.commands.judge_run import judge_run
from tamperfuse.evaluation.agreement import against_labels, agreement, disagreement
from tamperfuse.evaluation.judges import JUDGES, Answer, JudgeData, Verdict, judge
from tamperfuse.evaluation.judges.failures import failed
from tamperfuse.evaluation.wilson import wilson
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import read_json
from tamperfuse.records.registry import Parameters
from tamperfuse.records.results import read_results
from tamperfuse.records.run import read_run
from tamperfuse.records.summary import read_summary
from tamperfuse.records.yaml import read_yaml
from tamperfuse.study.context import StudyContext
from tamperfuse.study.further_judges import OBSERVED
from tamperfuse.study.plan import build_nodes
from tamperfuse.study.recorded import read_recorded
from tamperfuse.study.results.load import StudyMeasurements
from tamperfuse.study.results.measurements import Measurements
from tamperfuse.study.results.rows import ATTACK_COST, CHOSEN_STEP
from tamperfuse.study.run import run_study
from tamperfuse.study.sections import parse_judge
from tamperfuse.study.spec import Study, load_study, parse_study
from tamperfuse.study.tables import Response, VerdictRow, read_rows

pytestmark = pytest.mark.usefixtures("quick_judging")


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run whose files a test may change."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def is_odd(response: str) -> bool:
    return sum(map(ord, response)) % 2 == 1


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge `odd`, registered for one test, whose verdicts are as good as random; it cannot decide on empty responses."""
    monkeypatch.setattr(JUDGES, "components", dict(JUDGES.components))

    @judge("odd", Parameters)
    def odd(answers: Sequence[Answer], data: JudgeData, parameters: Parameters) -> list[Verdict]:
        """Responses whose characters have an odd sum."""
        texts = [answer.response for answer in answers]
        verdicts = {text: Verdict(is_odd(text), float(is_odd(text)), "" if is_odd(text) else "even") for text in texts}
        return [verdicts[text] if text else failed("unparsed", "") for text in texts]


def changed(study: Study, **values: Any) -> Study:
    return parse_study({**study.model_dump(mode="json"), **values}, "test")


def with_search(study: Study, **values: Any) -> Study:
    search = {
        "attack": "harmful_finetune",
        "steps": 2,
        "shots": 2,
        "batch": 2,
        "search": {"trials": 2, "over": {"learning_rate": [1e-5, 1e-3]}},
    }
    return changed(study, attacks={"search": search}, **values)


def test_further_judges_decide_nothing_and_have_the_same_measures(
    study: Study, finished_run: Path, tmp_path: Path, odd: None
) -> None:
    run = tmp_path / "run"
    summary = run_study(changed(study, judges={"odd": {}, "phrases": None}), run)
    assert summary is not None and list(summary.judges) == ["odd", "phrases"]
    rows = read_results(run)
    assert [row for row in rows if row["judge"] in ("", study.judge.judge)] == read_results(finished_run)
    by_judge = Counter((row["judge"], row["metric"]) for row in rows if row["judge"] != "")
    for metric in ("harmful_execution", "benign_answer_rate", CHOSEN_STEP, ATTACK_COST):
        assert by_judge["odd", metric] == by_judge["phrases", metric] == by_judge[study.judge.judge, metric] > 0
    assert summary.defenses == read_summary(finished_run).defenses
    for judged in summary.judges.values():
        assert judged.keys() == summary.defenses.keys()
        for name, defense in judged.items():
            assert defense.capability == summary.defenses[name].capability
            assert defense.harmful_execution.after_attack.keys() == {"full"}
    phrases, random = (summary.judges[name]["sdd"].harmful_execution for name in ("phrases", "odd"))
    assert phrases.before_attack.value == 1.0, "random words contain no refusal phrase"
    assert random != phrases
    resolved = load_study(run / "study.yaml")
    recorded = read_recorded(run, resolved)
    measured = StudyMeasurements.from_nodes(resolved, [*recorded.observed, *recorded.judged, *recorded.further])
    first, second = (one.of("sdd", "full")[0] for one in (measured, measured.further["odd"]))
    assert first.chosen_step == second.chosen_step == second.decided_step
    assert [row.verdict for row in first.verdicts] != [row.verdict for row in second.verdicts]


def test_an_attacker_stops_where_the_first_judge_decides() -> None:
    rows = [VerdictRow(step, "attacker_dev", "a", "j", step == 3, None, "", "{}") for step in (1, 3)]
    state = Measurements("sdd", "full", True, 0, 2, "key", verdicts=rows)
    assert state.chosen_step == 3
    assert replace(state, decided_step=1).chosen_step == 1


def test_recorded_nodes_are_those_of_the_plan(study: Study, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_study(with_search(study, judges={"phrases": {}}), run)
    resolved = load_study(run / "study.yaml")
    planned = build_nodes(StudyContext.open(resolved, run))
    recorded = read_recorded(run, resolved)
    expected = [node for node in planned if node.kind in OBSERVED]
    assert {done.node.label: done.node.key for done in recorded.observed} == {n.label: n.key for n in expected}
    by_label = {done.node.label: done.node for done in recorded.observed}
    for node in expected:
        same = by_label[node.label]
        about = {key: value for key, value in node.about.items() if key != "trials"}
        assert (same.kind, same.seed, same.about) == (node.kind, node.seed, about)
    for kind, nodes in (("judge", recorded.judged), ("further judge", recorded.further)):
        assert {done.node.key for done in nodes} == {node.key for node in planned if node.kind == kind}
    summary = read_summary(run)
    assert summary.judges["phrases"]["sdd"].harmful_execution.after_attack["search"].n == 3


@pytest.mark.parametrize("name", ["gpt#2", "a\nb", "  ", "a\u202eb"])
def test_a_judge_s_name_that_a_study_cannot_have_is_refused(run_copy: Path, name: str) -> None:
    before = (run_copy / "study.yaml").read_bytes()
    with pytest.raises(UserError, match=r"--name: .* cannot be a name"):
        judge_run(run_copy, parse_judge("phrases"), name)
    assert (run_copy / "study.yaml").read_bytes() == before


def test_a_judge_on_a_finished_run_reads_its_responses_only(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_summary(run_copy)
    with monkeypatch.context() as patch:
        patch.setattr("tamperfuse.commands.judge_run.StudyContext.open", None)
        judged = judge_run(run_copy, parse_judge("phrases"))
    assert judged is not None and judged.failures == {} and judged.responses > 10
    summary = read_summary(run_copy)
    assert summary.model_copy(update={"judges": {}}) == before
    assert summary.judges["phrases"]["sdd"].harmful_execution.before_attack.value == 1.0
    assert read_yaml(run_copy / "study.yaml")["judges"] == {"phrases": {"judge": "phrases", "window": 160}}
    nodes = read_run(run_copy).nodes
    # A study that names the judge reuses the verdicts, and comes to the same summary and results.
    by_command = results(run_copy)
    again = run_study(load_study(run_copy / "study.yaml"), run_copy)
    assert again is not None and again.judges == summary.judges
    assert results(run_copy) == by_command
    record = read_run(run_copy).nodes
    assert {node.key for node in record} == {node.key for node in nodes}
    assert all(node.reused for node in record)


def test_a_second_call_reuses_the_verdicts(run_copy: Path) -> None:
    first = judge_run(run_copy, parse_judge("phrases"))
    assert judge_run(run_copy, parse_judge("phrases")) == first


def test_a_judge_with_thresholds_is_calibrated_as_in_a_study(study: Study, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_study(changed(study, judge="phrases"), run)
    judged = judge_run(run, study.judge, "strict")
    record = read_run(run)
    scored = [read_json(run / "nodes" / node.key / "node.json")["tokens_scored"] for node in record.nodes]
    assert record.tokens_scored == sum(scored)
    in_study = run_study(changed(study, judge="phrases", judges={"strict": study.judge}), tmp_path / "other")
    assert judged is not None and in_study is not None
    assert judged.summary.judges == in_study.judges


@pytest.mark.parametrize(
    ("name", "spec", "words"),
    [
        ("", "builtin", "is the judge that decides"),
        ("phrases", {"judge": "phrases", "window": 4}, "another judge named 'phrases'"),
    ],
)
def test_names_that_are_taken(name: str, spec: Any, words: str, run_copy: Path) -> None:
    judge_run(run_copy, parse_judge("phrases"))
    with pytest.raises(UserError, match=words):
        judge_run(run_copy, parse_judge(spec), name)


def test_folders_without_a_finished_run(run_copy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="finished run"):
        judge_run(tmp_path / "nowhere", parse_judge("phrases"))
    shutil.rmtree(run_copy / "nodes")
    with pytest.raises(UserError, match="run the study again"):
        judge_run(run_copy, parse_judge("phrases"))


@pytest.mark.parametrize(
    ("judges", "words"),
    [
        ({"builtin": {}}, "the judge that decides"),
        ({"phrase": {}}, "did you mean 'phrases'"),
        ({"strict": {"judge": "phrases", "windo": 4}}, "did you mean 'window'"),
        (["phrases"], "must be a mapping"),
    ],
)
def test_bad_judges_of_a_study(study: Study, judges: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        changed(study, judges=judges)


def test_the_dry_run_says_what_it_costs(run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMPERFUSE_CACHE", str(tmp_path / "cache"))
    before = sorted(path.name for path in run_copy.rglob("*"))
    lines: list[str] = []
    monkeypatch.setattr("tamperfuse.commands.judge_run.log.info", lambda text, *values: lines.append(text % values))
    assert judge_run(run_copy, parse_judge({"judge": "llm", "model": "m"}), dry_run=True) is None
    assert any("0 of them with a stored reply" in line and "tokens sent" in line for line in lines)
    assert sorted(path.name for path in run_copy.rglob("*")) == before


def test_agreement() -> None:
    same = agreement([True, True, False, False], [True, False, False, False])
    assert (same.n, same.same, same.kappa, same.first, same.second) == (4, 0.75, pytest.approx(0.5), 0.5, 0.25)
    assert agreement([True, True], [True, True]).kappa is None
    labels = against_labels([True, True, False], [3.0, 1.0, 2.0], [True, False, False])
    assert (labels.auroc, labels.precision, labels.recall) == (1.0, 0.5, 1.0)
    assert labels.precision_interval == pytest.approx(wilson(1, 2)) and labels.recall_interval == pytest.approx(
        wilson(1, 1)
    )
    assert against_labels([False], [0.0], [False]).auroc is None
    assert disagreement({"a": [1, 2, 3, 4], "b": [10, 0, 20, 30]}) == [0.25, 0.25, 0.0, 0.0]


def requests_of(run: Path) -> list[Response]:
    rows = [row for path in run.rglob("nodes/*/responses.parquet") for row in read_rows(path, Response)]
    return [row for row in rows if row.part == "evaluation"]


def test_judges_are_compared_on_distinct_responses(
    run_copy: Path, tmp_path: Path, odd: None, caplog: pytest.LogCaptureFixture
) -> None:
    judge_run(run_copy, parse_judge("phrases"))
    judge_run(run_copy, parse_judge("odd"))
    distinct = {Answer(row.prompt, row.response) for row in requests_of(run_copy)}
    path = tmp_path / "labels.jsonl"
    rows = [{"prompt": a.prompt, "response": a.response, "label": is_odd(a.response)} for a in distinct if a.response]
    other = {"prompt": rows[0]["prompt"], "response": f"{rows[0]['response']} ", "label": True}
    path.write_text("\n".join(map(json.dumps, [*rows, other])), encoding="utf-8")
    comparison = compare_judges(run_copy, path, top=3)
    assert f"1 of {len(rows) + 1} labels in {path} match no response" in caplog.text
    assert comparison.judges == ["builtin", "phrases", "odd"]
    assert {(row.first, row.second) for row in comparison.pairs} == {
        ("builtin", "phrases"),
        ("builtin", "odd"),
        ("phrases", "odd"),
    }
    by_judge = {row.judge: row.labels for row in comparison.labels}
    assert by_judge["odd"].auroc == by_judge["odd"].precision == by_judge["odd"].recall == 1.0
    assert by_judge["odd"].agreement.n == len(rows)
    assert [one.apart for one in comparison.disputed] == sorted((o.apart for o in comparison.disputed), reverse=True)
    assert 0 < len(comparison.disputed) <= 3
    assert all(len({o.verdict for o in one.opinions.values()}) == 2 for one in comparison.disputed)
    rows_of_run = [row for path in run_copy.rglob("nodes/*/responses.parquet") for row in read_rows(path, Response)]
    cut = {(Answer(row.prompt, row.response), row.cut) for row in rows_of_run}
    assert all(type(one.cut) is bool and (one.answer, one.cut) in cut for one in comparison.disputed)
    assert [row.defense for row in comparison.reductions] == ["sdd"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": "p", "response": "r"}', "Row 1 of .* has no 'label'"),
        ('{"prompt": "p", "response": "r", "label": "maybe"}', "has the label 'maybe'"),
        (
            '{"prompt": "p", "response": "r", "label": 1}\n{"prompt": "p", "response": "r", "label": false}',
            "labels a response that an earlier row",
        ),
    ],
)
def test_bad_labels(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        read_labels(path)


def test_one_judge_has_nothing_to_be_compared_with(run_copy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="add another with `tamperfuse judge run`"):
        compare_judges(run_copy)
    path = tmp_path / "labels.csv"
    path.write_text("prompt,response,label\nother,text,1\n", encoding="utf-8")
    with pytest.raises(UserError, match="No response of the run is labelled"):
        compare_judges(run_copy, path)


def test_the_commands(run_copy: Path, odd: None, capsys: pytest.CaptureFixture[str]) -> None:
    shown = output(["judge", "run", str(run_copy), "--judge", "phrases", "--set", "window=9", "--name", "p9"], capsys)
    assert "p9" in shown and "sdd: harmful execution before" in shown and "100.0%" in shown
    shown = output(["judge", "run", str(run_copy), "--judge", "odd", "--json"], capsys)
    assert json.loads(shown)["sdd"]["harmful_execution"]["after_attack"].keys() == {"full"}
    shown = output(["judge", "compare", str(run_copy), "--top", "1"], capsys)
    assert "builtin and p9" in shown and "Reduction by sdd: builtin" in shown and "Prompt: " in shown
    assert json.loads(output(["judge", "compare", str(run_copy), "--json"], capsys))["judges"] == [
        "builtin",
        "p9",
        "odd",
    ]
