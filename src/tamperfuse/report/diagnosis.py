"""The page of a diagnosis, with all models side by side: along the attack and layer by layer.

    python -m tamperfuse.report.diagnosis runs/diagnosis docs/figures/diagnosis

draws the figures of a finished diagnosis as SVG.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt

from tamperfuse.evaluation.attack_trace import ALL_PARAMETERS
from tamperfuse.evaluation.diagnosis import Diagnosis
from tamperfuse.evaluation.feature_overlap import GENERAL_DIRECTIONS
from tamperfuse.records.files import read_json, staged, write_json, write_text
from tamperfuse.report.figures import GLYPHS, HARM_HEIGHT, PALETTE, PAPER_PANEL, SHAPES, Figure, Panel, for_paper
from tamperfuse.report.formatting import MINUS, MISSING
from tamperfuse.report.html import figure_record, render_page

Rows = list[dict[str, Any]]

TRACES = {
    "original": ("Original answers", "log π(y_o | x), nats per token"),
    "compliant": ("Attacker's answers", "log π(y_c | x), nats per token"),
    "preference": ("Preference for the attacker's answer", "Bradley–Terry, β = 0.1"),
    "benign": ("Benign text", "NLL, nats per token"),
}
COSINES = {
    "original_benign": ("Original answers and benign text", "positive: both rise and fall together"),
    "attacker_original": ("Attack and original answers", "negative: the attack lowers original answers"),
    "attacker_benign": ("Attack and benign text", "negative: the attack lowers benign text"),
}


def write_diagnosis(out: Path, diagnoses: Sequence[Diagnosis]) -> Path:
    """Write `diagnosis.html` and, next to it, the data of its figures as `diagnosis.json`.

    Args:
        out: folder that contains `measured.json`.
        diagnoses: one for each model.

    Returns:
        The path of diagnosis.html.
    """
    inputs = read_json(out / "measured.json")
    figures = _figures(diagnoses)
    html = render_page(
        "diagnosis.html.j2",
        figures,
        inputs=inputs,
        contents=[
            ("result", "Result"),
            *((figure.name, figure.title) for figure in figures),
            ("table", "Before and after"),
            ("definitions", "Definitions"),
        ],
        answers=[(answer(diagnosis), finding(diagnosis)) for diagnosis in diagnoses],
        legend=[
            {"name": diagnosis.name, "color": PALETTE[i % len(PALETTE)], "glyph": GLYPHS[i % len(GLYPHS)]}
            for i, diagnosis in enumerate(diagnoses)
        ],
        names=[diagnosis.name for diagnosis in diagnoses],
        rows=_table(diagnoses),
        general=GENERAL_DIRECTIONS,
    )
    write_json(out / "diagnosis.json", {"schema": 1, "figures": figure_record(figures)})
    write_text(out / "diagnosis.html", html)
    return out / "diagnosis.html"


def write_figures(folder: Path, out: Path) -> list[Path]:
    """Draw the figures of a finished diagnosis as SVG on a white background.

    Args:
        folder: folder that contains `measured.json`.
        out: folder for the SVG files; created if missing.

    Raises:
        UserError: measured.json is missing or damaged.
    """
    diagnoses = [Diagnosis.from_record(record) for record in read_json(folder / "measured.json")["models"]]
    written = []
    for figure in _figures(diagnoses, PAPER_PANEL):
        path = out / f"{figure.name}.svg"
        with staged(path) as staging:
            for_paper(figure).save(str(staging), format="svg")
        written.append(path)
    return written


def _figures(diagnoses: Sequence[Diagnosis], width: int | str = "container") -> list[Figure]:
    return [_traces(diagnoses, width), _cosines(diagnoses, width), _layers(diagnoses, width)]


def answer(diagnosis: Diagnosis) -> str:
    """The answer to the page's question for one model."""
    first, last = diagnosis.points[0], diagnosis.points[-1]
    # Losses as they are printed: a change of 0.00 is none.
    original, benign = round(first.original - last.original, 2), round(last.benign - first.benign, 2)
    if not math.isfinite(original) or not math.isfinite(benign):
        return f"{diagnosis.name}: not measurable, a loss is not finite."
    word = "neither" if original <= 0 and benign <= 0 else "both" if original > 0 and benign > 0 else "one of them"
    return f"{diagnosis.name}: {word}. Original answers {_change(original)}, benign text {_change(benign)}, in nats per token."


