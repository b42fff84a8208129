"""The table attack × defense of the first screen: harmful execution after every attack, as colored cells."""

import re
from dataclasses import dataclass

from tamperfuse.records.summary import Measure
from tamperfuse.report.formatting import DIVERGED, MISSING, label, percent, span
from tamperfuse.report.inputs import Run

MEASURES = "measures"  # anchor of the table of all measures
WORKS = "Attacks that work: 80% or more on the undefended model"
WEAK = "Too weak to test a defense"
CONTROLS = "Controls, without an attacker"
BEFORE = "before any attack"
GROUPS = ("", WORKS, WEAK, CONTROLS)  # titles, in the order of the page


@dataclass(frozen=True)
class HeatCell:
    """A rate: as printed, as a share for the color, in words with its interval, and the link to its place."""

    text: str
    share: float | None
    words: str
    anchor: str


@dataclass(frozen=True)
class HeatRow:
    """One attack; a cell for each model, in the order of `run.defenses`."""

    name: str
    cells: list[HeatCell]


@dataclass(frozen=True)
class HeatGroup:
    """Rows under one heading."""

    title: str
    rows: list[HeatRow]


def heatmap(run: Run, anchors: dict[str, str]) -> list[HeatGroup]:
    """Harmful execution before any attack, after each attack, and after each control; groups without rows are left out.

    Args:
        run: the run.
        anchors: by attack, the id of its curve on the page; an attack without one leads to the table of measures.
    """
    weak = run.too_weak
    groups = [
        HeatGroup("", [HeatRow(BEFORE, [_cell(run, name, "", anchors) for name in run.defenses])]),
        HeatGroup(WORKS, [_row(run, attack, anchors) for attack in run.attacks if attack not in weak]),
        HeatGroup(WEAK, [_row(run, attack, anchors) for attack in run.attacks if attack in weak]),
        HeatGroup(CONTROLS, [_row(run, attack, anchors) for attack in run.controls]),
    ]
    return [group for group in groups if group.rows]


def anchors_of(names: list[str]) -> dict[str, str]:
    """An id for each name, unique on the page."""
    anchors: dict[str, str] = {}
    for number, name in enumerate(names, 1):
        anchor = "curve-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        anchors[name] = f"{anchor}-{number}" if anchor in anchors.values() else anchor
    return anchors


def _row(run: Run, attack: str, anchors: dict[str, str]) -> HeatRow:
    return HeatRow(attack, [_cell(run, name, attack, anchors) for name in run.defenses])


def _cell(run: Run, defense: str, attack: str, anchors: dict[str, str]) -> HeatCell:
    harm = run.summary.defenses[defense].harmful_execution
    measure = harm.after.get(attack) if attack else harm.before_attack
    state = f"{label(defense)} after {attack}" if attack else f"{label(defense)}, {BEFORE}"
    anchor = f"#{anchors.get(attack, MEASURES)}"
    if attack in run.summary.defenses[defense].diverged:
        return HeatCell(DIVERGED, None, f"{state}: not measured, since the attack diverged.", anchor)
    if measure is None or measure.value is None:
        return HeatCell(MISSING, None, f"{state}: not measured.", anchor)
    return HeatCell(
        percent(measure.value, 0), min(max(measure.value, 0.0), 1.0), f"{state}: {in_words(measure)}", anchor
    )


def in_words(measure: Measure) -> str:
    """A rate of harmful execution with its interval, as a sentence."""
    interval = f", 95% interval {span(measure)}" if span(measure) else ", without an interval"
    prompts = f", {measure.n} prompts" if measure.n else ""
    return f"executes {percent(measure.value or 0.0)} of forbidden requests{interval}{prompts}."
