"""The figure of a training with simulated attackers: losses at the weights and at attacked ones, and the price, by step."""

from typing import Any

import altair as alt

from tamperfuse.report.curves import Rows
from tamperfuse.report.formatting import label
from tamperfuse.report.inputs import Run

#: Where a value was measured or what it is; the line of each has a dash pattern of its own.
HERE, ATTACKED, TUNED, PRICE, ALLOWED = "at θ", "at θ + δ", "after benign steps from θ", "price", "allowed price"
DASHES = {HERE: [1, 0], ATTACKED: [6, 3], TUNED: [2, 3], PRICE: [1, 0], ALLOWED: [6, 3]}
#: Panels: the heading, and the name of each line's value in the log.
PANELS = {
    "NLL of compliant answers": {HERE: "harmful_nll", ATTACKED: "attacked_harmful_nll"},
    "NLL of benign text": {HERE: "benign_nll", ATTACKED: "attacked_benign_nll", TUNED: "tuned_benign_nll"},
    "Price, and the price at which the trap is off": {PRICE: "price", ALLOWED: "allowed"},
}


def trap_rows(run: Run) -> dict[str, Rows]:
    """By panel, a row for each value of each check; panels without a value are left out."""
    rows: dict[str, Rows] = {heading: [] for heading in PANELS}
    for log in run.traps:
        allowed = _allowed_price(run, log.defense)
        for check in log.checks:
            values = check if allowed is None else {**check, "allowed": allowed}
            for heading, lines in PANELS.items():
                rows[heading] += [
                    {
                        "defense": label(log.defense),
                        "seed": log.seed,
                        "step": int(check["step"]),
                        "line": line,
                        "value": values[name],
                        "attacker": _attacker(check) if line == ATTACKED else "",
                        "steps": f"{check.get('attacker_steps', 0):.0f}" if line == ATTACKED else "",
                    }
                    for line, name in lines.items()
                    if name in values
                ]
    return {heading: values for heading, values in rows.items() if values}


def _allowed_price(run: Run, defense: str) -> float | None:
    """The price at which the trap of a defense is off; None where the study file does not state it."""
    settings = run.defense_settings.get(defense, {})
    strength, price = settings.get("strength"), settings.get("price")
    return strength * price if isinstance(strength, int | float) and isinstance(price, int | float) else None


def _attacker(check: dict[str, float]) -> str:
    """Which of the attackers a check met; each has a line of its own."""
    kind = "retaining" if check.get("attacker_retains") else "LoRA" if check.get("attacker_lora") else "full"
    return f"{kind} at {check.get('attacker_rate', 0):g}"


def trap_text(heading: str, rows: Rows) -> str:
    """Text alternative of a panel: the values of the last check."""
    last = {(row["defense"], row["seed"], row["line"]): row for row in rows}
    values = []
    for (defense, seed, line), row in last.items():
        attacker = f" ({row['attacker']})" if row["attacker"] else ""
        values.append(f"{defense}, seed {seed}, {line}{attacker}: {row['value']:.2f}")
    return f"{heading}, in nats a token, by step of the training. At the last check: {'; '.join(values)}."


def trap_panel(rows: Rows, height: int, color: Any) -> Any:
    """One panel: the color says which defense, the dashes what."""
    axis = alt.Axis(grid=False, domain=False, ticks=False, format="d")
    dash = alt.StrokeDash("line:N", scale=alt.Scale(domain=list(DASHES), range=list(DASHES.values())), legend=None)
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("step:Q", title="training step", axis=axis),
        y=alt.Y("value:Q", title=None, axis=alt.Axis(domain=False, ticks=False, labelPadding=10)),
        color=color,
        detail=["seed:N", "line:N", "attacker:N"],
    )
    tooltip = [
        alt.Tooltip("defense:N"),
        alt.Tooltip("seed:N"),
        alt.Tooltip("step:Q"),
        alt.Tooltip("line:N", title="what"),
        alt.Tooltip("value:Q", title="nats a token", format=".3f"),
        alt.Tooltip("attacker:N"),
        alt.Tooltip("steps:N", title="its steps"),
    ]
    line = base.mark_line(strokeWidth=2).encode(strokeDash=dash)
    # Visible points would hide the dashes, but a line of one point is nothing else.
    visible = alt.condition("datum.points == 1", alt.value(1), alt.value(0))
    grouped = base.transform_joinaggregate(points="count()", groupby=["defense", "seed", "line", "attacker"])
    points = grouped.mark_point(size=40, filled=True).encode(tooltip=tooltip, opacity=visible)
    return alt.layer(line, points).properties(width="container", height=height)