def _change(loss: float) -> str:
    return f"became {abs(loss):.2f} {'less' if loss > 0 else 'more'} likely" if loss else "stayed as likely"


def finding(diagnosis: Diagnosis) -> str:
    """The main figures of one model, in a sentence."""
    first, last = diagnosis.points[0], diagnosis.points[-1]
    cosines = {entry.step: entry.original_benign for entry in diagnosis.cosines if entry.layer == ALL_PARAMETERS}
    last_step = max(cosines)
    return (
        f"{diagnosis.name}: over {last.step} steps the log-likelihood of its original answers changed from "
        f"{_signed(first.original)} to {_signed(last.original)} nats per token and that of the attacker’s answers from "
        f"{_signed(first.compliant)} to {_signed(last.compliant)}; benign NLL changed from {first.benign:.2f} to "
        f"{last.benign:.2f}; the cosine between the gradients of original answers and benign text was "
        f"{_signed(cosines[0])} before the attack and {_signed(cosines[last_step])} at step {last_step}."
    )


def time_spent(diagnosis: Diagnosis) -> str:
    """Time of the measurements compared with the attack, in a sentence."""
    attack, measuring = diagnosis.attack_seconds, diagnosis.diagnosis_seconds
    ratio = f", {measuring / attack:.1f} times the attack ({attack:.0f} s)" if attack else ""
    return f"{diagnosis.name}: the diagnosis took {measuring:.0f} s{ratio}, without the capability tasks."


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", MINUS)


def _scales(diagnoses: Sequence[Diagnosis], *, on_paper: bool) -> tuple[Any, Any]:
    """Colour and shape by model. On the page all panels share one legend, which the template draws."""
    names = [diagnosis.name for diagnosis in diagnoses]
    legend = alt.Legend(title=None) if on_paper else None
    return (
        alt.Color("model:N", scale=alt.Scale(domain=names, range=list(PALETTE[: len(names)])), legend=legend),
        alt.Shape("model:N", scale=alt.Scale(domain=names, range=list(SHAPES[: len(names)])), legend=legend),
    )


def _lines(rows: Rows, diagnoses: Sequence[Diagnosis], x: str, y: str, width: int | str) -> Any:
    """One line for each model, over steps or layers."""
    colour, shape = _scales(diagnoses, on_paper=width != "container")
    title = "attack step" if x == "step" else "layer"
    plain = alt.Axis(grid=False, domain=False, ticks=False, labelAngle=0)
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X(f"{x}:Q" if x == "layer" else f"{x}:O", title=title, axis=plain),
        y=alt.Y("value:Q", title=y, scale=alt.Scale(zero=False), axis=alt.Axis(domain=False, ticks=False)),
        color=colour,
    )
    tooltip = [alt.Tooltip("model:N"), alt.Tooltip(f"{x}:Q"), alt.Tooltip("value:Q", format=".3f")]
    points = base.mark_point(size=40, filled=True, opacity=1).encode(shape=shape, tooltip=tooltip)
    return alt.layer(base.mark_line(strokeWidth=2), points).properties(width=width, height=HARM_HEIGHT)


def _description(heading: str, rows: Rows, x: str) -> str:
    parts = []
    for name in dict.fromkeys(row["model"] for row in rows):
        points = [row for row in rows if row["model"] == name]
        first, last = points[0], points[-1]
        parts.append(f"{name} from {first['value']:.2f} at {first[x]} to {last['value']:.2f} at {last[x]}")
    return f"{heading}: {'; '.join(parts)}."


def _panel(heading: str, rows: Rows, diagnoses: Sequence[Diagnosis], x: str, y: str, width: int | str) -> Panel:
    return Panel(heading, _description(heading, rows, x), _lines(rows, diagnoses, x, y, width))


