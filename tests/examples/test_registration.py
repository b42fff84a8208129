"""Components of other packages: how they are found, what is said when they cannot be used, and what they receive."""

from pathlib import Path
from typing import Any

import pytest

from command_stand_ins import fails
from tamperfuse.attacks import ATTACKS, AttackData, AttackResult
from tamperfuse.attacks.base import attack
from tamperfuse.defenses import DEFENSES, DefenseData, DefenseResult
from tamperfuse.defenses.base import defense
from tamperfuse.evaluation.judges import JUDGES
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.records.registry import Parameters
from tamperfuse.records.results import read_results
from tamperfuse.records.summary import read_summary
from tamperfuse.study.context import StudyContext
from tamperfuse.study.data_nodes import BENIGN, defense_data_nodes
from tamperfuse.study.plan import build_nodes
from tamperfuse.study.run import run_study
from tamperfuse.study.spec import Study, parse_study

DEFENSE = """
from tamperfuse.defenses.base import DefenseResult, defense
from tamperfuse.records.registry import Parameters

@defense("{name}", Parameters)
def harden(loaded, data, parameters, seed):
    return DefenseResult()
"""
ALL_KINDS = (
    DEFENSE
    + """
from tamperfuse.attacks.base import AttackResult, attack
from tamperfuse.evaluation.judges.base import Verdict, judge

@attack("{name}", Parameters)
def attack_model(loaded, data, parameters, seed):
    return AttackResult()

@judge("{name}", Parameters)
def judge_responses(answers, data, parameters):
    return [Verdict(True) for _ in answers]
"""
)


REFUSAL = {"refusal": {"steps": 2, "batch": 2}}


