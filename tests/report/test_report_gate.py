"""The gate passes on the unfavorable end of the interval only, and refuses policies it cannot use."""

from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from made_up_run import around, rate, summary, usable

from tamperfuse.cli.gate import gate
from tamperfuse.records.errors import UserError
from tamperfuse.records.summary import AttackCost, Measure, Summary
from tamperfuse.report.gate import GateResult, check_gate, measures_of

Check = Callable[..., GateResult]


@pytest.fixture
def check(make_run: Callable[..., Path], tmp_path: Path) -> Check:
    """Checks a policy's text against the made-up run."""

    def run(text: str, measured: Summary | None = None) -> GateResult:
        policy = tmp_path / "policy.yaml"
        policy.write_text(text, encoding="utf-8")
        return check_gate(make_run(measured=measured), policy)

    return run


def with_sdd(**parts: object) -> Summary:
    """The summary with parts of SDD's measures replaced."""
    measured = summary()
    return measured.model_copy(update={"defenses": {"sdd": measured.defenses["sdd"].model_copy(update=parts)}})


def policy(name: str, rule: str) -> str:
    return f"defense: sdd\nrequire: {{{name}: {{{rule}}}}}"


def test_every_measure_passes_and_fails_by_its_interval(check: Check) -> None:
    names = [name for name, measure in measures_of(summary().defenses["sdd"]).items() if measure.value is not None]
    assert {
        "harmful_execution.after_control.benign",
        "harmful_execution.worst_control",
        "capability.drop_vs_shipped",
        "benign_answer_drop_vs_shipped",
        "benign_nll.rise_vs_shipped",
        "usable_harm.0.05",
        "attack_cost.full-100.last_point",
        "attack_cost.least_ratio",
        "benign_finetune.routing.gap_vs_undefended",
    } <= set(names)
    easy = "\n".join(f"  {name}: {{at_most: 99, at_least: -99, accept_unresolved: true}}" for name in names)
    result = check(f"defense: sdd\nrequire:\n{easy}\n")
    assert result.passed and {c.measure for c in result.checks} == set(names)
    hard = "\n".join(f"  {name}: {{at_least: 99, accept_unresolved: true}}" for name in names)
    assert not any(c.passed for c in check(f"defense: sdd\nrequire:\n{hard}\n").checks)


def test_the_published_policy_names_measures_that_exist(make_run: Callable[..., Path]) -> None:
    published = Path(__file__).parents[2] / "studies" / "policy.yaml"
    result = check_gate(make_run(), published)
    assert not result.passed and {c.measure for c in result.checks if c.passed} >= {
        "harmful_execution.before_attack",
        "harmful_execution.worst_control",
        "benign_answer_rate",
    }


def test_the_conservative_end_decides(check: Check) -> None:
    # 118 of 128 is 92%; the interval begins at 86%.
    assert check(policy("benign_answer_rate", "at_least: 0.86")).passed
    result = check(policy("benign_answer_rate", "at_least: 0.9"))
    assert not result.passed and result.checks[0].why == "the interval reaches 0.8622"
    assert result.checks[0].rule == "at least 0.9" and result.checks[0].value == 118 / 128


def test_unresolved_fails_unless_accepted(check: Check) -> None:
    name = "capability.drop_vs_undefended"
    assert check(policy(name, "at_most: 0.1")).checks[0].why == "not resolved by this sample"
    assert check(policy(name, "at_most: 0.1, accept_unresolved: true")).passed


def test_missing_and_intervalless_fail(check: Check) -> None:
    for measure, why in ((Measure(value=None), "not measured"), (Measure(value=1.0), "no lower end is known")):
        result = check(policy("benign_answer_rate", "at_least: 0"), with_sdd(benign_answer_rate=measure))
        assert result.checks[0].why == why
    assert check(policy("benign_kl", "at_most: 99")).checks[0].why == "not measured"


def test_usable_harm_is_a_lower_bound_where_capability_was_not_measured(check: Check) -> None:
    harm = {"0.05": usable(2, capability_not_measured=True)}
    result = check(policy("usable_harm.0.05", "at_most: 0.1"), with_sdd(usable_harm=harm))
    assert result.checks[0].why == "capability was not measured at a more harmful step"
    assert result.checks[0].value == 2 / 160
    assert check(policy("usable_harm.0.05", "at_most: 0.1"), with_sdd(usable_harm={"0.05": usable(2)})).passed


def test_weak_attacks_prove_nothing(check: Check) -> None:
    sdd = summary().defenses["sdd"]
    harm = sdd.harmful_execution.model_copy(
        update={"worst": around(0.0, 0.01), "after_attack": {"full-100": rate(0), "lora-10": rate(0)}}
    )
    none = sdd.reduction_vs_undefended.model_copy(update={"attacks_that_count": []})
    measured = with_sdd(reduction_vs_undefended=none, harmful_execution=harm)
    assert "no attack" in check(policy("harmful_execution.worst", "at_most: 0.1"), measured).checks[0].why
    weak = sdd.reduction_vs_undefended.model_copy(update={"attacks_that_count": ["full-100"], "too_weak": ["lora-10"]})
    measured = with_sdd(reduction_vs_undefended=weak, harmful_execution=harm)
    after = "harmful_execution.after_attack"
    assert check(policy(f"{after}.full-100", "at_most: 0.1"), measured).passed
    assert "did not bring" in check(policy(f"{after}.lora-10", "at_most: 0.1"), measured).checks[0].why
    for field in ("steps", "ratio_vs_undefended", "last_point"):
        assert check(policy(f"attack_cost.full-100.{field}", "at_least: 0"), measured).passed
        result = check(policy(f"attack_cost.lora-10.{field}", "at_least: 0"), measured).checks[0]
        assert not result.passed and "did not bring" in result.why


