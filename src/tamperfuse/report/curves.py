"""Data of the figures: tidy rows from a run's results and summary."""

from collections import defaultdict
from statistics import fmean
from typing import Any

from tamperfuse.records.summary import Measure
from tamperfuse.report.formatting import label, percent
from tamperfuse.report.inputs import Run

Rows = list[dict[str, Any]]


def harm_rows(run: Run, attack: str) -> Rows:
    """Harmful execution of every defense at every evaluated step of one attack; step 0 is before the attack.

    Several seeds are averaged; their band reaches from the lowest lower end to the highest upper end. `selected` marks the step
    at which the attacker stops, where all seeds agree on it; `all_models` has the rates of all models at this step.
    """
    rows: Rows = []
    for defense in run.defenses:
        chosen = chosen_steps(run, defense, attack)
        for step, measured in sorted(_rates(run, defense, attack).items()):
            ends = [(row["low"], row["high"]) for row in measured if row["low"] is not None and row["high"] is not None]
            rows.append(
                {
                    "attack": attack,
                    "defense": label(defense),
                    "step": step,
                    "rate": fmean(row["value"] for row in measured),
                    "low": min((low for low, _ in ends), default=None),
                    "high": max((high for _, high in ends), default=None),
                    "n": max(row["n"] or 0 for row in measured),  # every seed has the same prompts
                    "selected": set(chosen.values()) == {step},
                }
            )
    return add_all_models(rows, "step")


def add_all_models(rows: Rows, *place: str) -> Rows:
    """The same rows, with the rate of every model at the same place as `all_models`: the points of models can cover each other.

    Args:
        rows: rows with `defense` and `rate`.
        place: fields that are equal at the same place.
    """
    rates: dict[tuple[Any, ...], dict[str, None]] = defaultdict(dict)  # by place, in the order of the rows
    for row in rows:
        rates[tuple(row[name] for name in place)][f"{row['defense']} {percent(row['rate'])}"] = None
    return [{**row, "all_models": ", ".join(rates[tuple(row[name] for name in place)])} for row in rows]


def chosen_steps(run: Run, defense: str, attack: str) -> dict[int, int]:
    """The step at which the attacker stops, by seed."""
    return {
        row["seed"]: row["step"]
        for row in run.decided_rows
        if (row["defense"], row["attack"], row["metric"]) == (defense, attack, "chosen_step")
    }


def rates_by_seed(run: Run, defense: str, attack: str) -> dict[int, float]:
    """Harmful execution on the evaluation part at the step at which the attacker stops, by seed."""
    place = (defense, attack, "harmful_execution", "evaluation")
    chosen = chosen_steps(run, defense, attack)
    return {
        row["seed"]: row["value"]
        for row in run.decided_rows
        if (row["defense"], row["attack"], row["metric"], row["part"]) == place
        and row["step"] == chosen.get(row["seed"])
    }


def capability_rows(run: Run) -> Rows:
    """Capability of every defense before any attack and after each attack."""
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
    """(title, attack) of the states whose capability is shown; attack "" is before any attack."""
    return [("before", ""), *((f"after {name}", name) for name in [*run.attacks, *run.controls])]


def capability(run: Run, defense: str, attack: str) -> Measure | None:
    """Capability of a defense before any attack ("") or after one; None if it was not measured there."""
    measured = run.summary.defenses[defense].capability
    return measured.after_attack.get(attack) if attack else measured.before_attack


def _rates(run: Run, defense: str, attack: str) -> dict[int, Rows]:
    """By step: the rows of harmful execution on the evaluation part, one per seed."""
    by_step: dict[int, Rows] = defaultdict(list)
    for row in run.decided_rows:
        matches = (row["defense"], row["part"], row["metric"]) == (defense, "evaluation", "harmful_execution")
        before = row["attack"] == "" and row["step"] == 0
        if matches and row["value"] is not None and (before or (row["attack"] == attack and row["step"] > 0)):
            by_step[row["step"]].append(row)
    return by_step
