"""The figure of defenses that differ in `strength` alone: the price before any attack against what attacks achieve."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import altair as alt
from scipy import stats

from tamperfuse.records.summary import DefenseSummary, Measure
from tamperfuse.records.yaml import flow_yaml
from tamperfuse.report.curves import Rows
from tamperfuse.report.formatting import MINUS, label, percent
from tamperfuse.report.inputs import Run
from tamperfuse.report.scales import axis_values

AT_LEAST = 3  # defenses of different strengths; fewer show no trade-off
SETTING = "strength"


@dataclass(frozen=True)
class StrengthEffect:
    """What a stronger defense should change.

    Attributes:
        name: for headings and sentences.
        sign: 1 if it should rise with the strength, −1 if it should fall.
        contrary: what a stronger defense does if it changes the wrong way, as a verb.
        of: its measure.
    """

    name: str
    sign: int
    contrary: str
    of: Callable[[DefenseSummary], Measure]


HARM = StrengthEffect(
    "harmful execution after attacks", -1, "executes more than", lambda measured: measured.harmful_execution.mean
)
LOSS = StrengthEffect(
    "self-degradation", 1, "degrades itself less than", lambda measured: measured.capability.self_degradation
)
EFFECTS = (HARM, LOSS)


def strength_groups(run: Run) -> list[dict[str, float]]:
    """Strengths by name of defense, ascending; a group for all defenses whose other settings are equal, of three at least."""
    groups: dict[str, dict[str, float]] = {}
    for name, settings in run.defense_settings.items():
        strength = settings.get(SETTING)
        if name in run.summary.defenses and isinstance(strength, int | float) and math.isfinite(strength):
            others = {key: value for key, value in settings.items() if key != SETTING}
            groups.setdefault(flow_yaml(others), {})[name] = float(strength)
    ordered = [dict(sorted(group.items(), key=lambda item: item[1])) for group in groups.values()]
    return [group for group in ordered if len(set(group.values())) >= AT_LEAST]


def strength_rows(run: Run, group: dict[str, float], effect: StrengthEffect) -> Rows:
    """A row for each defense of a group: capability lost before any attack, and the effect, with their intervals."""
    rows: Rows = []
    for name, strength in group.items():
        measured = run.summary.defenses[name]
        price, after = measured.capability.drop_vs_shipped, effect.of(measured)
        if price.value is not None and after.value is not None:
            rows.append(
                {
                    "defense": label(name),
                    "strength": strength,
                    "text": f"{strength:g}",
                    "price": price.value,
                    "price_low": price.value if price.low is None else price.low,
                    "price_high": price.value if price.high is None else price.high,
                    "effect": after.value,
                    "low": after.value if after.low is None else after.low,
                    "high": after.value if after.high is None else after.high,
                    "nll": measured.benign_nll.rise_vs_shipped.value,
                    "kl": measured.benign_kl.value,
                }
            )
    return rows if len({row["strength"] for row in rows}) >= AT_LEAST else []


def strength_sentences(run: Run, group: dict[str, float]) -> list[str]:
    """Spearman's correlation of strength and each effect, and the inversions that are significant."""
    sentences = []
    for effect in EFFECTS:
        measures = [(s, effect.of(run.summary.defenses[name])) for name, s in group.items()]
        measures = [(s, measure) for s, measure in measures if measure.value is not None]
        if len({s for s, _ in measures}) >= AT_LEAST:
            sentences.append(_correlation(effect, measures))
            sentences += inversions(effect, measures)
    return sentences


def _correlation(effect: StrengthEffect, measures: Sequence[tuple[float, Measure]]) -> str:
    values = [measure.value or 0.0 for _, measure in measures]
    opening = f"Spearman's correlation of strength and {effect.name}, {len(values)} defenses:"
    if len(set(values)) == 1:
        return f"{opening} undefined, all are equal."
    rho = float(stats.spearmanr([strength for strength, _ in measures], values).statistic)
    chance = "" if any(measure.resolved for _, measure in measures) else "; no value is resolved, so it may be chance"
    return f"{opening} {_signed(rho, 2)} (aim: {_signed(effect.sign, 0)}){chance}."


def _signed(value: float, digits: int) -> str:
    return f"{MINUS if value < 0 else ''}{abs(value):.{digits}f}"


