"""The figures of docs/theory.md and of the theory page.

    python -m tamperfuse.report.theory_figures docs/figures/theory

draws all of them as SVG in about half a minute.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from tamperfuse.records.files import staged
from tamperfuse.records.progress import progress
from tamperfuse.report.figures import PAPER_PANEL, PAPER_WIDTH, Figure, Panel, for_paper
from tamperfuse.theory import (
    FeatureCounts,
    accuracies,
    entry_frontier,
    exact_accuracy,
    limit_accuracy,
    map_region,
    plain_vote,
    strongest_attack,
)
from tamperfuse.theory.region import Form

Rows = list[dict[str, Any]]

#: Blue, orange, green and purple that colour-blind readers can distinguish, on light and dark backgrounds.
PALETTE = ("#2a78b8", "#d9730d", "#2b9a66", "#8f5fc7")
CLASSES, CHANCE = 3, 0.9
PHASE = FeatureCounts(2, 10, 1, 11)  # lower left corner of the phase diagram, which varies n_v and n*_s
STRENGTHS = tuple(round(0.1 * step, 1) for step in range(1, 11))
PAPER_STRENGTHS = (0.3, 0.5, 0.8)
_INVARIANT, _ATTACK_SPURIOUS = tuple(range(2, 14)), tuple(range(11, 40, 2))


def _colour(title: str, domain: list[str]) -> Any:
    scale = alt.Scale(domain=domain, range=list(PALETTE[: len(domain)]))
    return alt.Color(
        "series:N", title=title, scale=scale, legend=alt.Legend(orient="bottom", columns=2, titleLimit=400)
    )


def _dash() -> Any:
    scale = alt.Scale(domain=["exact", "limit"], range=[[1, 0], [6, 4]])
    return alt.StrokeDash("form:N", title="form", scale=scale, legend=alt.Legend(orient="bottom"))


def _percent(field: str, title: str, **scale: Any) -> Any:
    return alt.Y(f"{field}:Q", title=title, axis=alt.Axis(format="%"), scale=alt.Scale(**scale))


def _single_panel(description: str, chart: Any, width: int | str, height: int = 320) -> list[Panel]:
    """The panels of a figure that has only one."""
    return [Panel("", description, chart.properties(width=width, height=height))]


def _phase_rows() -> Rows:
    """One row for each strength, n_v and n*_s: drop in both forms, and the limit's threshold at that n*_s."""
    rows: Rows = []
    for strength in STRENGTHS:
        grid = map_region(PHASE, _INVARIANT, _ATTACK_SPURIOUS, CLASSES, CHANCE, round(1.0 - strength, 10))
        for (row, column), drop in np.ndenumerate(grid.drop):
            n_v, n_s, edge = _INVARIANT[row], _ATTACK_SPURIOUS[column], float(grid.threshold[column])
            rows.append(
                {
                    "strength": strength,
                    "n_v": n_v,
                    "attack_n_s": n_s,
                    "drop": round(float(drop), 6),
                    "drop_limit": round(float(grid.drop_limit[row, column]), 6),
                    "shade": round(math.copysign(math.sqrt(abs(drop)), drop), 4),
                    "edge": round(edge, 4) if 1.5 <= edge <= 13.5 else None,
                    "left": n_s - 1,
                    "right": n_s + 1,
                    "low": n_v - 0.5,
                    "high": n_v + 0.5,
                }
            )
    return rows