def _traces(diagnoses: Sequence[Diagnosis], width: int | str) -> Figure:
    points = diagnoses[0].points
    shown = [point.step for point in points if point.step & (point.step - 1) == 0 or point is points[-1]]
    panels = []
    for key, (heading, axis) in TRACES.items():
        rows = [
            {"model": diagnosis.name, "step": point.step, "value": getattr(point, key)}
            for diagnosis in diagnoses
            for point in diagnosis.points
            if point.step in shown
        ]
        panels.append(_panel(heading, rows, diagnoses, "step", axis, width))
    caption = (
        "Held-out prompts of the threat, and benign text from sources that no training used. Powers of two and the last step "
        "are shown; measured.json has all steps."
    )
    return Figure("traces", "Along the attack", caption, panels)


def _cosines(diagnoses: Sequence[Diagnosis], width: int | str) -> Figure:
    panels = []
    for key, (heading, axis) in COSINES.items():
        rows = [
            {"model": diagnosis.name, "step": entry.step, "value": getattr(entry, key)}
            for diagnosis in diagnoses
            for entry in diagnosis.cosines
            if entry.layer == ALL_PARAMETERS and not math.isnan(getattr(entry, key))
        ]
        panels.append(_panel(heading, rows, diagnoses, "step", axis, width))
    caption = (
        "Cosines between two gradients, over all trained weights: of the NLL of attacker samples (answered prompts of the "
        "attacker part, from which the attack draws its training samples), of original answers, and of benign text."
    )
    return Figure("cosines", "Do the gradients point in the same direction?", caption, panels)


def _layers(diagnoses: Sequence[Diagnosis], width: int | str) -> Figure:
    panels = []
    for step, when in ((0, "before the attack"), (8, "at step 8")):
        rows = [
            {"model": diagnosis.name, "layer": entry.layer, "value": entry.original_benign}
            for diagnosis in diagnoses
            for entry in diagnosis.cosines
            if entry.step == step and entry.layer >= 0 and not math.isnan(entry.original_benign)
        ]
        if rows:
            heading = f"Original answers and benign text, {when}"
            panels.append(_panel(heading, rows, diagnoses, "layer", "cosine", width))
    for key, heading in (
        ("invariant", "Overlap of features that benign text uses"),
        ("spurious", "Overlap of other features"),
    ):
        rows = [
            {"model": diagnosis.name, "layer": overlap.layer, "value": getattr(overlap, key)}
            for diagnosis in diagnoses
            for overlap in diagnosis.overlaps
        ]
        if rows:
            panels.append(_panel(heading, rows, diagnoses, "layer", "overlap above chance", width))
    caption = (
        "Cosines between the gradients of original answers and benign text, and the overlap of the weight updates by hardening "
        "and by the attack."
    )
    return Figure("layers", "Layer by layer", caption, panels)


def _table(diagnoses: Sequence[Diagnosis]) -> list[dict[str, Any]]:
    ends = [(diagnosis.points[0], diagnosis.points[-1]) for diagnosis in diagnoses]
    rows = [
        {
            "name": TRACES[key][0],
            "note": TRACES[key][1],
            "cells": [f"{_signed(getattr(a, key))} → {_signed(getattr(b, key))}" for a, b in ends],
        }
        for key in TRACES
    ]
    for task in diagnoses[0].capability:
        accuracies = [diagnosis.capability[task] for diagnosis in diagnoses]
        cells = [f"{accuracy.before:.1%} → {accuracy.after:.1%}" for accuracy in accuracies]
        rows.append({"name": f"Capability: {task}", "note": "accuracy", "cells": cells})
    for key, name in (("invariant", "features that benign text uses"), ("spurious", "other features")):
        cells = [_mean([getattr(overlap, key) for overlap in diagnosis.overlaps]) for diagnosis in diagnoses]
        rows.append({"name": f"Overlap, {name}", "note": "mean over layers", "cells": cells})
    cells = [f"{diagnosis.attack_seconds:.0f} s, {diagnosis.diagnosis_seconds:.0f} s" for diagnosis in diagnoses]
    rows.append({"name": "Time", "note": "attack, diagnosis", "cells": cells})
    return rows


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.2f}" if values else MISSING


if __name__ == "__main__":
    write_figures(Path(sys.argv[1]), Path(sys.argv[2]))
