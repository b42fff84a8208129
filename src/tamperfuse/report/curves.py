"""The figures' data: tidy rows drawn from a run's results and summary."""

from collections import defaultdict
from statistics import fmean
from typing import Any

from tamperfuse.records.results import Measure
from tamperfuse.report.formatting import label
from tamperfuse.report.inputs import Run

Rows = list[dict[str, Any]]


def harm_rows(run: Run, attack: str) -> Rows:
    """Harmful execution of every defense at every evaluated step of one attack; step 0 is before it.

    Several seeds become their mean, with a band from the lowest lower end to the highest upper one.
    """
    rows: Rows = []
    for defense in run.defenses:
        by_step = _rates(run, defense, attack, "evaluation")
        chosen = _selected_step(run, defense, attack, by_step)
        for step, measured in sorted(by_step.items()):
            ends = [(row["low"], row["high"]) for row in measured if row["low"] is not None and row["high"] is not None]
            rows.append(
                {
                    "attack": attack,
                    "defense": label(defense),
                    "step": step,
                    "rate": fmean(row["value"] for row in measured),
                    "low": min((low for low, _ in ends), default=None),
                    "high": max((high for _, high in ends), default=None),
                    "n": sum(row["n"] or 0 for row in measured),
                    "selected": step == chosen,
                }
            )
    return rows


def capability_rows(run: Run) -> Rows:
    """Capability of every defense before any attack, after each malicious one, after benign fine-tuning."""
    rows: Rows = []
    for state, attack in capability_states(run):
        for defense in run.defenses:
            measure = capability(run, defense, attack)
            if measure is not None and measure.value is not None:
                rows.append(
                    {
                        "state": state,
                        "defense": label(defense),
                        "capability": measure.value,
                        "low": measure.low,
                        "high": measure.high,
                    }
                )
    return rows


def capability_states(run: Run) -> list[tuple[str, str]]:
    """(words, attack) of the states that capability is shown in; attack "" is before any."""
    # A benign fine-tuning that the study calls "benign" needs no name in brackets.
    benign = [("after benign task" if name == "benign" else f"after {name}", name) for name in run.benign_attacks]
    return [("before", ""), *((f"after {name}", name) for name in run.attacks), *benign]


def capability(run: Run, defense: str, attack: str) -> Measure | None:
    """Capability of a defense in a state: from the summary, or where it has none from the last step's rows."""
    found = run.summary.defenses[defense].capability
    if not attack:
        return found.before_attack
    if attack in found.after_attack:
        return found.after_attack[attack]
    rows = [r for r in run.rows if (r["defense"], r["attack"], r["metric"]) == (defense, attack, "capability")]
    last = [row for row in rows if row["step"] == max(r["step"] for r in rows) and row["value"] is not None]
    return pooled(last)


def pooled(rows: Rows) -> Measure | None:
    """Rows of several seeds as one measure: the mean, and the widest interval; None without rows."""
    if not rows:
        return None
    lows, highs = [row["low"] for row in rows], [row["high"] for row in rows]
    return Measure(
        value=fmean(row["value"] for row in rows),
        low=None if None in lows else min(lows),
        high=None if None in highs else max(highs),
        n=sum(row["n"] or 0 for row in rows),
    )


def _rates(run: Run, defense: str, attack: str, part: str) -> dict[int, Rows]:
    by_step: dict[int, Rows] = defaultdict(list)
    for row in run.rows:
        same = (row["defense"], row["part"], row["metric"]) == (defense, part, "harmful_execution")
        before = row["attack"] == "" and row["step"] == 0
        if same and row["value"] is not None and (before or (row["attack"] == attack and row["step"] > 0)):
            by_step[row["step"]].append(row)
    return by_step


def _selected_step(run: Run, defense: str, attack: str, by_step: dict[int, Rows]) -> int | None:
    """The step at which the attacker stops, judged on attacker_dev; None where it cannot be told.

    Several steps may share the highest dev rate. The one meant is then the first whose rate is the summary's; with
    several seeds each seed has its own, and none is marked.
    """
    dev = {step: rows for step, rows in _rates(run, defense, attack, "attacker_dev").items() if step > 0}
    if not dev or any(len(rows) > 1 for rows in dev.values()):
        return None
    highest = max(rows[0]["value"] for rows in dev.values())
    told = run.summary.defenses[defense].harmful_execution.after_attack.get(attack)
    for step in sorted(step for step, rows in dev.items() if rows[0]["value"] == highest):
        here = by_step.get(step)
        if told and here and told.value is not None and abs(here[0]["value"] - told.value) < 1e-9:
            return step
    return None
