"""Figures and sentences about adaptive attackers: the best rate so far by number of trials, and the Pareto frontier."""

from typing import Any

import altair as alt

from tamperfuse.records.results import UNDEFENDED
from tamperfuse.records.searches import SearchResult
from tamperfuse.records.summary import Measure
from tamperfuse.report.curves import Rows, add_all_models
from tamperfuse.report.formatting import is_resolved, label, negated, rough, span
from tamperfuse.report.inputs import Run
from tamperfuse.report.scales import axis_values


def best_so_far_rows(run: Run, attack: str) -> Rows:
    """Rate of the attacker's choice after 1, 2, … trials, for every defense."""
    rows = [
        {
            "defense": label(result.defense),
            "trial": number,
            "rate": measure.value,
            "low": measure.low,
            "high": measure.high,
        }
        for result in results_of(run, attack)
        for number, measure in enumerate(result.best_so_far, 1)
    ]
    return add_all_models(rows, "trial")


def frontier_rows(run: Run, attack: str) -> Rows:
    """For every trial the checkpoint that the attacker prefers (kind "trial"), and the checkpoints of the frontier."""
    rows = [
        {
            "defense": label(result.defense),
            "kind": kind,
            "lost": point.capability_lost,
            "rate": point.evaluation.value,
            "attacker_dev": point.attacker_dev,
            "trial": point.trial + 1,
            "step": point.step,
            "setting": point.setting,
        }
        for result in results_of(run, attack)
        for kind, points in (("trial", result.choices), ("frontier", result.frontier))
        for point in points
    ]
    return add_all_models(rows, "lost", "rate")


def results_of(run: Run, attack: str) -> list[SearchResult]:
    """One search against every defense, in the order of `run.defenses`."""
    results = {result.defense: result for result in run.searches if result.attack == attack}
    return [results[name] for name in run.defenses if name in results]


def search_names(run: Run) -> list[str]:
    """Attacks that are searches, in the study's order."""
    return list(dict.fromkeys(result.attack for result in run.searches))


def search_sentences(run: Run) -> list[str]:
    """For every search and defense: whether the final rate is lower, and whether the search is slower."""
    sentences = []
    for attack in search_names(run):
        results = results_of(run, attack)
        undefended = next((result for result in results if result.defense == UNDEFENDED), None)
        for result in results:
            if undefended and result is not undefended:
                sentences.append(_sentence(result, undefended))
    return sentences


def _sentence(result: SearchResult, undefended: SearchResult) -> str:
    last, reference = result.best_so_far[-1], undefended.best_so_far[-1]
    opening = (
        f"{label(result.defense)} under {result.attack}, {result.trials} trial{'s' if result.trials > 1 else ''}: the attacker's "
        f"best executes {rough(last.value or 0.0)} (undefended: {rough(reference.value or 0.0)}); "
    )
    final = _difference(result.final_best_vs_undefended, "the final rate is {way} by {points}", "a lower final rate")
    slower = _difference(
        result.best_so_far_vs_undefended, "over the search the best so far is {way} by {points}", "a slower search"
    )
    return f"{opening}{final}; {slower}. {_half(result, undefended)}"


def _difference(measure: Measure, claim: str, otherwise: str) -> str:
    """A difference, undefended minus defended, in words; as not resolved where it is not."""
    interval = f" (95% interval of the difference: {span(measure)})" if span(measure) else ""
    if not is_resolved(measure) or measure.value is None:
        return f"{otherwise} is not resolved{interval}"
    way, size = ("lower", measure) if measure.value > 0 else ("higher", negated(measure))
    return claim.format(way=way, points=f"{100 * (size.value or 0):.0f} points") + f" (95% interval: {span(size)})"


def _half(result: SearchResult, undefended: SearchResult) -> str:
    def trials(one: SearchResult) -> str:
        if one.censored:
            return f"more than {one.trials} trials"
        return f"{one.trials_to_half} trial{'s' if one.trials_to_half > 1 else ''}"

    return f"Half of the undefended model's final rate took {trials(result)} (undefended: {trials(undefended)})."


