"""The figures of docs/theory.md and of the theory page: the same charts, drawn for paper or for the browser.

    python -m tamperfuse.report.theory_figures docs/figures/theory

draws all of them as SVG (altair and vl-convert; no browser). Takes about half a minute.
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

#: Blue, orange, green and purple that stay apart for colour-blind readers, on light and on dark.
PALETTE = ("#2a78b8", "#d9730d", "#2b9a66", "#8f5fc7")
CLASSES, CHANCE = 3, 0.9
PHASE = FeatureCounts(2, 10, 1, 11)  # the corner of the phase diagram; n_v and n*_s vary over it
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


def _alone(words: str, chart: Any, width: int | str, height: int = 320) -> list[Panel]:
    """The one panel of a figure that has no others."""
    return [Panel("", words, chart.properties(width=width, height=height))]


def _phase_rows() -> Rows:
    """One cell for each strength, n_v and n*_s: exact drop, limit drop, and the limit's edge at that n*_s."""
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
    # The colour goes with the root of the drop, so that its sign shows where it is small.
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
        panels = _alone(_phase_words(rows, STRENGTHS), chart, width, 360)
    else:
        panels = []
        for strength in PAPER_STRENGTHS:
            shown = [row for row in rows if row["strength"] == strength]
            chart = _phase_layers(alt.InlineData(values=shown)).properties(width=PAPER_PANEL, height=260)
            panels.append(Panel(f"attack strength 1 - λ = {strength}", _phase_words(shown, (strength,)), chart))
    return Figure(
        "phase",
        "Where Theorem 2's conclusion holds",
        "Orange: the attack lowers accuracy, as Theorem 2 says. Blue: it raises it. Every cell meets the theorem's "
        "conditions (n_s = 10, n*_v = 1, K = 3, p = 0.9, no overlap). Above the dashed line the Gaussian limit falls; "
        "where there is none in the plot, it falls everywhere (strong attacks) or nowhere (weak ones).",
        panels,
    )


def _phase_words(rows: Rows, strengths: Sequence[float]) -> str:
    """Share of cells in which the exact accuracy falls, strength by strength."""
    parts = []
    for strength in strengths:
        drops = [row["drop"] > 0 for row in rows if row["strength"] == strength]
        parts.append(f"{sum(drops) / len(drops):.0%} at strength {strength}")
    return f"Share of settings whose accuracy the attack lowers: {', '.join(parts)}."


def _strength(width: int | str) -> Figure:
    cases = {
        "(3, 20, 2, 21)": (FeatureCounts(3, 20, 2, 21), CHANCE),
        "(5, 20, 1, 30)": (FeatureCounts(5, 20, 1, 30), CHANCE),
        "(1, 1, 0, 2), p = 0.5": (FeatureCounts(1, 1, 0, 2), 0.5),
        "(9, 20, 2, 30), inside": (FeatureCounts(9, 20, 2, 30), CHANCE),
    }
    rows: Rows = []
    words = []
    for name, (counts, p) in cases.items():
        for step in range(21):
            found = accuracies(counts, CLASSES, p, 1.0 - step / 20)
            for form, value in (("exact", found.mixture), ("limit", found.mixture_limit)):
                rows.append({"series": name, "form": form, "strength": step / 20, "accuracy": round(value, 6)})
        ends = [accuracies(counts, CLASSES, p, lam).mixture for lam in (1.0, 0.5, 0.0)]
        words.append(f"{name} from {ends[0]:.1%} by {ends[1]:.1%} half way to {ends[2]:.1%}")
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
        "Three settings that meet Theorem 2's conditions, and along the way to a worse optimum gain first: mixing two "
        "models averages their errors. The fourth lies inside the region at λ = ½. K = 3, p = 0.9 unless named. "
        "The exact vote is a step function of λ, drawn at multiples of 0.05: the faintest attack breaks its ties.",
        _alone(f"Exact accuracy along the attack: {'; '.join(words)}.", chart, width),
    )


