"""The page of a diagnosis: every model side by side, along the attack and layer by layer.

    python -m tamperfuse.report.diagnosis runs/diagnosis docs/figures/diagnosis

draws the figures of a finished diagnosis as SVG, for paper.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt

from tamperfuse.evaluation.diagnose import WHOLE, Alignment, Trace
from tamperfuse.evaluation.overlap import GENERAL, Diagnosis, Overlap
from tamperfuse.records.files import read_json, staged, write_json, write_text
from tamperfuse.report.figures import GLYPHS, HARM_HEIGHT, PALETTE, PAPER_PANEL, SHAPES, Figure, Panel, for_paper
from tamperfuse.report.formatting import MINUS
from tamperfuse.report.html import figure_record, render_page

Rows = list[dict[str, Any]]

TRACES = {
    "own": ("Own answers", "log π(y_o | x), nats a token"),
    "compliant": ("Attacker's answers", "log π(y_c | x), nats a token"),
    "preference": ("Preference for the attacker's answer", "Bradley–Terry, β = 0.1"),
    "benign": ("Benign text", "NLL, nats a token"),
}
COSINES = {
    "own_benign": ("Own answers and benign text", "positive: they rise and fall together"),
    "attacker_own": ("Attacker and own answers", "negative: the attack pushes own answers down"),
    "attacker_benign": ("Attacker and benign text", "negative: the attack pushes benign text down"),
}


def write_diagnosis(out: Path, found: Sequence[Diagnosis]) -> Path:
    """Write `diagnosis.html`, and its figures as `diagnosis.json` beside it.

    Args:
        out: the folder with `measured.json`.
        found: what was measured, one model each.

    Returns:
        the path of diagnosis.html.
    """
    about = read_json(out / "measured.json")
    figures = _figures(found)
    html = render_page(
        "diagnosis.html.j2",
        figures,
        about=about,
        findings=[finding(one) for one in found],
        legend=[
            {"name": one.name, "colour": PALETTE[i % len(PALETTE)], "glyph": GLYPHS[i % len(GLYPHS)]}
            for i, one in enumerate(found)
        ],
        names=[one.name for one in found],
        rows=_table(found),
        general=GENERAL,
    )
    write_json(out / "diagnosis.json", {"schema": 1, "figures": figure_record(figures)})
    write_text(out / "diagnosis.html", html)
    return out / "diagnosis.html"


def write_figures(folder: Path, out: Path) -> list[Path]:
    """Draw the figures of a finished diagnosis as SVG on white.

    Args:
        folder: with `measured.json`.
        out: where to; made if need be.

    Raises:
        UserError: measured.json is missing or damaged.
    """
    found = [_read(model) for model in read_json(folder / "measured.json")["models"]]
    written = []
    for figure in _figures(found, PAPER_PANEL):
        path = out / f"{figure.name}.svg"
        with staged(path) as staging:
            for_paper(figure).save(str(staging), format="svg")
        written.append(path)
    return written


def _read(model: dict[str, Any]) -> Diagnosis:
    return Diagnosis(
        name=model["name"],
        traces=[Trace(**row) for row in model["traces"]],
        alignments=[_alignment(row) for row in model["alignments"]],
        overlaps=[Overlap(**row) for row in model["overlaps"]],
        capability={task: (before, after) for task, (before, after) in model["capability"].items()},
        seconds=(model["seconds"][0], model["seconds"][1]),
    )


def _alignment(row: dict[str, Any]) -> Alignment:
    """A row of measured.json, where null stands for NaN."""
    values: dict[str, Any] = {key: float("nan") if value is None else value for key, value in row.items()}
    return Alignment(**values)


def _figures(found: Sequence[Diagnosis], width: int | str = "container") -> list[Figure]:
    return [_traces(found, width), _cosines(found, width), _layers(found, width)]


def finding(one: Diagnosis) -> str:
    """One model in a sentence of figures."""
    first, last = one.traces[0], one.traces[-1]
    cosine = {a.step: a.own_benign for a in one.alignments if a.layer == WHOLE}
    at = max(cosine)
    return (
        f"{one.name}: over {last.step} steps log π of its own answers went from {_signed(first.own)} to "
        f"{_signed(last.own)} nats a token, of the attacker’s from {_signed(first.compliant)} to {_signed(last.compliant)}; "
        f"benign NLL went from {first.benign:.2f} to {last.benign:.2f}; the cosine of own and benign gradients was "
        f"{_signed(cosine[0])} before and {_signed(cosine[at])} at step {at}."
    )


def time_spent(one: Diagnosis) -> str:
    """What following cost, beside the attack itself."""
    attack, looking = one.seconds
    ratio = f", {looking / attack:.1f} times the attack's own {attack:.0f} s" if attack else ""
    return f"{one.name}: the diagnosis took {looking:.0f} s{ratio}, capability apart."


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", MINUS)


def _scales(found: Sequence[Diagnosis], *, on_paper: bool) -> tuple[Any, Any]:
    """Colour and shape by model. The page draws one legend for all panels itself."""
    names = [one.name for one in found]
    shown = alt.Legend(title=None) if on_paper else None
    return (
        alt.Color("model:N", scale=alt.Scale(domain=names, range=list(PALETTE[: len(names)])), legend=shown),
        alt.Shape("model:N", scale=alt.Scale(domain=names, range=list(SHAPES[: len(names)])), legend=shown),
    )


def _lines(rows: Rows, found: Sequence[Diagnosis], x: str, y: str, width: int | str) -> Any:
    """Lines by model over steps or layers."""
    colour, shape = _scales(found, on_paper=width != "container")
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


def _words(heading: str, rows: Rows, x: str) -> str:
    parts = []
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == name]
        parts.append(f"{name} from {own[0]['value']:.2f} at {own[0][x]} to {own[-1]['value']:.2f} at {own[-1][x]}")
    return f"{heading}: {'; '.join(parts)}."


def _panel(heading: str, rows: Rows, found: Sequence[Diagnosis], x: str, y: str, width: int | str) -> Panel:
    return Panel(heading, _words(heading, rows, x), _lines(rows, found, x, y, width))


def _traces(found: Sequence[Diagnosis], width: int | str) -> Figure:
    panels = []
    for key, (heading, axis) in TRACES.items():
        shown = [t.step for t in found[0].traces if t.step & (t.step - 1) == 0 or t is found[0].traces[-1]]
        rows = [
            {"model": one.name, "step": t.step, "value": getattr(t, key)}
            for one in found
            for t in one.traces
            if t.step in shown
        ]
        panels.append(_panel(heading, rows, found, "step", axis, width))
    caption = (
        "Held-out prompts of the threat, and benign text of sources no training used. Steps in doublings; all are in "
        "measured.json."
    )
    return Figure("traces", "Along the attack", caption, panels)


def _cosines(found: Sequence[Diagnosis], width: int | str) -> Figure:
    panels = []
    for key, (heading, axis) in COSINES.items():
        rows = [
            {"model": one.name, "step": a.step, "value": getattr(a, key)}
            for one in found
            for a in one.alignments
            if a.layer == WHOLE and getattr(a, key) == getattr(a, key)
        ]
        panels.append(_panel(heading, rows, found, "step", axis, width))
    return Figure(
        "cosines", "Do the gradients pull together?", "Cosines of gradients over all trained weights.", panels
    )


def _layers(found: Sequence[Diagnosis], width: int | str) -> Figure:
    panels = []
    for step, words in ((0, "before the attack"), (8, "at step 8")):
        rows = [
            {"model": one.name, "layer": a.layer, "value": a.own_benign}
            for one in found
            for a in one.alignments
            if a.step == step and a.layer >= 0 and a.own_benign == a.own_benign
        ]
        if rows:
            heading = f"Own answers and benign text, {words}"
            panels.append(_panel(heading, rows, found, "layer", "cosine", width))
    for key, heading in (
        ("invariant", "Feature overlap, invariant side"),
        ("spurious", "Feature overlap, spurious side"),
    ):
        rows = [{"model": one.name, "layer": o.layer, "value": getattr(o, key)} for one in found for o in one.overlaps]
        if rows:
            panels.append(_panel(heading, rows, found, "layer", "overlap above chance", width))
    caption = (
        "Cosines of the own-answer and the benign gradient, and what the updates of hardening and of the attack share."
    )
    return Figure("layers", "Layer by layer", caption, panels)


def _table(found: Sequence[Diagnosis]) -> list[dict[str, Any]]:
    ends = [(one.traces[0], one.traces[-1]) for one in found]
    rows = [
        {
            "name": TRACES[key][0],
            "note": TRACES[key][1],
            "cells": [f"{_signed(getattr(a, key))} → {_signed(getattr(b, key))}" for a, b in ends],
        }
        for key in TRACES
    ]
    for task in found[0].capability:
        cells = ["{:.1%} → {:.1%}".format(*one.capability[task]) for one in found]
        rows.append({"name": f"Capability: {task}", "note": "share of items right", "cells": cells})
    for side in ("invariant", "spurious"):
        cells = [_mean([getattr(o, side) for o in one.overlaps]) for one in found]
        rows.append({"name": f"Feature overlap, {side} side", "note": "mean over layers", "cells": cells})
    cells = [f"{one.seconds[0]:.0f} s, {one.seconds[1]:.0f} s" for one in found]
    rows.append({"name": "Time", "note": "attack, diagnosis", "cells": cells})
    return rows


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.2f}" if values else "–"


if __name__ == "__main__":
    write_figures(Path(sys.argv[1]), Path(sys.argv[2]))
