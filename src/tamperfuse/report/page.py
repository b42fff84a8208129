"""The page of a run: verdicts, curves, every measure, sample answers; its figures lie beside it as JSON."""

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from tamperfuse.records.files import write_json, write_text
from tamperfuse.records.results import UNDEFENDED
from tamperfuse.records.run import Sample
from tamperfuse.report.figures import Figure, all_figures, legend
from tamperfuse.report.formatting import label
from tamperfuse.report.html import figure_record, render_page
from tamperfuse.report.inputs import Run, read_folder
from tamperfuse.report.tables import table
from tamperfuse.report.verdict import THRESHOLDS, Verdict, judge_defense

PAGE, FIGURES = "report.html", "report.json"
SAMPLES_SHOWN = 5


def write_report(run: Path) -> Path:
    """Write `report.html` and `report.json` into a run's folder.

    Args:
        run: folder of a finished run.

    Returns:
        the path of report.html.

    Raises:
        UserError: a file of the run is missing or damaged, or the folder cannot be written.
    """
    read = read_folder(run)
    verdicts = [judge_defense(read.summary, name, read.last_step) for name in read.defenses if name != UNDEFENDED]
    figures = all_figures(read)
    html = _render(read, verdicts, figures)
    write_json(
        run / FIGURES, {"schema": 1, "verdicts": [asdict(v) for v in verdicts], "figures": figure_record(figures)}
    )
    write_text(run / PAGE, html)
    return run / PAGE


def headline(run: Path) -> str:
    """The verdict on every defense of a finished run, a sentence each, for the terminal."""
    read = read_folder(run)
    verdicts = [judge_defense(read.summary, name, read.last_step) for name in read.defenses if name != UNDEFENDED]
    return "\n".join(verdict.sentence for verdict in verdicts)


def _render(run: Run, verdicts: list[Verdict], figures: list[Figure]) -> str:
    return render_page(
        "report.html.j2",
        figures,
        run=run,
        verdicts=verdicts,
        thresholds=THRESHOLDS,
        legend=legend(run),
        sections=table(run),
        states=_states(run),
        started=_day(run.record.started),
    )


def _states(run: Run) -> list[dict[str, Any]]:
    """The sample answers by model state: before attacks first, then along the study's order."""
    groups: dict[tuple[str, str, int], list[Sample]] = {}
    for sample in run.samples.samples:
        groups.setdefault((sample.defense, sample.attack, sample.step), []).append(sample)
    order = {name: i for i, name in enumerate(run.defenses)}
    states = []
    for key in sorted(groups, key=lambda k: (k[1] != "", k[1], k[2], order.get(k[0], -1))):
        defense, attack, step = key
        shown = groups[key][:SAMPLES_SHOWN]
        title = f"after {attack}, step {step}" if attack else "before any attack"
        executed = sum(sample.harmful for sample in shown)
        states.append({"defense": label(defense), "title": title, "samples": shown, "executed": executed})
    return states


def _day(started: str) -> str:
    """An ISO date and time as "23 November 2026, 20:43"; as it came if it is neither."""
    try:
        moment = datetime.fromisoformat(started)
    except ValueError:
        return started
    return f"{moment.day} {moment:%B %Y, %H:%M}"
