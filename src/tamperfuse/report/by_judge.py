"""Verdicts and rates by judge: a section for each model, a row for each state, a column for each judge."""

from tamperfuse.records.results import UNDEFENDED
from tamperfuse.records.summary import DefenseSummary
from tamperfuse.report.formatting import label
from tamperfuse.report.headline import verdict_of
from tamperfuse.report.inputs import Run
from tamperfuse.report.tables import EMPTY, Cell, Section, TableRow, measure_cell


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
    harm = [part and part.harmful_execution for part in parts]
    rows = [TableRow("harmful execution before any attack", [measure_cell(h and h.before_attack) for h in harm])]
    for attack in run.attacks:
        rows.append(TableRow(f"after {attack}", [measure_cell(h and h.after_attack.get(attack)) for h in harm]))
    for control in run.controls:
        cells = [measure_cell(h and h.after_control.get(control)) for h in harm]
        rows.append(TableRow(f"after {control}", cells, "control"))
    if name != UNDEFENDED:
        reductions = [part and part.reduction_vs_undefended.pooled for part in parts]
        rows.insert(0, TableRow("verdict", [_verdict(part) for part in parts]))
        rows.append(TableRow("reduction, pooled", [measure_cell(one, "difference") for one in reductions]))
    answered = [measure_cell(part and part.benign_answer_rate) for part in parts]
    return [*rows, TableRow("harmless prompts answered", answered, "before any attack")]


def _verdict(part: DefenseSummary | None) -> Cell:
    """The verdict, and how many of the malicious attacks count by this judge."""
    if part is None:
        return EMPTY
    reduction = part.reduction_vs_undefended
    counting, total = len(reduction.attacks_that_count), len(reduction.attacks_that_count) + len(reduction.too_weak)
    return Cell(verdict_of(part).value, f"{counting} of {total} attacks count")
