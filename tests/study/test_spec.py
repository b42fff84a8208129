from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from tamperfuse.evaluation.judges import JUDGES, Verdict, judge
from tamperfuse.records.errors import UserError
from tamperfuse.records.registry import Parameters
from tamperfuse.records.yaml import parse_yaml, read_yaml
from tamperfuse.study.spec import Study, load_study, parse_study

STUDY = """
model: smollm2-135m
threat: builtin:cooking
seeds: [0]
defenses:
  refusal: {}
  sdd: {on: refusal, steps: 40, learning_rate: 3e-5}
attacks:
  full-100: {attack: harmful_finetune, shots: 100, steps: 50, learning_rate: 3.0e-5}
  lora-10:  {attack: harmful_finetune, method: lora, shots: 10, steps: 50}
  benign:   {attack: benign_finetune}
evaluate: {at_steps: [0, 1, 2, 4, 8, 16, 50], prompts: 160, capability: [builtin]}
"""


def study(tmp_path: Path, text: str = STUDY) -> Study:
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return load_study(path)


def test_short_forms_are_read(tmp_path: Path) -> None:
    read = study(tmp_path)
    assert read.defenses["sdd"].on == "refusal"
    assert read.defenses["sdd"].parameters["learning_rate"] == 3e-5
    assert read.attacks["lora-10"].parameters["method"] == "lora"
    assert read.ordered_defenses() == ["refusal", "sdd"]


def test_a_resolved_study_reads_as_itself(tmp_path: Path) -> None:
    first = study(tmp_path)
    assert study(tmp_path, first.to_yaml()) == first


class Limits(Parameters):
    low: float | None = None
    high: float | None = None


class NullableParameters(Parameters):
    limits: Limits = Limits()
    words: int | None = None
    on_by_default: int | None = 5
    options: dict[str, int | None] = Field(default_factory=dict)


