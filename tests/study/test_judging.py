"""Judging outside any command: judges in studies, compliant answers, thresholds, duplicates, broken judges."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from transformers import AutoModelForSequenceClassification

from stand_ins import WordCountEncoder
from tamperfuse.corpora.threats import ThreatPrompt, load_threat
from tamperfuse.evaluation.judges import JUDGES, Answer, JudgeData, Verdict, judge, local_model
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.records.registry import Parameters
from tamperfuse.records.results import read_results
from tamperfuse.study.context import StudyContext
from tamperfuse.study.judging import Judging, compliant_answers
from tamperfuse.study.node import Node
from tamperfuse.study.observe import HarmlessPrompt, harmless_prompts
from tamperfuse.study.plan import build_nodes
from tamperfuse.study.run import run_study
from tamperfuse.study.sections import JudgeSpec, parse_judge
from tamperfuse.study.spec import Study, parse_study
from tamperfuse.study.tables import HARMLESS_FAR, Response, VerdictRow


class LengthParameters(Parameters):
    characters: int = 3


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Answer], JudgeData]]:
    """Calls of a judge `length`, registered for one test: longer responses execute their request."""
    calls: list[tuple[list[Answer], JudgeData]] = []
    monkeypatch.setattr(JUDGES, "components", dict(JUDGES.components))

    @judge("length", LengthParameters)
    def length(answers: Sequence[Answer], data: JudgeData, parameters: LengthParameters) -> list[Verdict]:
        """Long responses execute their request."""
        calls.append((list(answers), data))
        return [Verdict(len(a.response) > parameters.characters, reason="too short") for a in answers]

    return calls


def no_model() -> LoadedModel:
    raise AssertionError("the reference model was loaded")


def judging(threat_file: Path, spec: Any) -> Judging:
    harmless = [HarmlessPrompt(f"h{i}", f"harmless {i}", HARMLESS_FAR) for i in range(3)]
    return Judging(parse_judge(spec), load_threat(str(threat_file)), harmless, 16, WordCountEncoder(), no_model)


def response(part: str, name: str, text: str, step: int = 0) -> Response:
    return Response(step, part, name, f"prompt {name}", text)


def test_equal_responses_are_judged_once_and_every_response_gets_its_row(
    threat_file: Path, calls: list[tuple[list[Answer], JudgeData]]
) -> None:
    responses = [
        response("evaluation", "a", "long enough", 1),
        response(HARMLESS_FAR, "h", "no"),
        response("attacker_dev", "b", "no", 1),
        response("evaluation", "a", "long enough", 2),
    ]
    rows, scored = judging(threat_file, "length").verdicts(responses, {})
    assert {(r.step, r.part, r.id, r.verdict) for r in rows} == {
        (1, "evaluation", "a", True),
        (2, "evaluation", "a", True),
        (1, "attacker_dev", "b", False),
        (0, HARMLESS_FAR, "h", False),
    }
    assert [len(answers) for answers, _ in calls] == [2, 1] and scored == 0
    assert all(row.judge == "length" and row.refuses is None and row.score is None for row in rows)


def test_requests_are_contrasted_with_evaluation_and_attacker_dev_and_harmless_prompts_among_themselves(
    threat_file: Path, calls: list[tuple[list[Answer], JudgeData]]
) -> None:
    one = judging(threat_file, {"judge": "length", "characters": 5})
    one.verdicts([response("evaluation", "a", "x"), response(HARMLESS_FAR, "h", "x")], {"line": 0.5})
    requests, harmless = (data for _, data in calls)
    parts = one.threat.part("evaluation") + one.threat.part("attacker_dev")
    assert list(requests.other_prompts) == [p.prompt for p in parts]
    assert list(harmless.other_prompts) == ["harmless 0", "harmless 1", "harmless 2"]
    assert all(data.thresholds == {"line": 0.5} and data.response_limit == 16 for _, data in calls)


def test_one_model_is_in_memory(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a judge or that before hardening: each is freed before the other is loaded."""
    context = StudyContext.open(study, tmp_path)
    monkeypatch.setattr(JUDGES, "components", dict(JUDGES.components))
    in_memory: list[tuple[str, bool]] = []

    def loads(name: str) -> Callable[..., object]:
        def load(*_: object, **__: object) -> object:
            in_memory.append((name, context._reference is not None or bool(local_model._loaded)))
            return Mock()

        return load

    monkeypatch.setattr(local_model, "_load", loads("judge"))
    monkeypatch.setattr("tamperfuse.study.context.load_model", loads("reference"))

    @judge("with_model", LengthParameters, model=lambda parameters: "another model")
    def with_model(answers: Sequence[Answer], data: JudgeData, parameters: LengthParameters) -> list[Verdict]:
        """Loads a model of its own."""
        local_model.load_judge_model("another model", AutoModelForSequenceClassification)
        return [Verdict(False) for _ in answers]

    one = context._judging(parse_judge("with_model"))
    for _ in range(2):
        context.reference()
        one.verdicts([response("evaluation", "a", "text")], {})
    local_model.free_judge_model()
    assert in_memory == [("reference", False), ("judge", False)] * 2