def _phase_layers(data: Any) -> Any:
    # The colour scale is linear in the square root of the drop, so that the sign is visible where the drop is small.
    colours = ["#2a78b8", "#f3f3f1", "#c2410c"]
    scheme = alt.Scale(domain=[-0.45, 0.0, 0.45], range=colours, clamp=True, interpolate="lab")
    labels = "format(datum.value * abs(datum.value), '+.0%')"
    base = alt.Chart(data)
    cells = base.mark_rect(stroke=None, aria=False).encode(
        x=alt.X(
            "left:Q",
            title="spurious features of the attack's optimum n*_s",
            scale=alt.Scale(domain=[10, 40], nice=False),
            axis=alt.Axis(grid=False, values=list(range(10, 41, 5))),
        ),
        x2="right:Q",
        y=alt.Y(
            "low:Q",
            title="invariant features of the model n_v",
            scale=alt.Scale(domain=[1.5, 13.5], nice=False),
            axis=alt.Axis(grid=False, values=list(range(2, 14, 2))),
        ),
        y2="high:Q",
        color=alt.Color(
            "shade:Q",
            title="accuracy lost (exact)",
            scale=scheme,
            legend=alt.Legend(
                orient="bottom",
                labelExpr=labels,
                gradientLength=240,
                values=[-0.447, -0.224, -0.1, 0, 0.1, 0.224, 0.447],
            ),
        ),
        tooltip=[
            alt.Tooltip("strength:Q"),
            alt.Tooltip("n_v:Q", title="n_v"),
            alt.Tooltip("attack_n_s:Q", title="n*_s"),
            alt.Tooltip("drop:Q", title="lost, exact", format="+.2%"),
            alt.Tooltip("drop_limit:Q", title="lost, limit", format="+.2%"),
            alt.Tooltip("edge:Q", title="limit: lost if n_v exceeds", format=".2f"),
        ],
    )
    edge = base.mark_line(color="#111111", strokeWidth=2.5, strokeDash=[7, 3]).encode(x="attack_n_s:Q", y="edge:Q")
    return cells + edge


def _phase(width: int | str) -> Figure:
    rows = _phase_rows()
    if width == "container":
        binding = alt.binding_range(min=STRENGTHS[0], max=STRENGTHS[-1], step=0.1, name="Attack strength 1 - λ ")
        slider = alt.param(name="strength", value=0.5, bind=binding)
        chart = _phase_layers(alt.InlineData(values=rows)).add_params(slider)
        chart = chart.transform_filter("abs(datum.strength - strength) < 0.01")
        panels = _single_panel(_phase_description(rows, STRENGTHS), chart, width, 360)
    else:
        panels = []
        for strength in PAPER_STRENGTHS:
            shown = [row for row in rows if row["strength"] == strength]
            chart = _phase_layers(alt.InlineData(values=shown)).properties(width=PAPER_PANEL, height=260)
            panels.append(Panel(f"attack strength 1 - λ = {strength}", _phase_description(shown, (strength,)), chart))
    return Figure(
        "phase",
        "Where Theorem 2's conclusion holds",
        "Orange: the attack lowers accuracy, as Theorem 2 says. Blue: it raises accuracy. Every cell meets the theorem's "
        "conditions (n_s = 10, n*_v = 1, K = 3, p = 0.9, no overlap). In the Gaussian limit accuracy falls above the dashed "
        "line; without a line in the plot, it falls everywhere (strong attacks) or nowhere (weak attacks).",
        panels,
    )


def _phase_description(rows: Rows, strengths: Sequence[float]) -> str:
    """Share of cells in which exact accuracy falls, for each strength."""
    parts = []
    for strength in strengths:
        drops = [row["drop"] > 0 for row in rows if row["strength"] == strength]
        parts.append(f"{sum(drops) / len(drops):.0%} at strength {strength}")
    return f"Share of settings in which the attack lowers accuracy: {', '.join(parts)}."


