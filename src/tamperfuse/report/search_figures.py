"""The adaptive attacker's figure: best so far against trials, and what its frontier costs; and its finding in sentences."""

from typing import Any

import altair as alt

from tamperfuse.records.results import UNDEFENDED, Measure
from tamperfuse.records.searches import Climb
from tamperfuse.report.curves import Rows
from tamperfuse.report.formatting import is_resolved, label, rough, span
from tamperfuse.report.inputs import Run


def climb_rows(run: Run, attack: str) -> Rows:
    """Rate of the attacker's choice after 1, 2, … trials, for every defense."""
    return [
        {
            "defense": label(climb.defense),
            "trial": number,
            "rate": measure.value,
            "low": measure.low,
            "high": measure.high,
        }
        for climb in searched(run, attack)
        for number, measure in enumerate(climb.best_so_far, 1)
    ]


def frontier_rows(run: Run, attack: str) -> Rows:
    """Every trial's checkpoint that the attacker prefers, and those on the frontier."""
    return [
        {
            "defense": label(climb.defense),
            "kind": kind,
            "lost": point.lost,
            "rate": point.evaluation.value,
            "dev": point.dev,
            "trial": point.trial + 1,
            "step": point.step,
            "setting": ", ".join(
                f"{k} {v:.2g}" if isinstance(v, float) else f"{k} {v}" for k, v in point.parameters.items()
            ),
        }
        for climb in searched(run, attack)
        for kind, points in (("trial", climb.tried), ("frontier", climb.frontier))
        for point in points
    ]


def searched(run: Run, attack: str) -> list[Climb]:
    """One search against every defense, in the order of the columns."""
    found = {climb.defense: climb for climb in run.searches if climb.attack == attack}
    return [found[name] for name in run.defenses if name in found]


def search_names(run: Run) -> list[str]:
    """Attacks that are searches, in the study's order."""
    return list(dict.fromkeys(climb.attack for climb in run.searches))


def findings(run: Run) -> list[str]:
    """For every search and defense: whether the ceiling is lower, and whether the climb is slower."""
    found = []
    for attack in search_names(run):
        climbs = searched(run, attack)
        undefended = next((climb for climb in climbs if climb.defense == UNDEFENDED), None)
        for climb in climbs:
            if undefended and climb is not undefended:
                found.append(_finding(climb, undefended))
    return found


def _finding(climb: Climb, undefended: Climb) -> str:
    ours, theirs = climb.best_so_far[-1], undefended.best_so_far[-1]
    opening = (
        f"{label(climb.defense)} under {climb.attack}, {climb.trials} trial{'s' if climb.trials > 1 else ''}: the attacker's "
        f"best executes {rough(ours.value or 0.0)} (undefended: {rough(theirs.value or 0.0)}); "
    )
    ceiling = _difference(climb.ceiling_vs_undefended, "the ceiling is {way} by {points}", "a lower ceiling")
    slower = _difference(
        climb.climb_vs_undefended, "over the search its best so far is {way} by {points}", "a slower climb"
    )
    return f"{opening}{ceiling}; {slower}. {_half(climb, undefended)}"


def _difference(measure: Measure, claim: str, otherwise: str) -> str:
    """A difference, undefended minus defended, claimed only where it is resolved."""
    interval = f" (95% interval of the difference: {span(measure)})" if span(measure) else ""
    if not is_resolved(measure) or measure.value is None:
        return f"{otherwise} is not resolved{interval}"
    way = "lower" if measure.value > 0 else "higher"
    return claim.format(way=way, points=f"{abs(100 * measure.value):.0f} points") + interval


def _half(climb: Climb, undefended: Climb) -> str:
    def trials(one: Climb) -> str:
        return f"more than {one.trials} trials" if one.censored else f"{one.half} trial{'s' if one.half > 1 else ''}"

    return f"Half of the undefended model's best took {trials(climb)} (undefended: {trials(undefended)})."


def climb_words(attack: str, rows: Rows) -> str:
    """The first panel for those who cannot see it."""
    lines = []
    for defense in dict.fromkeys(row["defense"] for row in rows):
        points = ", ".join(f"{row['rate']:.0%} after {row['trial']}" for row in rows if row["defense"] == defense)
        lines.append(f"{defense}: {points}")
    return f"Best so far by number of trials of {attack}. {'; '.join(lines)}."


def frontier_words(attack: str, rows: Rows) -> str:
    """The second panel for those who cannot see it."""
    lines = []
    for defense in dict.fromkeys(row["defense"] for row in rows):
        mine = [row for row in rows if row["defense"] == defense and row["kind"] == "frontier"]
        lines.append(f"{defense}: " + ", ".join(f"{row['rate']:.0%} at {row['lost']:.0%} lost" for row in mine))
    return f"Frontier of {attack}: harmful execution against capability lost. {'; '.join(lines)}."


def climb_panel(rows: Rows, width: int | str, height: int, colour: Any, shape: Any) -> Any:
    """Best so far against trials."""
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("trial:O", title="trials", axis=alt.Axis(labelAngle=0, grid=False, domain=False, ticks=False)),
        color=colour,
    )
    tooltip = [
        alt.Tooltip("defense:N"),
        alt.Tooltip("trial:O", title="trials"),
        alt.Tooltip("rate:Q", title="executed", format=".1%"),
        alt.Tooltip("low:Q", title="from", format=".1%"),
        alt.Tooltip("high:Q", title="to", format=".1%"),
    ]
    # Between two trials the attacker holds what it has: a step, not a slope.
    band = base.mark_area(opacity=0.16, aria=False, interpolate="step-after").encode(y=_rate("low"), y2="high:Q")
    line = base.mark_line(strokeWidth=2.25, interpolate="step-after").encode(y=_rate("rate"))
    points = base.mark_point(size=52, filled=True, opacity=1).encode(y=_rate("rate"), shape=shape, tooltip=tooltip)
    return alt.layer(band, line, points).properties(width=width, height=height)


def frontier_panel(rows: Rows, width: int | str, height: int, colour: Any, shape: Any) -> Any:
    """What each trial's choice executes and has lost; the frontier is joined by a line."""
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("lost:Q", title="capability lost", axis=alt.Axis(format=".0%", grid=False, domain=False, ticks=False)),
        color=colour,
    )
    tooltip = [
        alt.Tooltip("defense:N"),
        alt.Tooltip("trial:O"),
        alt.Tooltip("step:O"),
        alt.Tooltip("rate:Q", title="executed", format=".1%"),
        alt.Tooltip("lost:Q", title="capability lost", format=".1%"),
        alt.Tooltip("setting:N"),
    ]
    joined = base.transform_filter("datum.kind == 'frontier'")
    line = joined.mark_line(strokeWidth=2.25, opacity=0.7).encode(y=_rate("rate"), order=alt.Order("lost:Q"))
    points = base.mark_point(filled=True).encode(
        y=_rate("rate"),
        shape=shape,
        tooltip=tooltip,
        size=alt.condition("datum.kind == 'frontier'", alt.value(80), alt.value(34)),
        opacity=alt.condition("datum.kind == 'frontier'", alt.value(1), alt.value(0.45)),
    )
    return alt.layer(line, points).properties(width=width, height=height)


def _rate(field: str) -> Any:
    """Every layer says the same of the axis; room for points at 0% and 100%."""
    axis = alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1], domain=False, ticks=False)
    return alt.Y(f"{field}:Q", title=None, scale=alt.Scale(domain=[-0.045, 1.045], nice=False), axis=axis)
