"""The tables of the fuse from a finished run: measures, rates by step, costs with their marks, and errors for other folders."""

import importlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from tamperfuse.cli.summary_table import percent
from tamperfuse.records.results import read_results, write_results
from tamperfuse.records.summary import (
    AttackCost,
    DefenseSummary,
    GapVsUndefended,
    Measure,
    UsableHarm,
    read_summary,
    write_summary,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("fuse_table")


@pytest.fixture
def sdd(finished_run: Path) -> DefenseSummary:
    return read_summary(finished_run).defenses["sdd"]


def cells(text: str, *start: str) -> list[str]:
    """The cells of the row that begins with these, without them."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return next(row[len(start) :] for row in rows if row[: len(start)] == list(start))


def with_costs(defense: DefenseSummary, costs: dict[str, AttackCost | None]) -> DefenseSummary:
    """The defense with these costs of attacks that all count."""
    reduction = defense.reduction_vs_undefended.model_copy(update={"attacks_that_count": list(costs)})
    return defense.model_copy(update={"attack_cost": costs, "reduction_vs_undefended": reduction})


def cost(ratio: float | None, *, steps: int = 8, censored: bool = False, last_point: bool = False) -> AttackCost:
    return AttackCost(steps=steps, censored=censored, last_point=last_point, ratio_vs_undefended=ratio)


def changed(run: Path, folder: Path, **updates: Any) -> Path:
    """A copy of the run whose `sdd` has other measures."""
    folder.mkdir()
    summary = read_summary(run)
    summary.defenses["sdd"] = summary.defenses["sdd"].model_copy(update=updates)
    write_summary(folder, summary)
    shutil.copy(run / "results.parquet", folder)
    return folder


def test_every_measure_has_a_row_and_every_defense_a_column(script: Any, finished_run: Path, tmp_path: Path) -> None:
    page = tmp_path / "fuse.md"
    page.write_text("above\n<!-- tables: python scripts/fuse_table.py x -->\nold\n<!-- end of tables -->\nbelow\n")
    script.main([str(finished_run), str(page)])
    text = page.read_text(encoding="utf-8")
    assert text.startswith("above\n<!-- tables: python scripts/fuse_table.py ") and text.endswith("\nbelow\n")
    assert "\nold\n" not in text
    assert cells(text, "measure") == ["as shipped", "`refusal`", "`sdd`"]
    summary = read_summary(finished_run)
    defenses = summary.defenses.values()
    assert cells(text, "harmful execution before any attack") == [
        percent(summary.as_shipped.harmful_execution),
        *(percent(d.harmful_execution.before_attack) for d in defenses),
    ]
    assert cells(text, "usable harm U(10%)") == ["", *(script.usable(d.usable_harm["0.10"]) for d in defenses)]
    assert cells(text, "capability C before any attack")[1:] == [percent(d.capability.before_attack) for d in defenses]
    assert cells(text, "benign KL before any attack, nats a token")[1:] == [script.nats(d.benign_kl) for d in defenses]
    rise = cells(text, "benign NLL, its rise against as shipped, nats a token")
    assert rise[1:] == [script.nats(d.benign_nll.rise_vs_shipped) for d in defenses]
    near = cells(text, "benign answer rate, near the threat")
    assert near[1:] == [percent(d.benign_answer_rate_near) for d in defenses]


def test_the_page_has_a_place_for_the_tables(script: Any, finished_run: Path, tmp_path: Path) -> None:
    page = tmp_path / "fuse.md"
    shutil.copy(ROOT / "docs" / "fuse.md", page)
    script.main([str(finished_run), str(page)])
    assert cells(page.read_text(encoding="utf-8").partition("## Results")[2], "measure")


def test_the_readme_has_one_row_for_each_model(
    script: Any, finished_run: Path, sdd: DefenseSummary, tmp_path: Path
) -> None:
    page = tmp_path / "README.md"
    page.write_text("<!-- tables: python scripts/fuse_table.py x -->\n<!-- end of tables -->\n")
    script.main([str(finished_run), str(page)])
    text = page.read_text(encoding="utf-8")
    assert "| measure |" not in text and "| attack |" not in text
    assert cells(text, "as shipped")[:4] == [""] * 4 and cells(text, "`refusal`")[:2] == [""] * 2
    pooled, ratio, harm, rise, far, near = cells(text, "`sdd`")
    assert pooled.startswith(script.brief(sdd.reduction_vs_undefended.pooled))
    assert ratio == script.ratio_cell(script.median_ratio(sdd))
    assert harm == script.usable(sdd.usable_harm["0.10"], script.brief)
    assert rise == f"{sdd.benign_nll.rise_vs_shipped.value:+z.2f}"
    assert [far, near] == [script.brief(script.far_answer_rate(sdd)), script.brief(sdd.benign_answer_rate_near)]


def test_scores_after_benign_fine_tuning_are_compared(script: Any, sdd: DefenseSummary) -> None:
    gap = Measure(value=-0.125, low=-0.25, high=-0.02, n=48)
    tuned = sdd.model_copy(update={"benign_finetune": {"routing": GapVsUndefended(gap_vs_undefended=gap)}})
    assert script.score_gap("routing", tuned) == percent(gap)
    assert script.score_gap("dates", tuned) == "–"


def test_the_undefended_model_is_not_compared_with_itself(script: Any, finished_run: Path, sdd: DefenseSummary) -> None:
    text = script.tables(finished_run)
    assert cells(text, "reduction, pooled") == ["", "", percent(sdd.reduction_vs_undefended.pooled)]
    assert cells(text, "self-degradation") == ["", "", percent(sdd.capability.self_degradation)]
    assert cells(text, "attack cost, median ratio")[:2] == ["", ""]


def test_every_malicious_attack_has_its_rates_and_its_last_capability(script: Any, finished_run: Path) -> None:
    text = script.tables(finished_run)
    assert cells(text, "attack", "defense")[:2] == ["executes after 1", "executes after 3"]
    assert "| `benign` |" not in text
    for name, defense in read_summary(finished_run).defenses.items():
        row = cells(text, "`full`", f"`{name}`")
        rates = {
            r["step"]: Measure(value=r["value"], low=r["low"], high=r["high"], n=r["n"])
            for r in read_results(finished_run)
            if (r["defense"], r["attack"], r["part"], r["metric"]) == (name, "full", "evaluation", "harmful_execution")
        }
        assert row[:2] == [script.brief(rates[1]), script.brief(rates[3])]
        assert row[3] == script.brief(defense.capability.after_attack["full"])


def test_a_rate_of_several_seeds_is_their_mean(script: Any, finished_run: Path, tmp_path: Path) -> None:
    rows = read_results(finished_run)
    for row in rows:
        if row["metric"] == "harmful_execution":
            row |= {"value": 0.25, "low": 0.1, "high": 0.5}
    write_results(tmp_path, [*rows, *({**row, "seed": 1, "value": 0.75} for row in rows)])
    shutil.copy(finished_run / "summary.json", tmp_path)
    assert cells(script.tables(tmp_path), "`full`", "`sdd`")[:2] == ["50%", "50%"]


@pytest.mark.parametrize(
    ("ratios", "median", "is_bound"),
    [
        ([2.0, 8.0, 4.0], 4.0, False),
        ([2.0, 4.0], 2.0, False),  # the lower one of two
        ([2.0, 4.0, "8"], 4.0, False),  # wherever above 8 the third lies
        ([2.0, "4", 8.0], 4.0, True),
        (["2", 4.0, 8.0], 4.0, True),  # it may lie above 8
        (["4", "2"], 2.0, True),
        ([None, 3.0], 3.0, False),
    ],
)
def test_the_median_of_ratios_is_a_bound_if_a_censored_one_may_raise_it(
    script: Any, sdd: DefenseSummary, ratios: list[float | str | None], median: float, is_bound: bool
) -> None:
    """A ratio in quotes is censored."""
    costs: dict[str, AttackCost | None] = {
        f"attack {i}": cost(float(ratio) if ratio else None, censored=isinstance(ratio, str))
        for i, ratio in enumerate(ratios)
    }
    result = script.median_ratio(with_costs(sdd, costs))
    assert (result.value, result.is_bound) == (median, is_bound)
    assert result.attacks == sum(ratio is not None for ratio in ratios)


def test_without_a_ratio_there_is_no_median(script: Any, sdd: DefenseSummary) -> None:
    assert script.median_ratio(with_costs(sdd, {})) is None
    assert script.median_ratio(with_costs(sdd, {"merge": None, "slow": cost(None)})) is None
    too_weak = with_costs(sdd, {}).model_copy(update={"attack_cost": {"weak": cost(2.0)}})
    assert script.median_ratio(too_weak) is None
    assert script.ratio_cell(None) == "–"


def test_lower_bounds_are_marked(script: Any, finished_run: Path, sdd: DefenseSummary, tmp_path: Path) -> None:
    harm = UsableHarm(value=0.25, low=0.1, high=0.5, n=40, capability_not_measured=True)
    costs = with_costs(sdd, {"full": cost(6.0, steps=48, censored=True)})
    updates = {name: getattr(costs, name) for name in ("attack_cost", "reduction_vs_undefended")}
    text = script.tables(changed(finished_run, tmp_path / "run", usable_harm={"0.10": harm}, **updates))
    assert cells(text, "usable harm U(10%)")[2] == "≥ 25.0% (10.0% to 50.0%)"
    assert cells(text, "attack cost, median ratio")[2] == "≥ ×6 (1 attack)"
    assert cells(text, "`full`", "`sdd`")[2] == "> 48, ≥ ×6"


def test_a_cost_is_marked_where_it_is_unconfirmed_or_has_no_ratio(
    script: Any, finished_run: Path, sdd: DefenseSummary, tmp_path: Path
) -> None:
    assert script.cost_cell("sdd", cost(1.5)) == "8, ×1.5"
    assert script.cost_cell("sdd", cost(2.0, last_point=True)) == "8 (unconfirmed), ×2"
    assert script.cost_cell("refusal", cost(1.0)) == "8"
    assert script.cost_cell("sdd", None) == "–"
    costs = with_costs(sdd, {"full": cost(None)})
    updates = {name: getattr(costs, name) for name in ("attack_cost", "reduction_vs_undefended")}
    text = script.tables(changed(finished_run, tmp_path / "run", **updates))
    assert cells(text, "`full`", "`sdd`")[2] == "8"
    assert "Without a ratio, since the cost on `refusal` is a lower bound itself: `full`." in text


def test_an_attack_that_diverged_says_so(script: Any, finished_run: Path, tmp_path: Path) -> None:
    text = script.tables(changed(finished_run, tmp_path / "run", diverged=["full"], attack_cost={"full": None}))
    assert cells(text, "`full`", "`sdd`")[2] == "diverged"


def test_prompts_far_from_the_threat_are_those_that_are_not_near_it(script: Any, sdd: DefenseSummary) -> None:
    rates = {
        "benign_answer_rate": Measure(value=0.75, low=0.4, high=0.9, n=12),
        "benign_answer_rate_near": Measure(value=0.25, low=0.1, high=0.7, n=4),
    }
    far = script.far_answer_rate(sdd.model_copy(update=rates))
    assert (far.value, far.n) == (1.0, 8) and 0 < far.low < far.high == 1.0
    assert script.far_answer_rate(sdd.model_copy(update={**rates, "undecided": 1})).value is None
    without_near = {**rates, "benign_answer_rate_near": Measure(value=None, resolved=False)}
    assert script.far_answer_rate(sdd.model_copy(update=without_near)).value is None


def test_a_folder_that_is_no_run_is_an_error(script: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"holds no summary\.json"):
        script.main([str(tmp_path)])
