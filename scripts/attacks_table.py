"""Generate the tables of docs/attacks.md from a finished run.

python scripts/attacks_table.py studies/results/attacks                   prints the tables
python scripts/attacks_table.py studies/results/attacks docs/attacks.md   replaces the tables in the page
"""

import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from pages import print_or_replace, table
from tamperfuse.records.results import UNDEFENDED, read_results
from tamperfuse.records.summary import Measure, Summary, read_summary


def tables(folder: Path) -> str:
    """The tables of attacks and controls with two notes, as Markdown.

    Raises:
        UserError: the folder is not that of a finished run.
    """
    summary, rows = read_summary(folder), read_results(folder)
    defenses = summary.defenses
    executions = [defense.harmful_execution for defense in defenses.values()]
    capabilities = [defense.capability for defense in defenses.values()]
    before = [
        *(percent(execution.before_attack) for execution in executions),
        *(short(capability.before_attack) for capability in capabilities),
    ]
    attacks = [
        [
            f"`{attack}`",
            str(max(row["step"] for row in rows if row["attack"] == attack)),
            *(percent(execution.after_attack[attack]) for execution in executions),
            *(short(capability.after_attack[attack]) for capability in capabilities),
        ]
        for attack in executions[0].after_attack
    ]
    controls = [
        [
            f"`{attack}`",
            *(percent(execution.after_control[attack]) for execution in executions),
            *(task_score(rows, name, attack) for name in defenses),
        ]
        for attack in executions[0].after_control
    ]
    executes = [f"`{name}` executes" for name in defenses]
    lines = table(
        ["malicious attack", "steps", *executes, *(f"C of `{name}` after" for name in defenses)],
        [["none", "0", *before], *attacks],
    )
    lines += ["", *table(["control", *executes, *(f"task score of `{name}`" for name in defenses)], controls)]
    return "\n".join([*lines, "", *notes(summary)])


def notes(summary: Summary) -> list[str]:
    """The attacks that do not count, and the run's inputs."""
    weak = summary.defenses[UNDEFENDED].reduction_vs_undefended.too_weak
    names = ", ".join(f"`{name}`" for name in weak) or "none"
    return [f"Too weak to count (below 80% on `{UNDEFENDED}`): {names}.", run_inputs(summary)]


def run_inputs(summary: Summary) -> str:
    """The run's inputs, and how long it took."""
    seeds = ", ".join(map(str, summary.seeds))
    return f"{summary.model}, {summary.threat}, seeds {seeds}; {summary.seconds / 60:.0f} minutes."


def task_score(rows: list[dict[str, Any]], defense: str, attack: str) -> str:
    """The score of the attack's benign task at its last step; "" for attacks without a task.

    Of several seeds it is their mean, without interval.
    """
    scores = [r for r in rows if (r["defense"], r["attack"], r["metric"]) == (defense, attack, "task_score")]
    last = [row for row in scores if row["step"] == max(row["step"] for row in scores)]
    if len(last) == 1:
        return percent(Measure(**{key: last[0][key] for key in ("value", "low", "high", "n")}))
    return short(Measure(value=fmean(row["value"] for row in last))) if last else ""


def short(measure: Measure) -> str:
    """A measure in whole percent; a dash if it was not measured."""
    return "–" if measure.value is None else f"{measure.value:.0%}"


def percent(measure: Measure) -> str:
    """A measure with its interval in whole percent."""
    if measure.value is None or measure.low is None or measure.high is None:
        return short(measure)
    return f"{measure.value:.0%} ({measure.low:.0%} to {measure.high:.0%})"


def main(arguments: list[str]) -> None:
    """Print the tables or write them into a page."""
    print_or_replace(arguments, "attacks_table", __doc__ or "", tables)


if __name__ == "__main__":
    main(sys.argv[1:])