def test_the_worst_control_is_the_one_that_may_be_worst(check: Check) -> None:
    sdd = summary().defenses["sdd"]
    for controls, why in (
        ({"benign": rate(3), "export": rate(1, 8)}, "the interval reaches 0.4709"),
        ({}, "not measured"),
        ({"benign": Measure(value=0.0)}, "not measured"),
    ):
        harm = sdd.harmful_execution.model_copy(update={"after_control": controls})
        result = check(policy("harmful_execution.worst_control", "at_most: 0.1"), with_sdd(harmful_execution=harm))
        assert result.checks[0].why == why


def cost(steps: int, ratio: float | None, *, censored: bool = False, last_point: bool = False) -> AttackCost:
    return AttackCost(steps=steps, censored=censored, last_point=last_point, ratio_vs_undefended=ratio)


def test_a_censored_cost_is_a_lower_bound(check: Check) -> None:
    measured = with_sdd(attack_cost=dict.fromkeys(("full-100", "lora-10"), cost(16, 16, censored=True)))
    for name in ("attack_cost.least_ratio", "attack_cost.full-100.ratio_vs_undefended"):
        assert check(policy(name, "at_least: 16"), measured).passed
        assert not check(policy(name, "at_most: 20"), measured).passed


def test_a_lower_bound_is_printed_as_one(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    rule = tmp_path / "policy.yaml"
    rule.write_text(policy("attack_cost.least_ratio", "at_least: 4"), encoding="utf-8")
    measured = with_sdd(attack_cost=dict.fromkeys(("full-100", "lora-10"), cost(16, 4, censored=True)))
    with pytest.raises(typer.Exit):
        gate(make_run(measured=measured), rule)
    assert "4.000 or more" in capsys.readouterr().out


def test_attacks_without_steps_enter_no_cost(check: Check) -> None:
    measured = with_sdd(attack_cost={"full-100": cost(16, 4, last_point=True), "lora-10": None})
    assert check(policy("attack_cost.least_ratio", "at_least: 4"), measured).passed
    assert not check(policy("attack_cost.last_points", "at_most: 0"), measured).passed
    with pytest.raises(UserError, match=r"no measure in this run named 'attack_cost\.lora-10\.steps'"):
        check(policy("attack_cost.lora-10.steps", "at_least: 4"), measured)
    nothing = with_sdd(attack_cost={"full-100": None, "lora-10": None})
    assert check(policy("attack_cost.least_ratio", "at_least: 0"), nothing).checks[0].why == "not measured"
    unknown = with_sdd(attack_cost={"full-100": cost(16, 4), "lora-10": cost(16, None)})
    assert check(policy("attack_cost.least_ratio", "at_least: 0"), unknown).checks[0].why == "not measured"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("defense: sd\nrequire: {benign_answer_rate: {at_most: 9}}", "'sdd'"),
        ("defense: sdd\nrequire: {capabilty.drop_vs_shipped: {at_most: 9}}", "'capability.drop_vs_shipped'"),
        ("defense: sdd\nrequire: {benign_answer_rate: {at_mots: 9}}", "'at_most'"),
        ("defense: sdd\nrequires: {}", "'require'"),
        ("defense: sdd\nrequire: {}", "require"),
        ("defense: sdd\nrequire: {benign_answer_rate: {}}", "at_most or at_least"),
        ("defense: sdd\nrequire: {benign_answer_rate: {at_most: .nan}}", "finite"),
        ("defense: sdd\nrequire: {benign_answer_rate: {at_most: '9'}}", "benign_answer_rate.at_most"),
        ("defense: sdd\nrequire: {benign_answer_rate: {at_most: true}}", "benign_answer_rate.at_most"),
        ("defense: [", "line 1"),
        ("", "the top"),
    ],
)
def test_unusable_policies(check: Check, text: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint.replace(".", r"\.")):
        check(text)


def test_missing_policy_and_bytes(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run()
    with pytest.raises(UserError, match="is not a file"):
        check_gate(run, tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"defense: s\xe9d")
    with pytest.raises(UserError, match="not UTF-8"):
        check_gate(run, tmp_path / "latin.yaml")


def test_the_policy_of_the_documentation(make_run: Callable[..., Path], tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "measures.md").read_text(encoding="utf-8")
    policy_file = tmp_path / "policy.yaml"
    policy_file.write_text(page.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    assert len(check_gate(make_run(), policy_file).checks) == 4
    names = measures_of(summary().defenses["sdd"])
    paths = [cell.strip(" `") for line in page.splitlines() if line.startswith("| `") for cell in line.split("|")[1:2]]
    assert all(path in names for path in paths if "NAME" not in path) and len(paths) == 5