class Factor(Parameters):
    factor: float = 0.9


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that the command line prints on bad input."""
    error = fails(arguments, capsys).strip()
    assert error.startswith("tamperfuse: ") and "\n" not in error, "one sentence"
    return error


def test_a_plugin_that_fails_at_import_is_named_with_its_error(
    install_plugin: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    install_plugin("broken-plugin", "raise ValueError('two\\nlines')")
    error = error_of(["list"], capsys)
    assert "The plug-in broken-plugin could not be imported (ValueError: two lines)" in error
    assert error.endswith("pip uninstall broken-plugin")
    assert error_of(["list"], capsys) == error, "it fails again, not only the first time"


def test_a_plugin_that_ends_the_program_is_named(install_plugin: Any, capsys: pytest.CaptureFixture[str]) -> None:
    install_plugin("broken-plugin", "raise SystemExit(0)")
    assert "The plug-in broken-plugin could not be imported (SystemExit: 0)" in error_of(["list"], capsys)


def test_a_plugin_that_lacks_a_package_is_named(install_plugin: Any, capsys: pytest.CaptureFixture[str]) -> None:
    install_plugin("broken-plugin", "import no_such_package", kinds=("judges",))
    assert "No module named 'no_such_package'" in error_of(["list"], capsys)


@pytest.mark.parametrize(("name", "other"), [("same", "first-plugin 1.0"), ("sdd", "tamperfuse.defenses.sdd")])
def test_a_name_that_is_registered_twice_is_a_user_error(
    name: str, other: str, install_plugin: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "same":
        install_plugin("first-plugin", DEFENSE.format(name=name))
    install_plugin("second-plugin", DEFENSE.format(name=name))
    error = error_of(["list"], capsys)
    assert f"The defense '{name}' is registered twice" in error
    assert other in error and "second-plugin 1.0" in error


@pytest.mark.parametrize(
    ("kind", "parameter"),
    [("defense", "on"), ("defense", "benign"), ("attack", "search"), ("attack", "retain"), ("judge", "parameters")],
)
def test_a_parameter_with_a_name_that_a_study_or_a_call_uses_is_refused(
    kind: str, parameter: str, install_plugin: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    body = f"class Reserved(Parameters):\n    {parameter}: int = 0\n"
    decorated = ALL_KINDS.format(name="plugged").replace(
        f'@{kind}("plugged", Parameters)', f'@{kind}("plugged", Reserved)'
    )
    install_plugin("reserved-plugin", decorated.replace("@", body + "\n@", 1), kinds=("defenses", "attacks", "judges"))
    error = error_of(["list"], capsys)
    assert f"The {kind} 'plugged' has a parameter {parameter!r}" in error and error.endswith("rename the parameter.")


@pytest.mark.parametrize("first", ["defenses", "attacks", "judges"])
def test_every_component_of_a_plugin_has_its_version_whichever_kind_is_loaded_first(
    first: str, install_plugin: Any
) -> None:
    install_plugin("all-kinds", ALL_KINDS.format(name="plugged"), kinds=("defenses", "attacks", "judges"))
    registries = {"defenses": DEFENSES, "attacks": ATTACKS, "judges": JUDGES}
    registries[first].get("plugged")
    assert all("all-kinds 1.0" in registry.get("plugged").identity for registry in registries.values())
    assert DEFENSES.get("sdd").distribution == ""


def test_the_version_of_a_plugin_is_in_the_keys(
    install_plugin: Any, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_plugin("all-kinds", ALL_KINDS.format(name="plugged"), kinds=("defenses", "attacks", "judges"))
    values = study.model_dump(mode="json")
    values |= {"defenses": REFUSAL | {"plugged": {}}, "attacks": {"plugged": {}}, "judge": "plugged"}
    context = StudyContext.open(parse_study(values, "test"), tmp_path)

    def keys() -> dict[str, str]:
        return {node.label: node.key for node in build_nodes(context)}

    before = keys()
    install_plugin(
        "all-kinds", ALL_KINDS.format(name="plugged"), kinds=("defenses", "attacks", "judges"), version="1.1"
    )
    after = keys()
    changed = {label for label in before if before[label] != after[label]}
    assert {"plugged, seed 0", "refusal under plugged, seed 0", "judge as shipped: before attack"} <= changed
    assert "refusal, seed 0" not in changed


def test_the_smallest_defense_and_attack_run_through_a_study(registries: None, study: Study, tmp_path: Path) -> None:
    received: list[DefenseData] = []

    @defense("shrink", Factor)
    def shrink(loaded: LoadedModel, data: DefenseData, parameters: Factor, seed: int) -> DefenseResult:
        received.append(data)
        for weight in loaded.model.parameters():
            weight.data.mul_(parameters.factor)
        return DefenseResult()

    @attack("blank", Factor)
    def blank(loaded: LoadedModel, data: AttackData, parameters: Factor, seed: int) -> AttackResult:
        data.run_hook(0)
        next(loaded.model.parameters()).data.mul_(parameters.factor)
        data.run_hook(1)
        return AttackResult()

    values = study.model_dump(mode="json")
    values |= {"defenses": REFUSAL | {"shrink": {}}, "attacks": {"blank": {"factor": 0.5}}}
    run_study(parse_study(values, "test"), tmp_path / "run")
    assert [(data.answers, data.pairs) for data in received] == [([], [])], "nothing that was not declared"
    summary = read_summary(tmp_path / "run")
    assert set(summary.defenses) == {"refusal", "shrink"}
    assert "blank" in summary.defenses["shrink"].harmful_execution.after_attack
    rows = [row for row in read_results(tmp_path / "run") if row["attack"] == "blank"]
    assert {row["step"] for row in rows} == {1} and all(row["malicious"] for row in rows)


def test_compliant_answers_are_those_to_the_defender_prompts_and_some_can_be_held_out(
    registries: None, study: Study, tmp_path: Path
) -> None:
    received: list[DefenseData] = []

    @defense("ascent", Parameters, needs_answers=True)
    def ascent(loaded: LoadedModel, data: DefenseData, parameters: Parameters, seed: int) -> DefenseResult:
        received.append(data)
        return DefenseResult()

    @defense("watchful", Parameters, needs_held_out=True)
    def watchful(loaded: LoadedModel, data: DefenseData, parameters: Parameters, seed: int) -> DefenseResult:
        received.append(data)
        return DefenseResult()

    values = study.model_dump(mode="json")
    values |= {"defenses": REFUSAL | {"ascent": {}, "watchful": {}}, "attacks": {}}
    run_study(parse_study(values, "test"), tmp_path / "run")
    data, watched = received
    assert {prompt for prompt, _ in data.answers} == set(data.prompts)
    assert len(data.prompts) == 6 and all(prompt.startswith("defender request") for prompt in data.prompts)
    assert all(answer.endswith("to defender") for _, answer in data.answers)
    assert data.executed is None and not data.benign, "nothing that was not declared"
    assert watched.executed is not None and watched.benign and not watched.answers
    assert len(watched.prompts) == 5, "one is held out"


@pytest.mark.parametrize("declared", [True, False, lambda parameters: parameters.factor > 0.5])
def test_what_a_defense_needs_is_declared_as_a_bool_or_as_a_function_of_its_parameters(
    declared: Any, registries: None, study: Study, tmp_path: Path
) -> None:
    @defense("distilled", Factor, needs_benign=declared)
    def distilled(loaded: LoadedModel, data: DefenseData, parameters: Factor, seed: int) -> DefenseResult:
        return DefenseResult()

    defenses = {"more": {"defense": "distilled"}, "less": {"defense": "distilled", "factor": 0.1}}
    values = study.model_dump(mode="json") | {"defenses": REFUSAL | defenses, "attacks": {}}
    context = StudyContext.open(parse_study(values, "test"), tmp_path)
    benign = [any(node.kind == BENIGN for node in defense_data_nodes(context, name, 0)) for name in defenses]
    assert benign == ([declared, declared] if isinstance(declared, bool) else [True, False])


def test_an_attack_that_never_calls_the_hook_is_a_user_error(registries: None, study: Study, tmp_path: Path) -> None:
    @attack("silent", Parameters)
    def silent(loaded: LoadedModel, data: AttackData, parameters: Parameters, seed: int) -> AttackResult:
        return AttackResult()

    values = study.model_dump(mode="json") | {"defenses": REFUSAL, "attacks": {"silent": {}}}
    with pytest.raises(UserError, match=r"The attack silent ended without a call of data\.hook at step 1"):
        run_study(parse_study(values, "test"), tmp_path / "run")


def test_a_default_search_space_names_parameters_that_exist(registries: None) -> None:
    with pytest.raises(UserError, match="did you mean 'factor'"):
        attack("wrong", Factor, search_over={"factr": (0.1, 0.2)})