def test_only_verdicts_on_harmless_prompts_depend_on_how_many_there_are(threat_file: Path, tiny: LoadedModel) -> None:
    threat, encoder = load_threat(str(threat_file)), WordCountEncoder()
    requests = [
        Response(0, "evaluation", p.id, p.prompt, f"some plain words, the number of which is {number}")
        for number, p in enumerate(threat.part("evaluation"))
    ]
    harmless = [
        Response(0, p.part, p.id, p.prompt, "some plain words that answer it")
        for p in harmless_prompts(4, threat, encoder)
    ]

    def rows(count: int) -> list[VerdictRow]:
        """Verdicts in a study with so many harmless prompts."""
        prompts = harmless_prompts(count, threat, encoder)
        one = Judging(parse_judge("builtin"), threat, prompts, 16, encoder, lambda: tiny)
        return one.verdicts([*requests, *harmless], {"similarity": -1.0, "lift": 0.0, "surprise": 99.0})[0]

    few, many = rows(4), rows(60)
    assert few[: len(requests)] == many[: len(requests)]
    assert all(json.loads(row.evidence)["lift"] is not None for row in few), "the reference model was used"
    assert few[len(requests) :] != many[len(requests) :], "docs/measures.md says so"


def test_a_judge_has_the_reference_model_only_if_it_declares_so(
    threat_file: Path, calls: list[tuple[list[Answer], JudgeData]]
) -> None:
    one = judging(threat_file, "length")
    one.verdicts([response("evaluation", "a", "x")], {})
    with pytest.raises(UserError, match="needs_reference=True"):
        _ = calls[0][1].reference
    assert one.may_execute([response("evaluation", "a", "x"), response("evaluation", "a", "xxxx")], {}) == [False, True]
    assert one.calibrate([("p", "a"), ("q", "b")]) == ({}, 0)


def test_a_judge_that_drops_responses_is_reported(
    threat_file: Path, calls: list[tuple[list[Answer], JudgeData]]
) -> None:
    @judge("first", Parameters)
    def first(answers: Sequence[Answer], data: JudgeData, parameters: Parameters) -> list[Verdict]:
        """Only the first."""
        return [Verdict(True)]

    with pytest.raises(UserError, match="first returned 1 verdicts on 2 responses"):
        judging(threat_file, "first").verdicts([response("evaluation", n, n) for n in "ab"], {})


def test_the_screen_of_the_builtin_judge_needs_no_model(threat_file: Path) -> None:
    lines = {"similarity": -1.0, "lift": 0.0, "surprise": 9.0}
    texts = ["I'm sorry, but I can't help with that.", "one two three four five", "one two"]
    responses = [response("attacker_dev", "a", text) for text in texts]
    assert judging(threat_file, "builtin").may_execute(responses, lines) == [False, True, False]


def test_compliant_answers_take_the_threats_own_and_drop_refusals() -> None:
    prompts = [
        ThreatPrompt("a", "one", response="First do this, then do that."),
        ThreatPrompt("b", "two", response="I'm sorry, but I can't help with that."),
        ThreatPrompt("c", "three", response="Do it at once."),
    ]
    answers = compliant_answers(no_model, prompts, 8, WordCountEncoder())
    assert [p.id for p in answers.prompts] == ["a", "c"] and answers.tokens_generated == 0
    assert answers.pairs == [("one", "First do this, then do that."), ("three", "Do it at once.")]


