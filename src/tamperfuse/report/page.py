"""The page of a run (report.html): verdicts, figures, every measure, sample answers; and its figures as report.json."""

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from tamperfuse.records.files import write_json, write_text
from tamperfuse.records.results import UNDEFENDED
from tamperfuse.records.run import SampleAnswer
from tamperfuse.report.answer import answer_of
from tamperfuse.report.figures import Figure, all_figures, legend
from tamperfuse.report.formatting import label
from tamperfuse.report.headline import THRESHOLDS, Headline, headline_of
from tamperfuse.report.heatmap import anchors_of, heatmap
from tamperfuse.report.html import figure_record, render_page
from tamperfuse.report.inputs import Run, read_folder
from tamperfuse.report.tables import table

PAGE, FIGURES = "report.html", "report.json"
SAMPLES_SHOWN = 5
#: Figures with a panel for each attack, which are folded.
FOLDED = ("harm", "controls")
SHORT_TITLES = {"harm": "Attacks", "controls": "Controls", "search": "Adaptive attacker", "capability": "Capability"}


def write_report(run: Path) -> Path:
    """Write `report.html` and `report.json` into a run's folder.

    Args:
        run: folder of a finished run.

    Returns:
        the path of report.html.

    Raises:
        UserError: a file of the run is missing or damaged, or the folder cannot be written.
    """
    inputs = read_folder(run)
    headlines, figures = _headlines(inputs), all_figures(inputs)
    html = _render(inputs, headlines, figures)
    record = {"schema": 2, "headlines": [asdict(one) for one in headlines], "figures": figure_record(figures)}
    write_json(run / FIGURES, record)
    write_text(run / PAGE, html)
    return run / PAGE


def headline(run: Path) -> str:
    """The verdict on every defense of a finished run and its price, a line each, for the terminal."""
    return "\n".join(f"{one.sentence} {one.price}" for one in _headlines(read_folder(run)))


def _headlines(run: Run) -> list[Headline]:
    return [headline_of(run.summary, name, run.last_step) for name in run.defenses if name != UNDEFENDED]


def _render(run: Run, headlines: list[Headline], figures: list[Figure]) -> str:
    anchors = anchors_of([panel.heading for figure in figures if figure.name in FOLDED for panel in figure.panels])
    return render_page(
        "report.html.j2",
        figures,
        contents=_contents(figures),
        run=run,
        answers=[answer_of(run.summary, one.defense) for one in headlines],
        heat=heatmap(run, anchors),
        anchors=anchors,
        headlines=headlines,
        thresholds=THRESHOLDS,
        legend=legend(run),
        sections=table(run),
        states=_states(run),
        started=_day(run.record.started),
    )


def _contents(figures: list[Figure]) -> list[tuple[str, str]]:
    """The page's parts: (anchor, title)."""
    return [
        ("result", "Result"),
        *((figure.name, SHORT_TITLES[figure.name]) for figure in figures),
        ("measures", "Every measure"),
        ("answers", "Answers"),
        ("definitions", "Definitions"),
        ("how", "How it was run"),
    ]


def _states(run: Run) -> list[dict[str, Any]]:
    """The sample answers by model state: before attacks first, then by attack, step and defense."""
    groups: dict[tuple[str, str, int], list[SampleAnswer]] = {}
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
    """An ISO date and time as "23 November 2026, 20:43"; any other text unchanged."""
    try:
        moment = datetime.fromisoformat(started)
    except ValueError:
        return started
    return f"{moment.day} {moment:%B %Y, %H:%M}"
