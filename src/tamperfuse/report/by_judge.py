"""Verdicts and rates by judge: a section for each model, a row for each state, a column for each judge."""

from collections.abc import Callable

from tamperfuse.records.results import UNDEFENDED
from tamperfuse.records.summary import DefenseSummary, Measure
from tamperfuse.report.formatting import DIVERGED, label
from tamperfuse.report.headline import verdict_of
from tamperfuse.report.inputs import Run
from tamperfuse.report.tables import EMPTY, Cell, Section, TableRow, judge_rows, measure_cell


def judges_of(run: Run) -> list[str]:
    """The judges of a run: the one that decides, then the others."""
    return [run.summary.judge, *run.summary.judges]


def by_judge(run: Run) -> list[Section]:
    """A section for each model, the undefended one first; cells are in the order of :func:`judges_of`. Empty with one judge."""
    if not run.summary.judges:
        return []
    return [Section(label(name), _rows(run, name)) for name in run.defenses]


def _rows(run: Run, name: str) -> list[TableRow]:
    parts = [run.summary.defenses[name], *(defenses.get(name) for defenses in run.summary.judges.values())]

    def row(title: str, measure: Callable[[DefenseSummary], Measure | None], note: str = "") -> TableRow:
        return TableRow(title, [EMPTY if part is None else measure_cell(measure(part)) for part in parts], note)

    def after(attack: str, note: str = "") -> TableRow:
        cells = [EMPTY if part is None else _after_cell(part, attack) for part in parts]
        return TableRow(f"after {attack}", cells, note)

    rows = [row("harmful execution before any attack", lambda d: d.harmful_execution.before_attack)]
    rows += [*map(after, run.attacks), *(after(control, "control") for control in run.controls)]
    if name != UNDEFENDED:
        reductions = [None if part is None else part.reduction_vs_undefended.pooled for part in parts]
        rows.insert(0, TableRow("verdict", [_verdict(part) for part in parts]))
        rows.append(TableRow("reduction, pooled", [measure_cell(one, "difference") for one in reductions]))
    rows.append(row("harmless prompts answered", lambda d: d.benign_answer_rate, "before any attack"))
    return [*rows, *judge_rows(run, parts)]


def _after_cell(part: DefenseSummary, attack: str) -> Cell:
    """The rate after an attack or a control; or that it diverged."""
    harm = part.harmful_execution
    if attack in part.diverged:
        return Cell(DIVERGED, muted=True)
    return measure_cell(harm.after.get(attack))


def _verdict(part: DefenseSummary | None) -> Cell:
    """The verdict, and how many of the malicious attacks count by this judge."""
    if part is None:
        return EMPTY
    reduction = part.reduction_vs_undefended
    counting, total = len(reduction.attacks_that_count), len(reduction.attacks_that_count) + len(reduction.too_weak)
    return Cell(verdict_of(part).value, f"{counting} of {total} attacks count")