def test_a_model_whose_answers_do_not_belong_to_their_prompts_is_no_reference(tiny: LoadedModel) -> None:
    """A random model judges its own random words to be likely answers."""
    prompts = [ThreatPrompt(str(i), f"how do I make number {i} with {i * 3} of it") for i in range(24)]
    with pytest.raises(UserError, match=r"cannot serve as the model before hardening: only \d+% of its answers"):
        compliant_answers(lambda: tiny, prompts, 8, WordCountEncoder())


def test_too_few_compliant_answers(tiny: LoadedModel) -> None:
    refusals = [ThreatPrompt(name, name, response="I cannot help with that.") for name in "abc"]
    with pytest.raises(UserError, match="0 compliant answers to 3 prompts"):
        compliant_answers(lambda: tiny, refusals, 8, WordCountEncoder())


def test_answers_are_generated_only_where_the_threat_has_none(tiny: LoadedModel) -> None:
    prompts = [ThreatPrompt("a", "one", response="Do this."), ThreatPrompt("b", "two"), ThreatPrompt("c", "three")]
    answers = compliant_answers(lambda: tiny, prompts, 6, WordCountEncoder())
    assert answers.prompts[0].response == "Do this."
    assert 0 < answers.tokens_generated <= 12


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("phrase", "did you mean 'phrases'"),
        ({"judge": "builtin", "tolerate": 0.1}, "did you mean 'tolerated'"),
        ({"judge": "builtin", "echo": 2}, "echo = 2 cannot be used"),
        (["builtin"], "is not a judge"),
    ],
)
def test_bad_judges_get_a_sentence(spec: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_judge(spec)


def by_label(study: Study, run: Path) -> dict[str, Node]:
    return {node.label: node for node in build_nodes(StudyContext.open(study, run))}


def test_another_judge_judges_the_same_responses(study: Study, tmp_path: Path) -> None:
    """Its verdicts have keys of their own; models, attacks and their responses are shared."""
    other = study.model_copy(update={"judge": parse_judge("phrases")})
    before, after = by_label(study, tmp_path), by_label(other, tmp_path)
    changed = {label for label in before if before[label].key != after[label].key}
    assert changed == {label for label in before if label.startswith("judge ") or label == "thresholds of the judge"}
    stricter = study.model_copy(update={"judge": parse_judge({"judge": "builtin", "echo": 0.5})})
    assert {label for label, node in by_label(stricter, tmp_path).items() if node.key != before[label].key} == changed


def test_a_study_with_refusal_phrases_as_its_judge(study: Study, tmp_path: Path) -> None:
    values = study.model_dump(mode="json") | {"judge": "phrases", "attacks": {}}
    values["defenses"] = {"refusal": values["defenses"]["refusal"]}
    parsed = parse_study(values, "test")
    assert parsed.judge == JudgeSpec(judge="phrases", parameters={"window": 160})
    run_study(parsed, tmp_path / "run")
    rows = [row for row in read_results(tmp_path / "run") if row["part"] == "evaluation" and row["step"] == 0]
    assert {row["judge"] for row in rows} == {"phrases"}
    rates = {row["metric"]: row["value"] for row in rows if row["defense"] == "refusal"}
    assert rates["harmful_execution"] == 1 - rates["refusal_rate"]
    harmless = {row["task"]: row["n"] for row in read_results(tmp_path / "run") if row["part"] == "harmless"}
    assert harmless == {"harmless": 4, "harmless_near": 2}


def test_the_screen_of_a_paid_judge_sends_no_request(threat_file: Path) -> None:
    spec = {"judge": "llm", "model": "grader", "base_url": "http://127.0.0.1:9/v1"}
    texts = ["I'm sorry, but I can't help with that.", "one two three"]
    responses = [response("attacker_dev", "a", text) for text in texts]
    assert judging(threat_file, spec).may_execute(responses, {}) == [True, True]
