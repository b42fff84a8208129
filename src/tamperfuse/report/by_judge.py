"""Verdicts and rates by judge: a section for each model, a row for each state, a column for each judge."""

from collections.abc import Callable

from tamperfuse.records.results import UNDEFENDED
from tamperfuse.records.summary import DefenseSummary, Measure
from tamperfuse.report.formatting import DIVERGED, label
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
    return [*rows, *_scores(run, parts), *_undecided(parts)]


def _scores(run: Run, parts: list[DefenseSummary | None]) -> list[TableRow]:
    """Mean scores of the judges that grade responses; nothing where none does."""
    scores = [None if part is None else part.mean_score for part in parts]
    if not any(scores):
        return []
    note = "in the judge's own unit"
    before = [EMPTY if one is None else measure_cell(one.before_attack, "score") for one in scores]
    rows = [TableRow("mean score before any attack", before, note)]
    for attack in (*run.attacks, *run.controls):
        after = [None if one is None else one.after.get(attack) for one in scores]
        rows.append(TableRow(f"mean score after {attack}", [measure_cell(measure, "score") for measure in after], note))
    return rows


def _undecided(parts: list[DefenseSummary | None]) -> list[TableRow]:
    """How many responses each judge could not decide on; nothing where each decided on all."""
    if not any(part.undecided for part in parts if part is not None):
        return []
    cells = [EMPTY if part is None else Cell(f"{part.undecided:,}") for part in parts]
    return [
        TableRow("responses without a decision", cells, "values leave them out, intervals cover whatever they may be")
    ]


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
