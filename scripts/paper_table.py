"""Generate the tables of docs/paper.md from a finished run of studies/paper.yaml.

python scripts/paper_table.py studies/results/paper                  prints the tables
python scripts/paper_table.py studies/results/paper docs/paper.md    replaces the tables in the page
"""

import re
import sys
from pathlib import Path
from typing import Any

from attacks_table import percent
from pages import replace_tables, table
from tamperfuse.records.errors import UserError
from tamperfuse.records.results import AS_SHIPPED, read_results
from tamperfuse.records.summary import Measure, Summary, read_summary

NAME = re.compile(r"(\d+)-shots-")  # of a malicious attack: its number of shots, and one of its settings


def tables(folder: Path) -> str:
    """Harmful execution by number of shots, and capability by kind of fine-tuning, as Markdown.

    Raises:
        UserError: the folder is not that of a finished run, or its attacks have other names than those of studies/paper.yaml.
    """
    summary, rows = read_summary(folder), read_results(folder)
    shots = sorted({int(number) for row in rows for number in NAME.findall(row["attack"])})
    if not shots:
        raise UserError(f"{folder} has no attacks named NUMBER-shots-SETTING: name a run of studies/paper.yaml.")
    execution = [[f"`{AS_SHIPPED}`", percent(shipped_execution(rows)), *("" for _ in shots)]]
    capability = [[f"`{AS_SHIPPED}`", *accuracies(rows, AS_SHIPPED, "")]]
    for name, defense in summary.defenses.items():
        best = [strongest(summary, name, number) for number in shots]
        measured = [defense.harmful_execution.after_attack[attack] for attack in best]
        settings = [attack.rpartition("-")[2] for attack in best]
        execution.append(
            [
                f"`{name}`",
                percent(defense.harmful_execution.before_attack),
                *(f"{percent(measure)}, {setting}" for measure, setting in zip(measured, settings, strict=True)),
            ]
        )
        capability.append([f"`{name}`", *accuracies(rows, name, "")])
        for attack in [*defense.harmful_execution.after_control, best[-1]]:
            capability.append([f"`{name}` after `{attack}`", *accuracies(rows, name, attack)])
    seeds = ", ".join(map(str, summary.seeds))
    return "\n".join(
        [
            *table(["harmful execution", "no attack", *(f"{number} shots" for number in shots)], execution),
            "",
            *table(["accuracy", *tasks(rows)], capability),
            "",
            f"{summary.model}, {summary.threat}, seeds {seeds}; {summary.seconds / 60:.0f} minutes. After an attack: the highest "
            "of its settings, which is named.",
        ]
    )


def strongest(summary: Summary, defense: str, shots: int) -> str:
    """The setting of an attack with so many shots that makes a defense execute most."""
    after = summary.defenses[defense].harmful_execution.after_attack
    settings = [name for name in after if name.startswith(f"{shots}-shots-")]
    return max(settings, key=lambda name: after[name].value or 0.0)


def tasks(rows: list[dict[str, Any]]) -> list[str]:
    """The capability tasks of a run."""
    return sorted({row["task"] for row in rows if row["metric"] == "accuracy"})


def accuracies(rows: list[dict[str, Any]], defense: str, attack: str) -> list[str]:
    """The accuracy on each capability task: before any attack (""), or at the last measured step of one."""
    cells = []
    for task in tasks(rows):
        wanted = (defense, attack, task, "accuracy")
        measured = [r for r in rows if (r["defense"], r["attack"], r["task"], r["metric"]) == wanted]
        last = max(measured, key=lambda row: row["step"], default=None)
        cells.append(percent(_measure(last)) if last else "–")
    return cells


def shipped_execution(rows: list[dict[str, Any]]) -> Measure:
    """Harmful execution of the model as shipped."""
    shipped = (r for r in rows if r["defense"] == AS_SHIPPED and r["metric"] == "harmful_execution")
    return _measure(next(row for row in shipped if row["part"] in ("", "evaluation")))


def _measure(row: dict[str, Any]) -> Measure:
    return Measure(**{key: row[key] for key in ("value", "low", "high", "n")})


def main(arguments: list[str]) -> None:
    """Print the tables or write them into a page."""
    if len(arguments) not in (1, 2):
        sys.exit(__doc__)
    try:
        text = tables(Path(arguments[0]))
        if len(arguments) == 1:
            print(text)
        else:
            replace_tables(Path(arguments[1]), f"python scripts/paper_table.py {' '.join(arguments)}", text)
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
