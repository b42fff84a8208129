"""The table of the page: one row per measure, one column per model, every value with its interval."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from tamperfuse.records.results import UNDEFENDED
from tamperfuse.records.summary import AttackCost, DefenseSummary, Measure, UsableHarm
from tamperfuse.report.curves import capability, capability_states, rates_by_seed
from tamperfuse.report.formatting import DIVERGED, MINUS, MISSING, NOT_RESOLVED, is_resolved, percent, span, times
from tamperfuse.report.inputs import Run

Kind = Literal["rate", "difference", "score", "nats", "nats difference"]


@dataclass(frozen=True)
class Cell:
    """A value as printed, and its interval (or another remark) in small print below it."""

    text: str
    small: str = ""
    muted: bool = False


EMPTY = Cell(MISSING, muted=True)


@dataclass(frozen=True)
class TableRow:
    """A measure: its name, a remark, a cell for the model as shipped and one for each defense."""

    name: str
    cells: list[Cell]
    note: str = ""
    shipped: Cell = field(default=EMPTY)


@dataclass(frozen=True)
class Section:
    """Rows under one heading."""

    title: str
    rows: list[TableRow]


def table(run: Run) -> list[Section]:
    """The sections of the table; the cells are in the order of `run.defenses`."""
    counting = [name for name in run.attacks if name not in run.too_weak]
    weak = [name for name in run.attacks if name in run.too_weak]
    return [
        Section("Harmful execution", [_before(run), *_over_states(run)]),
        Section("Harmful execution after malicious attacks that count", _after(run, counting)),
        Section("Reduction of harmful execution, over the attacks that count", _reduction(run)),
        Section(
            "Harmful execution after attacks too weak to count: below 80% on the undefended model", _after(run, weak)
        ),
        Section("Harmful execution after controls, without an attacker", _controls(run)),
        Section("Usable harm: the highest harmful execution of a checkpoint that kept", _usable(run)),
        Section("Attack cost: steps to half of the undefended model's highest rate", _costs(run)),
        Section("Capability, as shipped = 100%", _capability(run)),
        Section("Answers to harmless prompts, before any attack", _answers(run)),
        Section("Likelihood of harmless text, before any attack", _likelihood(run)),
        Section("Benign fine-tuning", _benign_tasks(run)),
        Section(
            "Scores and undecided responses of the judge",
            judge_rows(run, _defenses(run), Cell(f"{run.summary.as_shipped.undecided:,}")),
        ),
    ]


def measure_cell(measure: Measure | None, kind: Kind = "rate") -> Cell:
    """A measure as a cell. A difference that is not resolved is printed as its interval without the value."""
    if measure is None or measure.value is None:
        return _with_remark(EMPTY, measure)
    is_share = kind in ("rate", "difference")
    has_interval = measure.low is not None and measure.high is not None
    interval = (
        (span(measure) if is_share else f"{_number(measure.low)} to {_number(measure.high)}") if has_interval else ""
    )
    if kind.endswith("difference") and not is_resolved(measure):
        return Cell(NOT_RESOLVED, interval, muted=True)
    return _with_remark(Cell(percent(measure.value) if is_share else _number(measure.value), interval), measure)


def _with_remark(cell: Cell, measure: Measure | None) -> Cell:
    if not isinstance(measure, UsableHarm) or not measure.capability_not_measured:
        return cell
    remark = "at least: capability was not measured at a more harmful step"
    return Cell(cell.text, f"{cell.small}; {remark}" if cell.small else remark, cell.muted)


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}".replace("-", MINUS)


def _row(
    run: Run,
    name: str,
    measures: list[Measure | None],
    kind: Kind = "rate",
    note: str = "",
    *,
    shipped: Measure | None = None,
    reference: str = UNDEFENDED,
) -> TableRow:
    """One cell per defense; the model that differences refer to has none of them."""
    cells = []
    for defense, measure in zip(run.defenses, measures, strict=True):
        is_reference = kind.endswith("difference") and defense == reference
        cells.append(EMPTY if is_reference else measure_cell(measure, kind))
    return TableRow(name, cells, note, measure_cell(shipped, kind))


def _defenses(run: Run) -> list[DefenseSummary]:
    """In the order of the columns."""
    return [run.summary.defenses[name] for name in run.defenses]


def _before(run: Run) -> TableRow:
    measures = [d.harmful_execution.before_attack for d in _defenses(run)]
    return _row(run, "before any attack", [*measures], shipped=run.summary.as_shipped.harmful_execution)


def _over_states(run: Run) -> list[TableRow]:
    """The mean and the worst rates over attacks, and of single seeds where there are several."""
    harms = [d.harmful_execution for d in _defenses(run)]
    rows = [
        _row(run, "mean over malicious attacks", [h.mean for h in harms]),
        _row(run, "worst malicious attack", [h.worst for h in harms]),
    ]
    if len(run.summary.seeds) > 1:
        rows.append(_row(run, "worst seed after a malicious attack", [h.worst_seed for h in harms]))
        rows.append(
            _row(run, "worst seed before any attack or after a control", [h.worst_seed_unattacked for h in harms])
        )
    return rows


def judge_rows(run: Run, parts: Sequence[DefenseSummary | None], shipped: Cell = EMPTY) -> list[TableRow]:
    """Mean scores where a judge grades responses, and how many it left undecided; nothing without them.

    Args:
        run: whose attacks and controls have scores.
        parts: of every column; None for one without measures.
        shipped: the undecided responses of the model as shipped.
    """
    rows, scores = [], [None if part is None else part.mean_score for part in parts]
    if any(scores):
        note = "in the judge's own unit"
        before = [measure_cell(None if one is None else one.before_attack, "score") for one in scores]
        rows.append(TableRow("mean score before any attack", before, note))
        for attack in (*run.attacks, *run.controls):
            after = [measure_cell(None if one is None else one.after.get(attack), "score") for one in scores]
            rows.append(TableRow(f"mean score after {attack}", after, note))
    if any(part.undecided for part in parts if part is not None):
        cells = [EMPTY if part is None else Cell(f"{part.undecided:,}") for part in parts]
        note = "values leave them out, intervals hold however they would have been decided"
        rows.append(TableRow("responses without a decision", cells, note, shipped))
    return rows


def _after(run: Run, attacks: list[str]) -> list[TableRow]:
    return [
        _with_seeds(
            run,
            attack,
            _after_row(
                run,
                attack,
                [d.harmful_execution.after_attack.get(attack) for d in _defenses(run)],
                "trains no steps" if attack in run.without_steps else "",
            ),
        )
        for attack in attacks
    ]


def _with_seeds(run: Run, attack: str, row: TableRow) -> TableRow:
    """The same row; where a run has several seeds, each cell also has the rate of each."""
    if len(run.summary.seeds) < 2:
        return row
    cells = []
    for defense, cell in zip(run.defenses, row.cells, strict=True):
        rates = rates_by_seed(run, defense, attack)
        seeds = f"seeds {', '.join(percent(rates[seed]) for seed in sorted(rates))}" if rates else ""
        cells.append(replace(cell, small=", ".join(filter(None, (cell.small, seeds)))))
    return replace(row, cells=cells)


def _controls(run: Run) -> list[TableRow]:
    return [
        _after_row(run, name, [d.harmful_execution.after_control.get(name) for d in _defenses(run)])
        for name in run.controls
    ]


def _after_row(run: Run, attack: str, measures: list[Measure | None], note: str = "") -> TableRow:
    """The rates after an attack or a control; a cell says where it diverged."""
    row = _row(run, f"after {attack}", measures, note=note)
    diverged = [attack in defense.diverged for defense in _defenses(run)]
    cells = [Cell(DIVERGED, muted=True) if is_nan else cell for is_nan, cell in zip(diverged, row.cells, strict=True)]
    return replace(row, cells=cells)


def _reduction(run: Run) -> list[TableRow]:
    reductions, better = [d.reduction_vs_undefended for d in _defenses(run)], "higher is better"
    return [
        _row(run, "all attacks pooled", [r.pooled for r in reductions], "difference", better),
        _row(run, "worst attack", [r.worst for r in reductions], "difference", better),
    ]


def _usable(run: Run) -> list[TableRow]:
    rows = []
    for key in sorted({key for d in _defenses(run) for key in d.usable_harm}, key=float):
        share = float(key)
        name = f"at least {percent(1 - share)} of the capability" if share < 1 else "any capability"
        rows.append(_row(run, name, [d.usable_harm.get(key) for d in _defenses(run)], note=f"U({percent(share)})"))
    return rows


def _costs(run: Run) -> list[TableRow]:
    """Attacks that train; those that count come first."""
    attacks = sorted((name for name in run.attacks if name not in run.without_steps), key=lambda a: a in run.too_weak)
    rows = [
        TableRow(
            attack,
            [_cost_cell(run.summary.defenses[d].attack_cost.get(attack), d) for d in run.defenses],
            "too weak to count" if attack in run.too_weak else "",
        )
        for attack in attacks
    ]
    without = [name for name in run.attacks if name in run.without_steps]
    if without:
        rows.append(TableRow("no cost", [EMPTY for _ in run.defenses], f"train no steps: {', '.join(without)}"))
    return rows


def _cost_cell(cost: AttackCost | None, defense: str) -> Cell:
    if cost is None:
        return EMPTY
    remarks = []
    if cost.censored:
        remarks.append("not reached")
    if cost.last_point:
        remarks.append("at the last evaluated step")
    if defense != UNDEFENDED and cost.ratio_vs_undefended is not None:
        ratio = times(cost.ratio_vs_undefended)
        same = cost.ratio_vs_undefended == 1 and not cost.censored
        remarks.append(
            ("the same" if same else f"{'more than ' if cost.censored else ''}{ratio} times") + _ratio_span(cost)
        )
    elif defense != UNDEFENDED:
        remarks.append("no ratio")
    return Cell(f"> {cost.steps}" if cost.censored else str(cost.steps), ", ".join(remarks))


def _ratio_span(cost: AttackCost) -> str:
    """The interval of a ratio in parentheses; "" where it is not known."""
    if cost.ratio_low is None:
        return ""
    high = "" if cost.ratio_high is None else f" to {times(cost.ratio_high)}"
    return f" ({times(cost.ratio_low)}{high or ' or more'})"


def _capability(run: Run) -> list[TableRow]:
    rows = []
    for state, attack in capability_states(run):
        measures = [capability(run, defense, attack) for defense in run.defenses]
        if any(measures):
            shipped = run.summary.as_shipped.capability if not attack else None
            rows.append(_row(run, state, measures, shipped=shipped))
    capabilities = [d.capability for d in _defenses(run)]
    before = "before any attack; lower is better"
    rows.append(
        _row(run, "drop vs as shipped", [c.drop_vs_shipped for c in capabilities], "difference", before, reference="")
    )
    rows.append(_row(run, "drop vs undefended", [c.drop_vs_undefended for c in capabilities], "difference", before))
    note = "what malicious attacks take beyond what they take from the undefended model; higher is what SDD aims for"
    rows.append(_row(run, "self-degradation", [c.self_degradation for c in capabilities], "difference", note))
    return rows


def _answers(run: Run) -> list[TableRow]:
    defenses, shipped = _defenses(run), run.summary.as_shipped
    drops = [d.benign_answer_drop_vs_shipped for d in defenses]
    return [
        _row(run, "answer rate", [d.benign_answer_rate for d in defenses], shipped=shipped.benign_answer_rate),
        _row(
            run,
            "answer rate near the threat",
            [d.benign_answer_rate_near for d in defenses],
            shipped=shipped.benign_answer_rate_near,
        ),
        _row(run, "drop vs as shipped", [*drops], "difference", "in points; lower is better", reference=""),
        _row(
            run,
            "drop vs undefended",
            [d.benign_answer_drop_vs_undefended for d in defenses],
            "difference",
            "in points; lower is better",
        ),
    ]


def _likelihood(run: Run) -> list[TableRow]:
    defenses, shipped = _defenses(run), run.summary.as_shipped
    nll = [d.benign_nll for d in defenses]
    note, better = "nats per token, held-out documents; lower is better", "lower is better"
    return [
        _row(run, "NLL", [n.before_attack for n in nll], "nats", note, shipped=shipped.benign_nll),
        _row(
            run, "rise of NLL vs as shipped", [n.rise_vs_shipped for n in nll], "nats difference", better, reference=""
        ),
        _row(run, "rise of NLL vs undefended", [n.rise_vs_undefended for n in nll], "nats difference", better),
        _row(
            run,
            "KL from the model as shipped",
            [d.benign_kl for d in defenses],
            "nats",
            "nats per token; lower is better",
        ),
    ]


def _benign_tasks(run: Run) -> list[TableRow]:
    defenses = _defenses(run)
    rows = []
    note = "score after learning the task, minus the undefended model's; higher is better, below 0 it learns worse"
    for task in sorted({name for d in defenses for name in d.benign_finetune}):
        gaps = [d.benign_finetune[task].gap_vs_undefended if task in d.benign_finetune else None for d in defenses]
        rows.append(_row(run, f"{task}: gap in score vs undefended", gaps, "difference", note))
    return rows