def best_so_far_text(attack: str, rows: Rows) -> str:
    """Text alternative of the first panel."""
    lines = []
    for defense in dict.fromkeys(row["defense"] for row in rows):
        points = ", ".join(f"{row['rate']:.0%} after {row['trial']}" for row in rows if row["defense"] == defense)
        lines.append(f"{defense}: {points}")
    return f"Best so far by number of trials of {attack}. {'; '.join(lines)}."


def frontier_text(attack: str, rows: Rows) -> str:
    """Text alternative of the second panel."""
    lines = []
    for defense in dict.fromkeys(row["defense"] for row in rows):
        front = [row for row in rows if row["defense"] == defense and row["kind"] == "frontier"]
        lines.append(f"{defense}: " + ", ".join(f"{row['rate']:.0%} at {row['lost']:.0%} lost" for row in front))
    return f"Frontier of {attack}: harmful execution against capability lost. {'; '.join(lines)}."


def best_so_far_panel(rows: Rows, height: int, color: Any, shape: Any) -> Any:
    """Best rate so far against the number of trials."""
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("trial:O", title="trials", axis=alt.Axis(labelAngle=0, grid=False, domain=False, ticks=False)),
        color=color,
    )
    tooltip = [
        alt.Tooltip("defense:N"),
        alt.Tooltip("trial:O", title="trials"),
        alt.Tooltip("rate:Q", title="executed", format=".1%"),
        alt.Tooltip("low:Q", title="from", format=".1%"),
        alt.Tooltip("high:Q", title="to", format=".1%"),
        alt.Tooltip("all_models:N", title="all models"),
    ]
    # The best so far is constant between two trials.
    band = base.mark_area(opacity=0.16, aria=False, interpolate="step-after").encode(y=_rate("low"), y2="high:Q")
    line = base.mark_line(strokeWidth=2.25, interpolate="step-after").encode(y=_rate("rate"))
    points = base.mark_point(size=52, filled=True, opacity=1).encode(y=_rate("rate"), shape=shape, tooltip=tooltip)
    return alt.layer(band, line, points).properties(width="container", height=height)


def frontier_panel(rows: Rows, height: int, color: Any, shape: Any) -> Any:
    """Harmful execution against capability lost, of every trial's choice; the frontier is connected by a line."""
    lost = [row["lost"] for row in rows] or [0.0]
    marks = axis_values(min(0.0, *lost), max(0.1, *lost), 0.1 if max(lost) - min(lost) < 0.5 else 0.25)
    axis = alt.Axis(format=".0%", values=marks, grid=False, domain=False, ticks=False)
    scale = alt.Scale(domain=[marks[0], marks[-1]], nice=False)
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("lost:Q", title="capability lost", scale=scale, axis=axis),
        color=color,
    )
    tooltip = [
        alt.Tooltip("defense:N"),
        alt.Tooltip("trial:O"),
        alt.Tooltip("step:O"),
        alt.Tooltip("rate:Q", title="executed", format=".1%"),
        alt.Tooltip("lost:Q", title="capability lost", format=".1%"),
        alt.Tooltip("setting:N"),
        alt.Tooltip("all_models:N", title="at this point"),
    ]
    front = base.transform_filter("datum.kind == 'frontier'")
    line = front.mark_line(strokeWidth=2.25, opacity=0.7).encode(y=_rate("rate"), order=alt.Order("lost:Q"))
    points = base.mark_point(filled=True).encode(
        y=_rate("rate"),
        shape=shape,
        tooltip=tooltip,
        size=alt.condition("datum.kind == 'frontier'", alt.value(80), alt.value(34)),
        opacity=alt.condition("datum.kind == 'frontier'", alt.value(1), alt.value(0.45)),
    )
    return alt.layer(line, points).properties(width="container", height=height)


def _rate(field: str) -> Any:
    """The y axis, the same in every layer."""
    axis = alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1], domain=False, ticks=False)
    return alt.Y(f"{field}:Q", title=None, scale=alt.Scale(domain=[0, 1], nice=False), axis=axis)
