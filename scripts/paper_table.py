"""Generate the tables of docs/paper.md from a finished run of studies/paper.yaml, studies/paper-7b.yaml or studies/paper-8b.yaml.

python scripts/paper_table.py studies/results/paper                  prints the tables
python scripts/paper_table.py studies/results/paper docs/paper.md    replaces the tables in the page
"""

import re
import sys
from pathlib import Path
from typing import Any

from attacks_table import percent
from pages import print_or_replace, table
from tamperfuse.records.errors import UserError
from tamperfuse.records.results import AS_SHIPPED, read_results
from tamperfuse.records.summary import DefenseSummary, MeanScore, Measure, Summary, read_summary

NAME = re.compile(r"(\d+)-shots-(.+)")  # of a malicious attack: its number of shots, and one of its settings
Rows = list[dict[str, Any]]


def tables(folder: Path) -> str:
    """Harmful execution by number of shots, for every judge, and capability by kind of fine-tuning, as Markdown.

    Raises:
        UserError: the folder is not that of a finished run, or its attacks have other names than those of studies/paper.yaml.
    """
    summary, rows = read_summary(folder), read_results(folder)
    strongest = {name: strongest_settings(defense) for name, defense in summary.defenses.items()}
    if not all(strongest.values()):
        raise UserError(f"{folder} has no attacks named NUMBER-shots-SETTING: name a run of studies/paper.yaml.")
    lines = execution_table(summary.judge, summary.defenses, strongest, percent(summary.as_shipped.harmful_execution))
    for judge, defenses in summary.judges.items():
        lines += ["", *execution_table(judge, defenses, strongest)]
    return "\n".join([*lines, "", *capability_table(summary, rows, strongest), "", *notes(summary)])


def strongest_settings(defense: DefenseSummary) -> dict[int, str]:
    """Number of shots → name of the attack with so many that makes the model execute most; the first of several equal ones."""
    after = defense.harmful_execution.after_attack
    strongest: dict[int, str] = {}
    for attack, measure in after.items():
        if (match := NAME.fullmatch(attack)) is None:
            continue
        best = strongest.get(int(match[1]))
        if best is None or _rate(measure) > _rate(after[best]):
            strongest[int(match[1])] = attack
    return dict(sorted(strongest.items()))


def execution_table(
    judge: str, defenses: dict[str, DefenseSummary], strongest: dict[str, dict[int, str]], shipped: str = ""
) -> list[str]:
    """The lines of a table of harmful execution, one row a defense.

    Args:
        judge: whose verdicts these are.
        defenses: with its verdicts.
        strongest: defense → number of shots → the attack that is shown.
        shipped: the cell of the model as shipped, which was not attacked; "" for no such row.
    """
    shots = list(next(iter(strongest.values())))
    rows = [[f"`{AS_SHIPPED}`", shipped, *("" for _ in shots)]] if shipped else []
    for name, defense in defenses.items():
        execution, scores = defense.harmful_execution, defense.mean_score
        attacks = list(strongest[name].values())
        settings = [NAME.fullmatch(attack) for attack in attacks]
        cells = [graded(execution.after_attack[attack], scores, attack) for attack in attacks]
        after = [f"{cell}, `{match[2]}`" for cell, match in zip(cells, settings, strict=True) if match]
        rows.append([f"`{name}`", graded(execution.before_attack, scores, ""), *after])
    measure = "mean score / executes" if any(defense.mean_score for defense in defenses.values()) else "executes"
    return table([f"{measure}, judge `{judge}`", "no attack", *(f"{number} shots" for number in shots)], rows)


def graded(executes: Measure, scores: MeanScore | None, attack: str) -> str:
    """A cell as the paper prints it: the mean score, if the judge grades, and the share of executed requests.

    Args:
        executes: the share, of grades from the judge's threshold on: of 1 to 5, the share of 5s.
        scores: the judge's mean scores; None if it does not grade.
        attack: name of the attack; "" for none.
    """
    if scores is None:
        return percent(executes)
    mean = scores.after_attack[attack] if attack else scores.before_attack
    return f"{'–' if mean.value is None else f'{mean.value:.2f}'} / {percent(executes)}"


def capability_table(summary: Summary, rows: Rows, strongest: dict[str, dict[int, str]]) -> list[str]:
    """The lines of a table of accuracies: before any attack, after each control, and after the attack with most shots."""
    tasks = sorted({row["task"] for row in rows if row["metric"] == "accuracy"})
    lines = [[f"`{AS_SHIPPED}`", *(accuracy(rows, AS_SHIPPED, "", task) for task in tasks)]]
    for name, defense in summary.defenses.items():
        attacks = ["", *defense.harmful_execution.after_control, list(strongest[name].values())[-1]]
        lines += [
            [
                f"`{name}`" + (f" after `{attack}`" if attack else ""),
                *(accuracy(rows, name, attack, task) for task in tasks),
            ]
            for attack in attacks
        ]
    return table(["accuracy", *(f"`{task}`" for task in tasks)], lines)


def accuracy(rows: Rows, defense: str, attack: str, task: str) -> str:
    """The accuracy on a task, before any attack ("") or at the last step of one; of several seeds their mean, no interval."""
    place = (defense, attack, task, "accuracy")
    measured = [r for r in rows if (r["defense"], r["attack"], r["task"], r["metric"]) == place]
    last = max((row["step"] for row in measured), default=0)
    measures = [
        Measure(**{key: row[key] for key in ("value", "low", "high", "n")}) for row in measured if row["step"] == last
    ]
    if len(measures) == 1:
        return percent(measures[0])
    values = [measure.value for measure in measures if measure.value is not None]
    return f"{sum(values) / len(values):.0%}" if values else "–"


def notes(summary: Summary) -> list[str]:
    """The run's inputs, and how a setting was chosen."""
    seeds = ", ".join(map(str, summary.seeds))
    return [
        f"{summary.model}, {summary.threat}, seeds {seeds}; {summary.seconds / 60:.0f} minutes. After an attack: the strongest "
        f"of its settings by the judge `{summary.judge}` on the same prompts, which is named and which favours the attacker."
    ]


def _rate(measure: Measure) -> float:
    return -1.0 if measure.value is None else measure.value


def main(arguments: list[str]) -> None:
    """Print the tables or write them into a page."""
    print_or_replace(arguments, "paper_table", __doc__ or "", tables)


if __name__ == "__main__":
    main(sys.argv[1:])
