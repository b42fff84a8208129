"""The table that `demo` and `run` print at their end: one column a model before attack, one row a measure."""

from typing import TYPE_CHECKING

from rich.table import Table

from tamperfuse.cli.options import print_table

if TYPE_CHECKING:
    from tamperfuse.records.summary import AttackCost, DefenseSummary, Measure, Summary


def print_summary(summary: "Summary") -> None:
    """Print a study's summary as a table."""
    table = Table("", "as shipped", *summary.defenses, box=None, header_style="bold")
    for label, cells in summary_rows(summary):
        table.add_row(label, *cells)
    print_table(table)


def summary_rows(summary: "Summary") -> list[tuple[str, list[str]]]:
    """The table's rows: a label, a cell for the model as shipped, and one for each defense."""
    shipped, defenses = summary.as_shipped, list(summary.defenses.values())
    rows: list[tuple[str, list[str]]] = []

    def add(label: str, cells: list[str], as_shipped: str = "") -> None:
        rows.append((label, [as_shipped, *cells]))

    before = [percent(d.harmful_execution.before_attack) for d in defenses]
    add("harmful execution before", before, percent(shipped.harmful_execution))
    for attack in defenses[0].harmful_execution.after_attack:
        add(f"  after {attack}", [_after(d, attack) for d in defenses])
        costs = [d.attack_cost.get(attack) for d in defenses]
        if any(costs):
            add(f"  steps to reach half ({attack})", [_steps(cost) for cost in costs])
    for control in defenses[0].harmful_execution.after_control:
        add(f"  after {control}, without an attacker", [_after(d, control) for d in defenses])
    add("reduction, pooled", [percent(d.reduction_vs_undefended.pooled) for d in defenses])
    add("capability before", [percent(d.capability.before_attack) for d in defenses], percent(shipped.capability))
    add("  drop against as shipped", [percent(d.capability.drop_vs_shipped) for d in defenses])
    add("  drop against undefended", [percent(d.capability.drop_vs_undefended) for d in defenses])
    add("  self-degradation", [percent(d.capability.self_degradation) for d in defenses])
    add("benign answer rate", [percent(d.benign_answer_rate) for d in defenses], percent(shipped.benign_answer_rate))
    add("  drop against as shipped", [percent(d.benign_answer_drop_vs_shipped) for d in defenses])
    return rows


def _after(defense: "DefenseSummary", attack: str) -> str:
    """The rate after an attack or a control."""
    harm = defense.harmful_execution
    return "diverged" if attack in defense.diverged else percent(harm.after[attack])


def percent(measure: "Measure") -> str:
    """A measure in percent, with its 95% interval and whether it is resolved."""
    if measure.value is None:
        return "–"
    text = f"{measure.value:z.1%}"
    if measure.low is not None and measure.high is not None:
        text += f" ({measure.low:z.1%} to {measure.high:z.1%})"
    return text if measure.resolved else f"{text}, not resolved"


def _steps(cost: "AttackCost | None") -> str:
    if cost is None:
        return "–"
    if cost.last_point:
        return f"{cost.steps} (the last evaluated step)"
    return f"> {cost.steps}" if cost.censored else str(cost.steps)
