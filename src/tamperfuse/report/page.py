"""The page: one file that opens offline, light or dark, on a phone or a desk; its figures lie beside it as JSON.

Nothing on it reaches the network: Vega's code is inlined once for all charts, and a content security policy lets only
the two scripts run whose hashes it names, so that a model's answer cannot bring its own.
"""

import base64
import hashlib
import json
from dataclasses import asdict
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from tamperfuse.records.files import write_json, write_text
from tamperfuse.records.run import Sample
from tamperfuse.report.figures import Figure, all_figures, legend
from tamperfuse.report.inputs import UNDEFENDED, Run, read_folder
from tamperfuse.report.tables import table
from tamperfuse.report.verdict import THRESHOLDS, Verdict, judge_defense
from tamperfuse.report.words import duration, label, visible

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
    write_json(run / FIGURES, {"schema": 1, "verdicts": [asdict(v) for v in verdicts], "figures": _record(figures)})
    write_text(run / PAGE, html)
    return run / PAGE


def headline(run: Path) -> str:
    """The verdict on every defense of a finished run, a sentence each, for the terminal."""
    read = read_folder(run)
    verdicts = [judge_defense(read.summary, name, read.last_step) for name in read.defenses if name != UNDEFENDED]
    return "\n".join(verdict.sentence for verdict in verdicts)


def _record(figures: list[Figure]) -> dict[str, Any]:
    """The figures as `report.json` has them: words, and each panel's spec with its data."""
    return {
        figure.name: {
            "title": figure.title,
            "caption": figure.caption,
            "panels": [{"heading": p.heading, "words": p.words, "spec": p.chart.to_dict()} for p in figure.panels],
        }
        for figure in figures
    }


def _render(run: Run, verdicts: list[Verdict], figures: list[Figure]) -> str:
    folder = files("tamperfuse.report") / "templates"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(visible=visible, duration=duration, label=label)
    draw = (folder / "draw.js").read_text(encoding="utf-8")
    template = environment.from_string((folder / "report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        run=run,
        verdicts=verdicts,
        thresholds=THRESHOLDS,
        figures=figures,
        legend=legend(run),
        sections=table(run),
        states=_states(run),
        started=_day(run.record.started),
        specs=_specs(figures),
        library=Markup(_library()),
        draw=Markup(draw),
        script_hashes=Markup(" ".join(_hash(script) for script in (_library(), draw))),
    )


@cache
def _library() -> str:
    """Vega, Vega-Lite and vega-embed as one script, from vl-convert; no network. Takes some seconds."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # Neither the end of the element nor a comment may be met inside it, and a parser turns \r into \n before hashing.
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--").replace("\r\n", "\n").replace("\r", "\n")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _specs(figures: list[Figure]) -> Markup:
    """The panels' specs as JSON that can stand in a script element: nothing in it can close the element."""
    specs = {f"{f.name}-{i}": panel.chart.to_dict() for f in figures for i, panel in enumerate(f.panels)}
    for spec in specs.values():
        spec.pop("$schema")  # an address; the embedding says what it is
    text = json.dumps(specs, ensure_ascii=True, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


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
