"""What a study may say about a search, and what a search varies where the study says nothing."""

from pathlib import Path

import pytest

from tamperfuse.attacks import ATTACKS, AttackResult
from tamperfuse.attacks.base import attack
from tamperfuse.cli.app import main
from tamperfuse.records.errors import UserError
from tamperfuse.records.registry import Parameters
from tamperfuse.study.spec import Study, load_study

STUDY = """
model: m
threat: t
attacks:
  adaptive: {attack: harmful_finetune, steps: 8, search: {trials: 4, over: {learning_rate: [1e-5, 1e-3], shots: [10, 90]}}}
evaluate: {epsilons: [0.05, 1]}
"""


def read(tmp_path: Path, text: str) -> Study:
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return load_study(path)


@pytest.fixture
def registered_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attack without parameters, named `plain`."""
    monkeypatch.setattr(ATTACKS, "components", dict(ATTACKS.components))
    attack("plain", Parameters, uses=())(lambda *_: AttackResult())


def test_a_resolved_search_is_read_back_unchanged(tmp_path: Path) -> None:
    first = read(tmp_path, STUDY)
    assert not first.attacks["adaptive"].parameters.keys() & {"learning_rate", "shots"}
    assert read(tmp_path, first.to_yaml()) == first
    plain = read(tmp_path, STUDY.replace(", over: {learning_rate: [1e-5, 1e-3], shots: [10, 90]}", ""))
    searched_over = plain.attacks["adaptive"].search
    assert searched_over and set(searched_over.over) == {"learning_rate", "method", "schedule"}


@pytest.mark.parametrize(
    ("attack_name", "fixed", "over"),
    [
        ("retain_finetune", "schedule: linear", {"learning_rate", "method"}),
        ("refusal_ablation", "prompts: 8", {"layer"}),
    ],
)
def test_a_search_varies_what_its_attack_declares_and_the_study_does_not_set(
    tmp_path: Path, attack_name: str, fixed: str, over: set[str]
) -> None:
    text = f"{{model: m, threat: t, attacks: {{a: {{attack: {attack_name}, {fixed}, search: {{trials: 2}}}}}}}}"
    parsed = read(tmp_path, text).attacks["a"].search
    assert parsed and set(parsed.over) == over


def test_an_attack_without_parameters_cannot_be_searched(registered_attack: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="plain has no parameters to search over: remove `search`"):
        read(tmp_path, "{model: m, threat: t, attacks: {plain: {search: {trials: 2}}}}")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "shots: [10",
            "shot: [10",
            "no parameter of attack adaptive to search over named 'shot': did you mean 'shots'",
        ),
        ("trials: 4", "trials: 0", "search.trials = 0"),
        ("trials: 4", "trials: true", "`trials` is true or false"),
        ("trials: 4", "trials: many", "search.trials = 'many'"),
        ("trials: 4, ", "", "search.trials"),
        ("trials: 4", "trails: 4", "did you mean 'trials'"),
        ("[10, 90]", "[90, 10]", "swap its ends"),
        ("[10, 90]", "[0, 90]", "shots = 0"),
        ("[10, 90]", "[10]", "two different values"),
        ("shots: [10, 90]", "method: [full, loar]", "method = 'loar'"),
        ("shots: [10, 90]", "steps: [4, 8]", "both set and searched over"),
        ("harmful_finetune, steps: 8,", "benign_finetune,", "a control, not a malicious attack"),
        (
            "harmful_finetune, steps: 8, search: {trials: 4, over:",
            "prefill, search: {trials: 4 } } #",
            "varies no parameter",
        ),
        ("[0.05, 1]", "[0.05, 1.5]", "1.5 is no share of capability in"),
        ("[0.05, 1]", "[-0.1]", "-0.1 is no share of capability in"),
    ],
)
def test_a_bad_search_is_a_user_error(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(tmp_path, STUDY.replace(old, new))


def test_bad_input_exits_with_2_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace("trials: 4", "trials: 0"), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["run", str(path), "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "search.trials = 0" in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()