def _strength(width: int | str) -> Figure:
    cases = {
        "(3, 20, 2, 21)": (FeatureCounts(3, 20, 2, 21), CHANCE),
        "(5, 20, 1, 30)": (FeatureCounts(5, 20, 1, 30), CHANCE),
        "(1, 1, 0, 2), p = 0.5": (FeatureCounts(1, 1, 0, 2), 0.5),
        "(9, 20, 2, 30), inside": (FeatureCounts(9, 20, 2, 30), CHANCE),
    }
    rows: Rows = []
    descriptions = []
    for name, (counts, p) in cases.items():
        for step in range(21):
            at_strength = accuracies(counts, CLASSES, p, 1.0 - step / 20)
            for form, value in (("exact", at_strength.mixture), ("limit", at_strength.mixture_limit)):
                rows.append({"series": name, "form": form, "strength": step / 20, "accuracy": round(value, 6)})
        ends = [accuracies(counts, CLASSES, p, lam).mixture for lam in (1.0, 0.5, 0.0)]
        descriptions.append(f"{name}: {ends[0]:.1%} at strength 0, {ends[1]:.1%} at 0.5, {ends[2]:.1%} at 1")
    chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_line(strokeWidth=2)
        .encode(
            x=alt.X("strength:Q", title="attack strength 1 - λ (0: untouched)"),
            y=_percent("accuracy", "accuracy", zero=False),
            color=_colour("(n_v, n_s, n*_v, n*_s)", list(cases)),
            strokeDash=_dash(),
        )
    )
    return Figure(
        "strength",
        "From the hardened model to the attack's optimum",
        "Three settings that meet Theorem 2's conditions and in which accuracy rises at first, since mixing two models averages "
        "their errors. The fourth is inside the region at λ = ½. K = 3, p = 0.9 unless stated. The exact accuracy is a step "
        "function of λ, drawn at multiples of 0.05: the weakest attack breaks the ties of the model.",
        _single_panel(f"Exact accuracy along the attack. {'; '.join(descriptions)}.", chart, width),
    )


def _theorem_one(width: int | str) -> Figure:
    rows: Rows = []
    minima: Rows = []
    chances = (0.8, 0.9, 0.95, 1.0)
    base = FeatureCounts(4, 10, 0, 0)
    for p in chances:
        name = f"p = {p}"
        for n_s in range(0, 121, 4):
            vote = replace(base, attack_spurious=n_s).mixture(0.5)
            forms = {"exact": exact_accuracy(vote, CLASSES, p), "limit": limit_accuracy(vote, CLASSES, p)}
            rows += [{"series": name, "form": f, "n_s": n_s, "accuracy": round(a, 6)} for f, a in forms.items()]
        minimum = strongest_attack(base, p)
        if minimum <= 120:
            accuracy = limit_accuracy(replace(base, attack_spurious=round(minimum)).mixture(0.5), CLASSES, p)
            minima.append({"series": name, "n_s": round(minimum, 3), "accuracy": round(accuracy, 6)})
    colour = _colour("probability p that a spurious feature votes at random", [f"p = {p}" for p in chances])
    x = alt.X("n_s:Q", title="spurious features that the attack brings n*_s")
    y = _percent("accuracy", "alignment accuracy after the attack", zero=False)
    lines = alt.Chart(alt.InlineData(values=rows)).mark_line(strokeWidth=2)
    points = alt.Chart(alt.InlineData(values=minima)).mark_point(size=90, filled=True, opacity=1)
    chart = lines.encode(x=x, y=y, color=colour, strokeDash=_dash()) + points.encode(x=x, y=y, color=colour)
    lowest = "; ".join(f"{row['series']} at n*_s = {row['n_s']:.0f}, {row['accuracy']:.1%}" for row in minima)
    return Figure(
        "theorem_one",
        "Theorem 1: the drop does not grow without bound",
        "A model with 4 invariant and 10 spurious features of alignment; the attack brings n*_s spurious ones and no "
        "invariant one (λ = ½, K = 3). The dot marks the lowest accuracy in the limit, at n_s + n*_s = n_v / (1 - p); with "
        "more spurious features accuracy rises again. Only at p = 1 does the drop keep growing.",
        _single_panel(f"Lowest accuracy after the attack, in the limit: {lowest}.", chart, width),
    )


