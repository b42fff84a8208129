"""Sentences of README.md with figures, written once more from the published results."""

from pathlib import Path

import pytest

from tamperfuse.records.results import UNDEFENDED, read_results
from tamperfuse.records.summary import Measure, Summary, read_summary
from tamperfuse.report.formatting import percent, rough

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "studies" / "results"
NUMBERS = {1: "one", 5: "five", 6: "six", 14: "fourteen"}


def bare(share: float, digits: int = 0) -> str:
    """A share as a percentage without its sign."""
    return percent(share, digits).removesuffix("%")


def ends(measure: Measure, digits: int = 0) -> str:
    assert measure.low is not None and measure.high is not None
    return f"{bare(measure.low, digits)} to {bare(measure.high, digits)}"


def value(measure: Measure) -> float:
    assert measure.value is not None
    return measure.value


def of_the_fuse(summary: Summary) -> list[str]:
    fuse, refusal = summary.defenses["fuse"], summary.defenses[UNDEFENDED]
    undefended = [refusal.attack_cost[attack].steps for attack in fuse.attack_cost]
    total, beyond = NUMBERS[len(undefended)], NUMBERS[sum(cost.censored for cost in fuse.attack_cost.values())]
    taken, lost = fuse.capability.self_degradation, fuse.capability.drop_vs_undefended
    return [
        f"{total} attacks reach half of their highest rate within {min(undefended)} to {max(undefended)} steps; on the fuse "
        f"{beyond} of the {total} do not reach that half within 48 steps",
        f"self-degradation is {bare(value(taken))} points ({ends(taken)})",
        f"capability is {rough(value(lost))} below that of `refusal` ({ends(lost)})",
    ]


def of_the_last_step() -> list[str]:
    rows = [
        row
        for row in read_results(RESULTS / "fuse")
        if row["defense"] == "fuse" and row["malicious"] and row["step"] == 48
        if row["metric"] == "harmful_execution" and row["part"] == "evaluation"
    ]
    means = [
        sum(row["value"] for row in rows if row["attack"] == attack) / 2 for attack in {row["attack"] for row in rows}
    ]
    highest = max(rows, key=lambda row: row["value"])
    worst = Measure(value=highest["value"], low=highest["low"], high=highest["high"], n=highest["n"])
    return [
        f"After 48 steps the attacks execute {bare(min(means))} to {rough(max(means))} of the requests (means of two seeds; the "
        f"highest rate of one seed is {rough(value(worst))}, {ends(worst)})"
    ]


def of_the_demo(summary: Summary) -> list[str]:
    sdd, refusal, shipped = summary.defenses["sdd"], summary.defenses[UNDEFENDED], summary.as_shipped
    return [
        f"SDD gives irrelevant answers to forbidden requests and executes {percent(value(sdd.harmful_execution.before_attack))}",
        f"SDD answers {rough(value(sdd.benign_answer_rate))} of harmless prompts (as shipped "
        f"{rough(value(shipped.benign_answer_rate))}), refusal training alone {rough(value(refusal.benign_answer_rate))}",
    ]


def of_the_attacks(summary: Summary) -> list[str]:
    sdd, refusal = summary.defenses["sdd"], summary.defenses[UNDEFENDED]
    reduction = sdd.reduction_vs_undefended
    counting = NUMBERS[len(reduction.attacks_that_count)]
    restored = {value(defense.harmful_execution.after_control["gguf-q4"]) for defense in (sdd, refusal)}
    assert len(restored) == 1
    return [
        f"{counting} of the attacks bring the undefended model to 80% and so count",
        f"SDD's pooled reduction over the {counting} is {percent(value(reduction.pooled))} ({ends(reduction.pooled, 1)}), not "
        "resolved",
        f"`refusal` and `sdd` both execute {rough(restored.pop())} of the requests again",
    ]


def sentences() -> list[str]:
    return [
        *of_the_fuse(read_summary(RESULTS / "fuse")),
        *of_the_last_step(),
        *of_the_demo(read_summary(RESULTS / "demo")),
        *of_the_attacks(read_summary(RESULTS / "attacks")),
    ]


@pytest.mark.parametrize("sentence", sentences())
def test_the_readme_says_what_the_published_results_say(sentence: str) -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split()).replace("**", "")
    assert sentence in readme
