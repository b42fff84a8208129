"""The gate checks attack costs by the ends of their intervals; one that an attack did not reach is a lower bound."""

from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from made_up_run import Check, policy, with_sdd

from tamperfuse.cli.gate import gate
from tamperfuse.records.errors import UserError
from tamperfuse.records.summary import AttackCost


def cost(steps: int, ratio: float | None, *, censored: bool = False, last_point: bool = False) -> AttackCost:
    """A cost whose interval ends below at the value, and above, unless censored, at its double."""
    return AttackCost(
        steps=steps,
        censored=censored,
        last_point=last_point,
        ratio_vs_undefended=ratio,
        steps_low=steps,
        steps_high=None if censored else 2 * steps,
        ratio_low=ratio,
        ratio_high=None if censored or ratio is None else 2 * ratio,
    )


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


def test_a_cost_is_checked_by_its_interval(check: Check) -> None:
    wide = cost(8, 4).model_copy(update={"ratio_low": 1.2, "steps_low": 5.0})
    measured = with_sdd(attack_cost={"full-100": wide, "lora-10": cost(16, 16)})
    for name in ("least_ratio", "full-100.ratio_vs_undefended", "full-100.steps"):
        (finding,) = check(policy(f"attack_cost.{name}", "at_least: 6"), measured).checks
        assert not finding.passed and "more prompts and more steps in `at_steps` narrow it" in finding.why
        assert finding.items_to_resolve is None
    assert check(policy("attack_cost.least_ratio", "at_least: 1.2"), measured).passed
    older = with_sdd(
        attack_cost={"full-100": AttackCost(steps=8, censored=False, last_point=False, ratio_vs_undefended=4)}
    )
    for name in ("least_ratio", "full-100.ratio_vs_undefended", "full-100.steps"):
        why = check(policy(f"attack_cost.{name}", "at_least: 1"), older).checks[0].why
        assert "no lower end of the interval is known" in why, "a file from before costs had intervals"


def test_attacks_without_steps_enter_no_cost(check: Check) -> None:
    measured = with_sdd(attack_cost={"full-100": cost(16, 4, last_point=True), "lora-10": None})
    assert check(policy("attack_cost.least_ratio", "at_least: 4"), measured).passed
    assert not check(policy("attack_cost.last_points", "at_most: 0"), measured).passed
    with pytest.raises(UserError, match=r"no measure in this run named 'attack_cost\.lora-10\.steps'"):
        check(policy("attack_cost.lora-10.steps", "at_least: 4"), measured)
    nothing = with_sdd(attack_cost={"full-100": None, "lora-10": None})
    with pytest.raises(UserError, match="did not measure"):
        check(policy("attack_cost.least_ratio", "at_least: 0"), nothing)
    unknown = with_sdd(attack_cost={"full-100": cost(16, 4), "lora-10": cost(16, None)})
    for name in ("attack_cost.least_ratio", "attack_cost.lora-10.ratio_vs_undefended"):
        (finding,) = check(policy(name, "at_least: 0"), unknown).checks
        assert not finding.passed and "there is no ratio for lora-10, under which the undefended model" in finding.why
    assert check(policy("attack_cost.full-100.ratio_vs_undefended", "at_least: 4"), unknown).passed
