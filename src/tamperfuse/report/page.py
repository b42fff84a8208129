"""The page of a run (report.html): the answer, figures, every measure, every answer of a model; its figures as report.json."""

from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from tamperfuse.records.files import write_json, write_text
from tamperfuse.records.results import UNDEFENDED
from tamperfuse.records.run import FIGURES, PAGE
from tamperfuse.report.answer import answer_of
from tamperfuse.report.attack_phrases import attack_phrases
from tamperfuse.report.browser import browser_data
from tamperfuse.report.by_judge import by_judge, judges_of
from tamperfuse.report.downloads import citation, csv_text, data_uri
from tamperfuse.report.figures import Figure, all_figures, legend
from tamperfuse.report.headline import THRESHOLDS, Headline, headline_of
from tamperfuse.report.heatmap import anchors_of, heatmap
from tamperfuse.report.html import figure_record, render_page, script_json
from tamperfuse.report.inputs import Run, read_folder
from tamperfuse.report.prompt_kinds import Breakdown, breakdown, prompt_kinds
from tamperfuse.report.responses import RunAnswers, read_answers
from tamperfuse.report.tables import table

#: Figures with a panel for each attack, which are folded.
FOLDED = ("harm", "controls")
SHORT_TITLES = {
    "harm": "Attacks",
    "controls": "Controls",
    "search": "Adaptive attacker",
    "capability": "Capability",
    "strength": "Strength",
    "trap": "Training",
}


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
    html = _render(inputs, read_answers(run, inputs), headlines, figures)
    record = {"schema": 2, "headlines": [asdict(one) for one in headlines], "figures": figure_record(figures)}
    write_json(run / FIGURES, record)
    write_text(run / PAGE, html)
    return run / PAGE


def headline(run: Path) -> str:
    """The verdict on every defense of a finished run and its price, a line each, for the terminal."""
    lines = [(one.sentence, one.judges, one.price) for one in _headlines(read_folder(run))]
    return "\n".join(" ".join(text for text in line if text) for line in lines)


def _headlines(run: Run) -> list[Headline]:
    return [headline_of(run.summary, name, run.last_step(name)) for name in run.defenses if name != UNDEFENDED]


def _render(run: Run, run_answers: RunAnswers, headlines: list[Headline], figures: list[Figure]) -> str:
    anchors = anchors_of([panel.heading for figure in figures if figure.name in FOLDED for panel in figure.panels])
    kinds, started = prompt_kinds(run.summary.threat), _day(run.record.started)
    by_kind = breakdown(run, run_answers.answers, kinds) if run_answers.complete else None
    return render_page(
        "report.html.j2",
        figures,
        _contents(run, figures, by_kind),
        ["browser.js"],
        run=run,
        answers=[answer_of(run.summary, one.defense) for one in headlines],
        heat=heatmap(run, anchors),
        phrases=attack_phrases(run),
        anchors=anchors,
        headlines=headlines,
        thresholds=THRESHOLDS,
        legend=legend(run),
        sections=table(run),
        judges=judges_of(run),
        by_judge=by_judge(run),
        by_kind=by_kind,
        complete=run_answers.complete,
        answer_count=len(run_answers.answers),
        answer_data=script_json(browser_data(run_answers, kinds)),
        csv=data_uri("text/csv", csv_text(run.rows)),
        json=data_uri("application/json", run.summary.model_dump_json(by_alias=True, indent=2)),
        citation=citation(run, started),
        started=started,
    )


def _contents(run: Run, figures: list[Figure], by_kind: Breakdown | None) -> list[tuple[str, str]]:
    """The page's parts: (anchor, title)."""
    return [
        ("result", "Result"),
        *((figure.name, SHORT_TITLES[figure.name]) for figure in figures),
        *([("judges", "Judges")] if run.summary.judges else []),
        *([("kinds", "Kinds of prompts")] if by_kind else []),
        ("answers", "Every answer"),
        ("measures", "Every measure"),
        ("take", "Download, cite"),
        ("definitions", "Definitions"),
        ("how", "How it was run"),
    ]


def _day(started: str) -> str:
    """An ISO date and time as "23 November 2026, 20:43"; any other text unchanged."""
    try:
        moment = datetime.fromisoformat(started)
    except ValueError:
        return started
    return f"{moment.day} {moment:%B %Y, %H:%M}"
