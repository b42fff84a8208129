"""Generate the tables of docs/attacks.md from a finished run.

python scripts/attacks_table.py studies/results/attacks                   prints the tables
python scripts/attacks_table.py studies/results/attacks docs/attacks.md   replaces the tables in the page
"""

import sys
from pathlib import Path
from typing import Any

import yaml

from pages import replace_tables, table
from tamperfuse.records.errors import UserError
from tamperfuse.records.results import UNDEFENDED, read_results
from tamperfuse.records.summary import Measure, Summary, read_summary


def tables(folder: Path) -> str:
    """The tables of attacks and controls with two notes, as Markdown."""
    summary, rows = read_summary(folder), read_results(folder)
    attacks = yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8"))["attacks"]
    malicious = {row["attack"] for row in rows if row["malicious"]}
    names = list(summary.defenses)
    before = [percent(summary.defenses[name].harmful_execution.before_attack) for name in names]
    capability = [short(summary.defenses[name].capability.before_attack) for name in names]
    attacked = table(
        ["malicious attack", "steps", *(f"`{n}` executes" for n in names), *(f"C of `{n}` after" for n in names)],
        [
            ["none", "0", *before, *capability],
            *([f"`{attack}`", *after(summary, rows, attack)] for attack in attacks if attack in malicious),
        ],
    )
    controls = table(
        ["control", *(f"`{n}` executes" for n in names), *(f"task score of `{n}`" for n in names)],
        [
            [f"`{attack}`", *last(rows, attack, "harmful_execution", names), *last(rows, attack, "task_score", names)]
            for attack in attacks
            if attack not in malicious
        ],
    )
    weak = summary.defenses[UNDEFENDED].reduction_vs_undefended.too_weak
    notes = [
        f"Too weak to count (below 80% on `{UNDEFENDED}`): {', '.join(f'`{name}`' for name in weak) or 'none'}.",
        f"{summary.model}, {summary.threat}, seeds {', '.join(map(str, summary.seeds))}; {summary.seconds / 60:.0f} minutes.",
    ]
    return "\n".join([*attacked, "", *controls, "", *notes])


def after(summary: Summary, rows: list[dict[str, Any]], attack: str) -> list[str]:
    """Cells of one attack: its last evaluated step, then harmful execution and capability of each defense."""
    defenses = list(summary.defenses.values())
    steps = max(row["step"] for row in rows if row["attack"] == attack)
    executes = [percent(defense.harmful_execution.after_attack[attack]) for defense in defenses]
    return [str(steps), *executes, *(short(defense.capability.after_attack[attack]) for defense in defenses)]


def last(rows: list[dict[str, Any]], attack: str, metric: str, names: list[str]) -> list[str]:
    """The last value of a metric for each defense, on evaluation prompts or a task; "" if it was not measured."""
    cells = []
    for name in names:
        values = [r for r in rows if (r["attack"], r["metric"], r["defense"]) == (attack, metric, name)]
        values = [r for r in values if r["part"] in ("evaluation", "")]
        cells.append(percent(Measure(**{k: values[-1][k] for k in ("value", "low", "high", "n")})) if values else "")
    return cells


def short(measure: Measure) -> str:
    return "–" if measure.value is None else f"{measure.value:.0%}"


def percent(measure: Measure) -> str:
    if measure.value is None or measure.low is None or measure.high is None:
        return short(measure)
    return f"{measure.value:.0%} ({measure.low:.0%} to {measure.high:.0%})"


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    text = tables(Path(sys.argv[1]))
    if len(sys.argv) == 3:
        try:
            replace_tables(Path(sys.argv[2]), f"python scripts/attacks_table.py {sys.argv[1]} {sys.argv[2]}", text)
        except UserError as error:
            sys.exit(str(error))
    else:
        print(text)