def _frontier(width: int | str) -> Figure:
    start = FeatureCounts(3, 20, 2, 21)
    rows: Rows = []
    forms: tuple[Form, ...] = ("exact", "limit")
    for form in forms:
        for fewer, extra in entry_frontier(start, CLASSES, CHANCE, form=form):
            rows.append({"form": form, "series": form, "fewer": fewer, "extra": extra})
    chart = (
        alt.Chart(alt.InlineData(values=[row for row in rows if row["extra"] is not None]))
        .mark_line(point=True, strokeWidth=2, interpolate="step-after")
        .encode(
            x=alt.X("fewer:Q", title="spurious features removed"),
            y=alt.Y("extra:Q", title="invariant features added", axis=alt.Axis(tickMinStep=1)),
            color=_colour("series", ["exact", "limit"]),
            strokeDash=_dash(),
            tooltip=["form:N", "fewer:Q", "extra:Q"],
        )
    )
    exact = {row["fewer"]: row["extra"] for row in rows if row["form"] == "exact"}
    description = "; ".join(f"{exact[fewer]} added with {fewer} removed" for fewer in (0, 4, 8, 12, 16))
    return Figure(
        "frontier",
        "Changes that bring a model into the region",
        "From (n_v, n_s, n*_v, n*_s) = (3, 20, 2, 21), K = 3, p = 0.9, λ = ½, where the attack improves the model: the "
        "fewest invariant features to add, for each number of removed spurious features, such that the attack lowers accuracy.",
        _single_panel(f"Invariant features to add (exact form): {description}.", chart, width),
    )


def limit_errors(sizes: Sequence[int], settings: Sequence[tuple[int, float]]) -> Rows:
    """Largest |limit - exact| over all n_v with exact accuracy in [.5, .99], for each n_s and each (K, p)."""
    rows: Rows = []
    for classes, p in settings:
        for n_s in sizes:
            errors = []
            for n_v in range(n_s + 1):
                exact = exact_accuracy(plain_vote(n_v, n_s), classes, p)
                if exact > 0.99:
                    break
                if exact >= 0.5:
                    errors.append(abs(limit_accuracy(plain_vote(n_v, n_s), classes, p) - exact))
            if errors:
                rows.append({"series": f"K = {classes}, p = {p}", "n_s": n_s, "error": round(max(errors), 6)})
    return rows


def _limit_error(width: int | str) -> Figure:
    settings = [(2, 0.9), (3, 0.9), (10, 0.9), (10, 0.5)]
    rows = limit_errors([1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256], settings)
    lines = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_line(point=True, strokeWidth=2)
        .encode(
            x=alt.X("n_s:Q", title="spurious features n_s", scale=alt.Scale(type="log", nice=False)),
            y=alt.Y("error:Q", title="largest error of the limit form", axis=alt.Axis(format="%")),
            color=_colour("number of classes, p", [f"K = {k}, p = {p}" for k, p in settings]),
        )
    )
    rule = alt.Chart(alt.InlineData(values=[{"error": 0.01}])).mark_rule(strokeDash=[4, 4], color="#888888")
    last = {row["series"]: row for row in rows}
    description = "; ".join(f"{name}: {row['error']:.2%} at n_s = {row['n_s']}" for name, row in last.items())
    return Figure(
        "limit_error",
        "Error of the Gaussian limit",
        "The largest difference between the limit and the exact form over every n_v with an exact accuracy in [.5, .99]. The "
        "dashed line is 1%. Convergence is slow with many classes: each wrong class has few votes, with a skewed distribution.",
        _single_panel(f"Error of the limit form, {description}.", lines + rule.encode(y="error:Q"), width),
    )


def theory_figures(width: int | str = "container") -> list[Figure]:
    """Compute and draw all figures, in the order of the page.

    Args:
        width: of each chart: "container" for the page, or pixels.
    """
    drawn = []
    with progress("figures", len(_ALL)) as advance:
        for draw in _ALL:
            drawn.append(draw(width))
            advance(1)
    return drawn


_ALL: tuple[Callable[[int | str], Figure], ...] = (_phase, _strength, _theorem_one, _frontier, _limit_error)


def write_figures(out: Path, figures: Sequence[Figure] | None = None) -> list[Path]:
    """Write each figure as SVG on a white background into `out`, which is created if missing; returns the paths.

    Raises:
        UserError: `out` cannot be written.
    """
    paths = []
    for figure in theory_figures(PAPER_WIDTH) if figures is None else figures:
        path = out / f"{figure.name}.svg"
        with staged(path) as staging:
            for_paper(figure).save(str(staging), format="svg")
        paths.append(path)
    return paths


if __name__ == "__main__":
    for written in write_figures(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/figures/theory")):
        print(written)