def inversions(effect: StrengthEffect, measures: Sequence[tuple[float, Measure]]) -> list[str]:
    """Pairs of strengths whose order is significantly the wrong one, each in a sentence; or that none is.

    A difference of two values is significant if it exceeds the root of the summed squares of the ends of their 95% intervals that
    face each other (Newcombe, Statistics in Medicine 17(8), 1998, method 10). The models answer the same prompts, so the true
    interval of a difference is narrower where their answers agree: inversions can be missed, at several pairs one may be chance.

    Args:
        effect: what is compared.
        measures: (strength, value), with ascending strengths.
    """
    sentences = []
    for (weak, weaker), (strong, stronger) in combinations(measures, 2):
        higher, lower = (stronger, weaker) if effect.sign < 0 else (weaker, stronger)
        if weak < strong and _exceeds(higher, lower):
            values = f"{percent(stronger.value or 0.0, 0)} against {percent(weaker.value or 0.0, 0)}"
            sentences.append(f"Inversion: strength {strong:g} {effect.contrary} strength {weak:g} ({values}).")
    return sentences or ["No inversion is significant."]


def _exceeds(higher: Measure, lower: Measure) -> bool:
    """Whether one value is significantly above another one."""
    if higher.value is None or lower.value is None or higher.low is None or lower.high is None:
        return False
    return higher.value - lower.value > math.hypot(higher.value - higher.low, lower.high - lower.value)


def strength_text(heading: str, rows: Rows) -> str:
    """Text alternative of a panel."""
    points = [
        f"strength {row['text']}: {percent(row['effect'], 0)} at a price of {percent(row['price'])}" for row in rows
    ]
    return f"{heading[0].upper()}{heading[1:]} against capability lost before any attack. {'; '.join(points)}."


def strength_panel(rows: Rows, effect: StrengthEffect, height: int, color: Any, shape: Any) -> Any:
    """One panel: a point with both intervals for each defense, labelled by its strength; a line in the order of strengths."""
    x_axis = _axis([row[key] for row in rows for key in ("price", "price_low", "price_high")])
    y_axis = _axis([0.0, 1.0] if effect is HARM else [row[key] for row in rows for key in ("effect", "low", "high")])

    def x(field: str) -> Any:
        return alt.X(f"{field}:Q", title="capability lost before any attack", **x_axis)

    def y(field: str) -> Any:
        return alt.Y(f"{field}:Q", title=None, **y_axis)

    base = alt.Chart(alt.InlineData(values=rows))
    line = base.mark_line(strokeWidth=1.25, color="#8a929c").encode(
        x=x("price"), y=y("effect"), order=alt.Order("strength:Q")
    )
    colored = base.encode(color=color)
    across = colored.mark_rule(strokeWidth=2, opacity=0.5).encode(x=x("price_low"), x2="price_high:Q", y=y("effect"))
    up = colored.mark_rule(strokeWidth=2, opacity=0.5).encode(x=x("price"), y=y("low"), y2="high:Q")
    names = base.mark_text(align="left", dx=5, dy=-10, fontSize=12, color="#8a929c").encode(
        x=x("price"), y=y("effect"), text="text:N"
    )
    tooltip = [
        alt.Tooltip("defense:N"),
        alt.Tooltip("strength:Q"),
        alt.Tooltip("effect:Q", title=effect.name, format=".1%"),
        alt.Tooltip("low:Q", title="from", format=".1%"),
        alt.Tooltip("high:Q", title="to", format=".1%"),
        alt.Tooltip("price:Q", title="capability lost", format=".1%"),
        alt.Tooltip("price_low:Q", title="lost, from", format=".1%"),
        alt.Tooltip("price_high:Q", title="lost, to", format=".1%"),
        alt.Tooltip("nll:Q", title="rise of benign NLL", format=".3f"),
        alt.Tooltip("kl:Q", title="KL from as shipped", format=".3f"),
    ]
    points = colored.mark_point(size=70, filled=True, opacity=1).encode(
        x=x("price"), y=y("effect"), shape=shape, tooltip=tooltip
    )
    return alt.layer(line, across, up, names, points).properties(width="container", height=height)


def _axis(values: Sequence[float]) -> dict[str, Any]:
    """Scale and axis of shares, from 0 or below to beyond the largest one; the same in every layer."""
    low, high = min(0.0, *values), max(0.02, *values)
    distance = next((step for step in (0.01, 0.02, 0.05, 0.1, 0.25) if (high - low) / step <= 6), 0.5)
    marks = axis_values(low, high, distance)
    return {
        "scale": alt.Scale(domain=[marks[0], marks[-1]], nice=False),
        "axis": alt.Axis(format=".0%", values=marks, domain=False, ticks=False),
    }
