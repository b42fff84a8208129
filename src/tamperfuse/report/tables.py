"""The table: one row a measure, one column a defense, every value with its interval."""

from dataclasses import dataclass
from typing import Literal

from tamperfuse.records.results import UNDEFENDED, AttackCost, DefenseSummary, Measure
from tamperfuse.report.curves import capability, capability_states
from tamperfuse.report.formatting import MINUS, MISSING, NOT_RESOLVED, is_resolved, percent, span, times
from tamperfuse.report.inputs import Run

Kind = Literal["rate", "difference", "nats", "nats difference"]


@dataclass(frozen=True)
class Cell:
    """A value as printed, and its interval (or another remark) in small print below it."""

    text: str
    small: str = ""
    muted: bool = False


@dataclass(frozen=True)
class Row:
    """A measure: its name, a remark, and one cell a defense."""

    name: str
    cells: list[Cell]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """Rows that belong together."""

    title: str
    rows: list[Row]


def table(run: Run) -> list[Section]:
    """The sections of the table; the cells are in the order of `run.defenses`."""
    return [
        Section("Harmful execution", _harm(run)),
        Section("Usable harm: the most an attacker gets from a model that kept", _usable(run)),
        Section("Attack cost: steps to half of the undefended model's highest rate", _costs(run)),
        Section("Capability, as shipped = 100%", _capability(run)),
        Section("Honest use", _benign(run)),
    ]


def measure_cell(measure: Measure | None, kind: Kind = "rate") -> Cell:
    """A measure as a cell. A difference that the sample cannot tell from none gives its interval and no value."""
    if measure is None or measure.value is None:
        return Cell(MISSING, muted=True)
    nats = kind.startswith("nats")
    has_interval = measure.low is not None and measure.high is not None
    interval = (f"{_nats(measure.low)} to {_nats(measure.high)}" if nats else span(measure)) if has_interval else ""
    unresolved = not is_resolved(measure) if kind.endswith("difference") else not measure.resolved
    if unresolved:
        return Cell(NOT_RESOLVED, interval, muted=True)
    return Cell(_nats(measure.value) if nats else percent(measure.value), interval)


def _nats(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}".replace("-", MINUS)


def _row(run: Run, name: str, measures: list[Measure | None], kind: Kind = "rate", note: str = "") -> Row:
    """One cell a defense; the undefended model, the yardstick of every difference, has none of those."""
    cells = []
    for defense, measure in zip(run.defenses, measures, strict=True):
        yardstick = kind.endswith("difference") and defense == UNDEFENDED
        cells.append(measure_cell(None if yardstick else measure, kind))
    return Row(name, cells, note)


def _found(run: Run) -> list[DefenseSummary]:
    """What was found of each defense, in the order of the columns."""
    return [run.summary.defenses[name] for name in run.defenses]


def _harm(run: Run) -> list[Row]:
    found = _found(run)
    too_weak = {name for d in found for name in d.reduction_vs_undefended.too_weak}
    notes = dict.fromkeys(too_weak, "too weak to count") | dict.fromkeys(run.benign_attacks, "benign, not counted")
    rows = [_row(run, "before any attack", [d.harmful_execution.before_attack for d in found])]
    for attack in [*run.attacks, *run.benign_attacks]:
        measures = [d.harmful_execution.after_attack.get(attack) for d in found]
        if any(measures):
            rows.append(_row(run, f"after {attack}", measures, note=notes.get(attack, "")))
    pooled, worst = ([getattr(d.reduction_vs_undefended, name) for d in found] for name in ("pooled", "worst"))
    rows.append(_row(run, "reduction, attacks pooled", pooled, "difference"))
    rows.append(_row(run, "reduction, worst attack", worst, "difference"))
    return rows


def _usable(run: Run) -> list[Row]:
    rows = []
    for key in sorted({key for d in _found(run) for key in d.usable_harm}, key=float):
        kept = f"at least {percent(1 - float(key))} of the capability" if float(key) < 1 else "anything at all"
        rows.append(_row(run, kept, [d.usable_harm.get(key) for d in _found(run)], note=f"U({percent(float(key))})"))
    return rows


def _costs(run: Run) -> list[Row]:
    return [
        Row(attack, [_cost_cell(run.summary.defenses[d].attack_cost.get(attack), d) for d in run.defenses])
        for attack in run.attacks
    ]


def _cost_cell(cost: AttackCost | None, defense: str) -> Cell:
    if cost is None:
        return Cell(MISSING, muted=True)
    steps = f"> {cost.steps}" if cost.censored else str(cost.steps)
    if defense == UNDEFENDED or cost.ratio_vs_undefended is None:
        return Cell(steps, "not reached" if cost.censored else "")
    return Cell(steps, f"{'more than ' if cost.censored else ''}{times(cost.ratio_vs_undefended)} times")


def _capability(run: Run) -> list[Row]:
    rows = []
    for state, attack in capability_states(run):
        measures = [capability(run, defense, attack) for defense in run.defenses]
        if any(measures):
            rows.append(_row(run, state, measures))
    found = [d.capability for d in _found(run)]
    rows.append(_row(run, "drop before any attack", [c.drop_vs_undefended for c in found], "difference"))
    note = "attacks' toll beyond the undefended model's"
    rows.append(_row(run, "self-degradation", [c.self_degradation for c in found], "difference", note))
    return rows


def _benign(run: Run) -> list[Row]:
    found = _found(run)
    rows = [
        _row(run, "benign answer rate", [d.benign_answer_rate for d in found]),
        _row(run, "benign NLL", [d.benign_nll.before_attack for d in found], "nats", "nats a token, held out"),
        _row(run, "rise of benign NLL", [d.benign_nll.rise_vs_undefended for d in found], "nats difference"),
    ]
    for task in sorted({name for d in found for name in d.benign_finetune}):
        gaps = [d.benign_finetune[task].gap_vs_undefended if task in d.benign_finetune else None for d in found]
        rows.append(_row(run, f"benign task: {task}", gaps, "difference", "gap in score after learning it"))
    return rows