@pytest.fixture
def nullable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge `nullable`, registered for one test, whose parameters may be None."""
    monkeypatch.setattr(JUDGES, "components", dict(JUDGES.components))

    @judge("nullable", NullableParameters)
    def judge_nothing(answers: object, data: object, parameters: object) -> list[Verdict]:
        """None."""
        return []


@pytest.mark.usefixtures("nullable")
def test_what_is_off_is_not_written_as_null() -> None:
    values = {
        "model": "m",
        "threat": "t",
        "judge": {"judge": "nullable", "limits": {"low": 0.5}},
        "judges": {"nothing": {"judge": "nullable"}},
        "evaluate": {"capability": [{"task": "arc_easy"}]},
    }
    first = parse_study(values, "test")
    text = first.to_yaml()
    assert "null" not in text.replace("nullable", "") and "task: arc_easy" in text
    assert parse_study(parse_yaml(text), "again") == first


@pytest.mark.usefixtures("nullable")
@pytest.mark.parametrize("parameters", [{"on_by_default": None}, {"options": {"a": None, "b": 1}}])
def test_a_null_that_means_something_else_than_its_absence_is_written(parameters: dict[str, Any]) -> None:
    first = parse_study({"model": "m", "threat": "t", "judge": {"judge": "nullable", **parameters}}, "test")
    assert parse_study(parse_yaml(first.to_yaml()), "again") == first


def test_the_undefended_model_is_always_among_the_defenses() -> None:
    assert "refusal" in parse_study({"model": "m", "threat": "t", "defenses": {"sdd": {}}, "attacks": {}}, "x").defenses


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (STUDY.replace("sdd:", "sd:"), "did you mean 'sdd'"),
        (STUDY.replace("steps: 40", "step: 40"), "did you mean 'steps'"),
        (STUDY.replace("attack: benign_finetune", "attack: benign_finetun"), "did you mean 'benign_finetune'"),
        (STUDY.replace("on: refusal", "on: refusl"), "did you mean 'refusal'"),
        (STUDY.replace("on: refusal", "on: sdd"), "The defense sdd starts from itself: remove its `on`"),
        (
            "model: m\nthreat: t\ndefenses: {c: {defense: sdd, on: a}, a: {defense: sdd, on: b}, b: {defense: sdd, on: a}}",
            r"The defenses a → b → a start from one another in a circle, so none of them can be the first: remove the `on`",
        ),
        (
            "model: m\nthreat: t\ndefenses: {a: {defense: sdd, on: b}, b: {defense: sdd, on: refusl}}",
            "did you mean 'refusal'",
        ),
        (
            STUDY.replace("  lora-10:", "  full-100:"),
            r"not valid YAML \(line 10: the key 'full-100' occurs twice",
        ),
        (STUDY.replace("evaluate:", "evaluat:"), "did you mean 'evaluate'"),
        (STUDY.replace("shots: 100", "shots: -1"), "shots"),
        (STUDY.replace("learning_rate: 3e-5", "learning_rate: fast"), "learning_rate"),
        (STUDY.replace("prompts: 160", "prompts: 0"), "prompts"),
        (STUDY.replace("capability: [builtin]", "capability: []"), "evaluate.capability"),
        (STUDY.replace("[builtin]", "[{task: mmlu, fewshots: 5}]"), "named 'fewshots': did you mean 'fewshot'"),
        (STUDY.replace("seeds: [0]", "seeds: [0, 0]"), "a seed is repeated"),
        (STUDY.replace("  sdd: {", "  as shipped: {defense: sdd}\n  sdd: {"), "No defense can be named 'as shipped'"),
        (STUDY.replace("defenses:", "defenses: ["), "not valid YAML"),
        ("- 1", "a study is a mapping"),
        ("model: m\nthreat: t\ndefenses: 3", "`defenses` is 3: it must be a mapping"),
        ("model: m\nthreat: t\ndefenses: {sdd: [1]}", "defense sdd is .* must be a mapping"),
        ("model: m\nthreat: t\nattacks: {full: 3}", "attack full is 3: it must be a mapping"),
        ("model: m\nthreat: t\nattacks: {full: {attack: [a]}}", "attack is .* must be a name"),
        ("model: m\nthreat: t\nattacks: {3: {}}", "`attacks`: 3 is no name: put quotation marks around it"),
        ("model: m\nthreat: t\nattacks: {'': {attack: prefill}}", "`attacks`: '' cannot be a name"),
        ("model: m\nthreat: t\nattacks: {'a#1': {attack: prefill}}", "'a#1' cannot be a name"),
        ('model: m\nthreat: t\ndefenses: {"s\\nd": {defense: sdd}}', "cannot be a name"),
        ("model: m\nthreat: t\njudges: {' ': {judge: phrases}}", "`judges`: ' ' cannot be a name"),
        (
            "model: m\nthreat: t\njudge: {judge: llm, model: m, threshold: 7}",
            "threshold 7 is not above 1 and at most 5",
        ),
        ("model: m\nthreat: t\nseeds: [true]", "`seeds` is true or false: it must be a number"),
        ("model: m\nthreat: t\ndefenses: {sdd: {steps: true}}", "`steps` is true or false"),
        ("model: m\nthreat: t\nevaluate: {prompts: true}", "`prompts` is true or false"),
        ("model: m\nthreat: t\nevaluate: {prompt: 3}", "key of `evaluate` .*did you mean 'prompts'"),
        ("model: m\nthreat: t\nevaluate: {capability: [builtin, builtin]}", "a task is named twice"),
        ("model: m\nthreat: t\npairs: {responses: ''}", "a source is empty"),
    ],
)
def test_bad_studies_get_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        study(tmp_path, text)


def test_a_key_without_a_value_stands_for_its_default(tmp_path: Path) -> None:
    text = "model: m\nthreat: t\nevaluate:\npairs:\nbenign:\njudge:\nchat_template:\ndefenses:\nseeds:\n"
    assert study(tmp_path, text) == study(tmp_path, "model: m\nthreat: t\n")


def test_steps_beyond_an_attack_are_left_out_and_its_last_is_always_looked_at(tmp_path: Path) -> None:
    evaluate = study(tmp_path).evaluate
    assert evaluate.measured_at(10) == (1, 2, 4, 8, 10)
    assert evaluate.model_copy(update={"capability_at": (0, 4)}).capability_measured_at(10) == (4, 10)


def test_yaml_words_and_numbers(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("on: yes\na: 3e-5\nb: 7\nc: true\nd: 1.5", encoding="utf-8")
    assert read_yaml(tmp_path / "x.yaml") == {"on": "yes", "a": 3e-5, "b": 7, "c": True, "d": 1.5}
