"""Axes that several panels share: steps on one scale, and percent axes that end at a label."""

import math
from dataclasses import dataclass
from typing import Any

import altair as alt

from tamperfuse.report.curves import Rows
from tamperfuse.report.inputs import Run

#: If the first step is a smaller part of the last one than this, its label would touch that of step 0 on a linear scale.
LINEAR_FROM = 1 / 12


@dataclass(frozen=True)
class StepAxis:
    """The axis of steps, the same in every panel of a run.

    Attributes:
        last: the last evaluated step of all attacks and controls that train.
        linear: whether equal distances are equal numbers of steps; else the scale is logarithmic in 1 + step.
    """

    last: int
    linear: bool

    @property
    def caption(self) -> str:
        """What a reader has to know about the axis."""
        if self.linear:
            return "All panels have the same scale of steps."
        return "All panels have the same scale of steps, a logarithmic one."

    def along(self, rows: Rows) -> Any:
        """The x channel of one panel.

        Args:
            rows: of the panel, with their "step". Where the only steps are 0 and 1, the attack changes the model in one go, and
                the axis says "before" and "after".
        """
        steps = sorted({row["step"] for row in rows})
        if steps[-1] <= 1 < self.last:
            words = "datum.value == 0 ? 'before' : 'after'"
            plain = alt.Axis(labelAngle=0, labelExpr=words, grid=False, domain=False, ticks=False)
            return alt.X("step:O", title="trains no steps", axis=plain)
        scale = alt.Scale(type="linear" if self.linear else "symlog", domain=[0, max(self.last, 1)], nice=False)
        axis = alt.Axis(
            values=steps, format="d", grid=False, domain=False, ticks=False, labelOverlap="greedy", labelFlush=False
        )
        return alt.X("step:Q", title="attack step", scale=scale, axis=axis)


def step_axis(run: Run) -> StepAxis:
    """The axis of steps of a run."""
    by_attack: dict[str, set[int]] = {}
    for row in run.rows:
        if row["part"] == "evaluation" and row["step"] > 0:
            by_attack.setdefault(row["attack"], set()).add(row["step"])
    trains = [steps for steps in by_attack.values() if max(steps) > 1]
    first, last = min(map(min, trains), default=1), max(map(max, trains), default=1)
    return StepAxis(last, first >= last * LINEAR_FROM)


def axis_values(low: float, high: float, distance: float) -> list[float]:
    """Multiples of a distance from the one at or below `low` to the one at or above `high`, so that an axis ends at a label."""
    first, last = math.floor(low / distance + 1e-9), math.ceil(high / distance - 1e-9)
    return [round(number * distance, 10) for number in range(first, last + 1)]
