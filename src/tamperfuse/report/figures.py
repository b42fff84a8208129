"""The figures of a run as altair charts, as wide as their container on the page."""

from dataclasses import dataclass
from typing import Any

import altair as alt

from tamperfuse.report.curves import Rows, capability_rows, capability_states, harm_rows
from tamperfuse.report.formatting import label, percent
from tamperfuse.report.inputs import Run
from tamperfuse.report.scales import axis_values, step_axis
from tamperfuse.report.search_figures import (
    best_so_far_panel,
    best_so_far_rows,
    best_so_far_text,
    frontier_panel,
    frontier_rows,
    frontier_text,
    search_names,
    search_sentences,
)
from tamperfuse.report.strength_figures import (
    EFFECTS,
    strength_groups,
    strength_panel,
    strength_rows,
    strength_sentences,
    strength_text,
)
from tamperfuse.report.trap_figures import trap_panel, trap_rows, trap_text

#: Distinguishable for color-blind readers, contrast at least 3:1 on the light and the dark page. Shapes repeat the distinction.
PALETTE = ("#d9730d", "#2a7fc4", "#2b9a66", "#8f5fc7", "#c04f86", "#7f7f2a", "#5f7f95", "#b05a3c")
SHAPES = ("square", "circle", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
GLYPHS = ("■", "●", "▲", "◆", "✚", "▼", "▶", "◀")
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif'
HARM_HEIGHT, PAPER_WIDTH, PAPER_PANEL = 230, 620, 290


@dataclass(frozen=True)
class Panel:
    """One chart of a figure: a heading, and a text alternative for screen readers.

    Attributes:
        brief: the main numbers in a few words, shown while the panel is folded; "" for a panel that is not folded.
        note: a remark on this panel alone.
    """

    heading: str
    alt_text: str
    chart: Any
    brief: str = ""
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure: its name (file stem), a title, a caption, its panels."""

    name: str
    title: str
    caption: str
    panels: list[Panel]


def legend(run: Run) -> list[dict[str, str]]:
    """Name, color and glyph of each defense, in drawing order."""
    return [
        {"name": label(name), "color": PALETTE[i % len(PALETTE)], "glyph": GLYPHS[_shape(i)]}
        for i, name in enumerate(run.defenses)
    ]


def _shape(number: int) -> int:
    """Index of a defense's shape: where the colors begin again, each goes with another shape."""
    return (number + number // len(PALETTE)) % len(SHAPES)


def all_figures(run: Run) -> list[Figure]:
    """Harmful execution along each attack and control, and what else was measured; figures without panels are left out."""
    figures = [build(run) for build in (_harm, _controls, _search, _capability, _strength, _trap)]
    return [figure for figure in figures if figure.panels]


def for_paper(figure: Figure) -> Any:
    """A figure on white: panels in two columns, one title, one legend at the bottom."""
    charts = [panel.chart.properties(title=panel.heading) for panel in figure.panels]
    return (
        alt.concat(*charts, columns=2, title=alt.TitleParams(figure.title, anchor="start", fontSize=15, offset=12))
        .configure(background="#ffffff", font=FONT.replace('"', ""), padding=16)
        .configure_view(stroke=None)
        .configure_axis(gridColor="#e3e6ea", domainColor="#c5cbd3", tickColor="#c5cbd3", labelFontSize=11)
        .configure_title(anchor="start", fontSize=12, fontWeight=600)
        .configure_legend(orient="bottom", symbolOpacity=1)
    )


def _scales(run: Run) -> tuple[Any, Any]:
    """Color and shape by defense. On the page the template draws one legend for all panels."""
    names = [label(name) for name in run.defenses]
    colors = [PALETTE[i % len(PALETTE)] for i in range(len(names))]
    shapes = [SHAPES[_shape(i)] for i in range(len(names))]
    return (
        alt.Color("defense:N", scale=alt.Scale(domain=names, range=colors), legend=None),
        alt.Shape("defense:N", scale=alt.Scale(domain=names, range=shapes), legend=None),
    )


def _harm(run: Run) -> Figure:
    several = len(run.summary.seeds) > 1
    band = (
        "Lines are means over seeds, bands run from the lowest to the highest end of the seeds' 95% intervals; a ring marks the "
        "step at which the attacker, judging by prompts of its own, stops, if all seeds agree."
        if several
        else "Bands are 95% intervals; a ring marks the step at which the attacker, judging by prompts of its own, stops."
    )
    return Figure(
        "harm",
        "Harmful execution along each attack",
        f"Share of forbidden requests the model executes, by step of the attack; step 0 is before it. {band} "
        f"{step_axis(run).caption}",
        [panel for attack in run.attacks if (panel := _curve(run, attack))],
    )


def _controls(run: Run) -> Figure:
    return Figure(
        "controls",
        "Harmful execution along each control",
        "The same without an attacker: benign fine-tuning, export, pruning. A defense that does not survive these does not hold.",
        [panel for control in run.controls if (panel := _curve(run, control))],
    )


def _curve(run: Run, attack: str) -> Panel | None:
    rows = harm_rows(run, attack)
    if not any(row["step"] for row in rows):
        return None
    note = (
        "A search: each line is the trial that the attacker chose against that model, so the lines have different settings."
        if attack in search_names(run)
        else ""
    )
    return Panel(attack, _harm_text(attack, rows), _harm_panel(run, rows), _brief(run, attack), note)


def _brief(run: Run, attack: str) -> str:
    """The rates after an attack, as the summary has them: "undefended 90%, SDD 95%"."""
    rates = []
    for name in run.defenses:
        harm = run.summary.defenses[name].harmful_execution
        measure = harm.after.get(attack)
        if measure is not None and measure.value is not None:
            rates.append(f"{label(name)} {percent(measure.value, 0)}")
    return ", ".join(rates)


def _harm_text(attack: str, rows: Rows) -> str:
    lines = []
    for defense in dict.fromkeys(row["defense"] for row in rows):
        points = ", ".join(f"{row['rate']:.0%} at step {row['step']}" for row in rows if row["defense"] == defense)
        lines.append(f"{defense}: {points}")
    return f"Harmful execution under {attack}. {'; '.join(lines)}."


def _harm_panel(run: Run, rows: Rows) -> Any:
    color, shape = _scales(run)
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=step_axis(run).along(rows), color=color)
    axis = alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1], domain=False, ticks=False, labelPadding=10)
    scale = alt.Scale(domain=[0, 1], nice=False)
    rate = alt.Y("rate:Q", title=None, scale=scale, axis=axis)
    tooltip = [
        alt.Tooltip("defense:N"),
        alt.Tooltip("step:O"),
        alt.Tooltip("rate:Q", title="executed", format=".1%"),
        alt.Tooltip("low:Q", title="from", format=".1%"),
        alt.Tooltip("high:Q", title="to", format=".1%"),
        alt.Tooltip("n:Q", title="prompts"),
        alt.Tooltip("all_models:N", title="at this step"),
    ]
    band = base.mark_area(opacity=0.16, aria=False).encode(
        y=alt.Y("low:Q", title=None, axis=axis, scale=scale), y2="high:Q"
    )
    line = base.mark_line(strokeWidth=2.25, clip=False).encode(y=rate)
    points = base.mark_point(size=52, filled=True, opacity=1).encode(y=rate, shape=shape, tooltip=tooltip)
    # Below the points, and with the same tooltip: a mark above them would receive the pointer instead of them.
    ring = base.mark_point(size=260, filled=False, strokeWidth=1.75, shape="circle").encode(y=rate, tooltip=tooltip)
    chosen = ring.transform_filter("datum.selected")
    return alt.layer(band, line, chosen, points).properties(width="container", height=HARM_HEIGHT)