def _theorem_one(width: int | str) -> Figure:
    rows: Rows = []
    turns: Rows = []
    chances = (0.8, 0.9, 0.95, 1.0)
    base = FeatureCounts(4, 10, 0, 0)
    for p in chances:
        name = f"p = {p}"
        for n_s in range(0, 121, 4):
            vote = replace(base, attack_spurious=n_s).mixture(0.5)
            forms = {"exact": exact_accuracy(vote, CLASSES, p), "limit": limit_accuracy(vote, CLASSES, p)}
            rows += [{"series": name, "form": f, "n_s": n_s, "accuracy": round(a, 6)} for f, a in forms.items()]
        turn = strongest_attack(base, p)
        if turn <= 120:
            there = limit_accuracy(replace(base, attack_spurious=round(turn)).mixture(0.5), CLASSES, p)
            turns.append({"series": name, "n_s": round(turn, 3), "accuracy": round(there, 6)})
    colour = _colour("chance p that a spurious feature lets go", [f"p = {p}" for p in chances])
    x = alt.X("n_s:Q", title="spurious features that the attack brings n*_s")
    y = _percent("accuracy", "alignment accuracy after the attack", zero=False)
    lines = alt.Chart(alt.InlineData(values=rows)).mark_line(strokeWidth=2)
    points = alt.Chart(alt.InlineData(values=turns)).mark_point(size=90, filled=True, opacity=1)
    chart = lines.encode(x=x, y=y, color=colour, strokeDash=_dash()) + points.encode(x=x, y=y, color=colour)
    lowest = "; ".join(f"{turn['series']} at n*_s = {turn['n_s']:.0f}, {turn['accuracy']:.1%}" for turn in turns)
    return Figure(
        "theorem_one",
        "Theorem 1: the drop does not keep growing",
        "A model with 4 invariant and 10 spurious features of alignment; the attack brings n*_s spurious ones and no "
        "invariant one (λ = ½, K = 3). The dot marks the limit's lowest point, n_s + n*_s = n_v / (1 - p): beyond it "
        "more spurious features repair the vote. Only at p = 1 does the drop grow for ever.",
        _alone(f"Lowest accuracy after the attack, in the limit: {lowest}.", chart, width),
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
            x=alt.X("fewer:Q", title="spurious features given up"),
            y=alt.Y("extra:Q", title="invariant features gained", axis=alt.Axis(tickMinStep=1)),
            color=_colour("series", ["exact", "limit"]),
            strokeDash=_dash(),
            tooltip=["form:N", "fewer:Q", "extra:Q"],
        )
    )
    exact = {row["fewer"]: row["extra"] for row in rows if row["form"] == "exact"}
    words = "; ".join(f"{exact[fewer]} gained for {fewer} given up" for fewer in (0, 4, 8, 12, 16))
    return Figure(
        "frontier",
        "What a defender must change",
        "From (n_v, n_s, n*_v, n*_s) = (3, 20, 2, 21), K = 3, p = 0.9, λ = ½, where the attack improves the model: the "
        "fewest invariant features to gain for each number of spurious ones given up, so that the attack harms it.",
        _alone(f"Invariant features to gain, exactly: {words}.", chart, width),
    )


def limit_errors(sizes: Sequence[int], settings: Sequence[tuple[int, float]]) -> Rows:
    """The largest |limit - exact| over all n_v with exact accuracy in [.5, .99], at each n_s, (K, p)."""
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
            color=_colour("classes and chance", [f"K = {k}, p = {p}" for k, p in settings]),
        )
    )
    rule = alt.Chart(alt.InlineData(values=[{"error": 0.01}])).mark_rule(strokeDash=[4, 4], color="#888888")
    largest = {row["series"]: row for row in rows}  # the last of each
    words = "; ".join(f"{name}: {row['error']:.2%} at n_s = {row['n_s']}" for name, row in largest.items())
    return Figure(
        "limit_error",
        "How far the Gaussian limit can be trusted",
        "The largest distance between limit form and exact vote over every n_v with an accuracy in [.5, .99]. The "
        "dashed line is 1%. Many classes make the limit slow: each wrong class has few votes, and a skewed count.",
        _alone(f"Error of the limit form, {words}.", lines + rule.encode(y="error:Q"), width),
    )


def theory_figures(width: int | str = "container") -> list[Figure]:
    """Compute and draw every figure, in the order of the page: as wide as its container, or so many pixels."""
    drawn = []
    with progress("figures", len(_ALL)) as advance:
        for draw in _ALL:
            drawn.append(draw(width))
            advance(1)
    return drawn


_ALL: tuple[Callable[[int | str], Figure], ...] = (_phase, _strength, _theorem_one, _frontier, _limit_error)


def write_figures(out: Path, figures: Sequence[Figure] | None = None) -> list[Path]:
    """Write each figure as SVG on white into `out`, which is made if need be; returns the paths.

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