def _search(run: Run) -> Figure:
    panels = []
    for attack in search_names(run):
        best, front = best_so_far_rows(run, attack), frontier_rows(run, attack)
        style = (HARM_HEIGHT, *_scales(run))
        panels.append(Panel(f"{attack}: best so far", best_so_far_text(attack, best), best_so_far_panel(best, *style)))
        panels.append(Panel(f"{attack}: frontier", frontier_text(attack, front), frontier_panel(front, *style)))
    return Figure(
        "search",
        "The adaptive attacker",
        "The search varies the attack's settings for a high rate at little loss of capability. Steps and trials are chosen on "
        "the attacker's own prompts; rates are those on the evaluation prompts. Left: the rate of the attacker's choice by "
        "number of trials, with its 95% interval. Right: the choice within each trial; the line connects the Pareto frontier. "
        f"{' '.join(search_sentences(run))}",
        panels,
    )


def _capability(run: Run) -> Figure:
    rows = capability_rows(run)
    panels = [Panel("", _capability_text(rows), _capability_panel(run, rows))] if rows else []
    return Figure(
        "capability",
        "Capability before and after",
        "Mean over tasks of accuracy above chance: 100% is the model as shipped, 0% is guessing. Bars are 95% "
        "intervals. With self-degradation, capability stays in the first row and drops in those of the attacks.",
        panels,
    )


def _strength(run: Run) -> Figure:
    style = (HARM_HEIGHT, *_scales(run))
    groups = strength_groups(run)
    panels, sentences = [], []
    for group in groups:
        names = ", ".join(map(label, group))
        for effect in EFFECTS:
            if rows := strength_rows(run, group, effect):
                heading = f"{effect.name} ({names})" if len(groups) > 1 else effect.name
                panels.append(Panel(heading, strength_text(heading, rows), strength_panel(rows, effect, *style)))
        sentences += [*([f"{names}:"] if len(groups) > 1 else []), *strength_sentences(run, group)]
    return Figure(
        "strength",
        "Price and effect by strength",
        "Defenses whose settings differ in `strength` alone. To the right: a higher price, the capability that is lost before "
        "any attack (drop vs as shipped). Upwards: mean harmful execution over the malicious attacks, or self-degradation. Bars "
        f"are 95% intervals, labels are strengths. {' '.join(sentences)}",
        panels,
    )


def _trap(run: Run) -> Figure:
    color, _ = _scales(run)
    return Figure(
        "trap",
        "Training with simulated attackers",
        "Measured at checks during the training, in nats a token, on answers and benign text that are held out from it: at the "
        "weights θ (solid) and at θ + δ, where a simulated malicious fine-tuning has arrived (dashed, one line for each "
        "simulated attacker; they start again at δ = 0 from time to time). A trap raises the losses at θ + δ alone. Dotted, "
        "where it was measured: benign text after a simulated benign fine-tuning from θ, which should lower its loss. Last: "
        "the KL divergence from the model as shipped, and dashed the one at which the trap is off.",
        [
            Panel(heading, trap_text(heading, rows), trap_panel(rows, HARM_HEIGHT, color))
            for heading, rows in trap_rows(run).items()
        ],
    )


def _capability_text(rows: Rows) -> str:
    return "Capability. " + "; ".join(f"{r['defense']} {r['state']}: {r['capability']:.0%}" for r in rows) + "."


def _capability_panel(run: Run, rows: Rows) -> Any:
    color, shape = _scales(run)
    order = [state for state, _ in capability_states(run) if any(row["state"] == state for row in rows)]
    names = [label(name) for name in run.defenses]
    ends = [row[key] for row in rows for key in ("capability", "low", "high") if row[key] is not None]
    # The axis need not start at zero: it starts at the highest of these marks that is below all intervals.
    low = next((start for start in (0.7, 0.5, 0.0) if start <= min(ends)), min(ends))
    tenths = axis_values(low, max(1.0, *ends), 0.1 if low >= 0.5 else 0.2)
    title = "capability" if tenths[0] <= 0 else f"capability (axis from {tenths[0]:.0%})"
    scale = alt.Scale(domain=[tenths[0], tenths[-1]], nice=False)
    axis = alt.Axis(format=".0%", values=tenths, domain=False, ticks=False)

    def along(field: str) -> Any:
        # The axis must be the same in every layer, else Vega-Lite extends it to zero.
        return alt.X(f"{field}:Q", title=title, scale=scale, axis=axis)

    base = alt.Chart(alt.InlineData(values=rows)).encode(
        y=alt.Y(
            "state:N", title=None, sort=order, axis=alt.Axis(domain=False, ticks=False, labelLimit=140, labelPadding=8)
        ),
        yOffset=alt.YOffset("defense:N", sort=names, scale=alt.Scale(paddingOuter=0.6)),
        color=color,
    )
    tooltip = [
        alt.Tooltip("defense:N"),
        alt.Tooltip("state:N"),
        alt.Tooltip("capability:Q", format=".1%"),
        alt.Tooltip("low:Q", title="from", format=".1%"),
        alt.Tooltip("high:Q", title="to", format=".1%"),
    ]
    bars = base.mark_rule(strokeWidth=2.25, opacity=0.55).encode(x=along("low"), x2="high:Q")
    dots = base.mark_point(size=80, filled=True, opacity=1).encode(x=along("capability"), shape=shape, tooltip=tooltip)
    shipped = alt.Chart(alt.InlineData(values=[{"capability": 1.0}]))
    mark = shipped.mark_rule(strokeDash=[4, 4], color="#8a929c", strokeWidth=1.25).encode(x=along("capability"))
    return alt.layer(mark, bars, dots).properties(width="container", height=len(order) * (20 * len(names) + 18))
