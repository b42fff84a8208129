"""The audit as one self-contained page, with light and dark colours, for phones and desktops."""

import html
from pathlib import Path
from typing import Any

_WIDTH = 440  # pixels of a plot: on a phone it is scaled to three quarters, where its labels are still legible
CONTENTS = (
    ("result", "Result"),
    ("similarity", "Similarity"),
    ("most-similar", "Most similar pairs"),
    ("prompts", "Prompts"),
    ("responses", "Responses"),
    ("lengths", "Lengths"),
    ("sources", "Sources"),
    ("options", "Options"),
)
_INK = "#010203"  # placeholder for the page's text colour in a chart; no theme uses it


def write_page(path: Path, facts: dict[str, Any]) -> None:
    """Write the page; texts of the data are escaped.

    Args:
        path: the file.
        facts: as `audit.json` holds them.
    """
    from tamperfuse.records.pages import frame, page_environment

    charts = {"similarity": _similarity(facts), "categories": _categories(facts)}
    template = page_environment("tamperfuse.pairing").get_template("audit.html.j2")
    page = template.render(facts=facts, charts=charts, figures=[], **frame(CONTENTS))
    path.write_text(page, encoding="utf-8")


def _svg(chart: Any, description: str) -> str:
    """A chart as SVG in the page's text colour and width, with a text alternative; rendered without a browser."""
    import vl_convert

    config = {
        "background": "transparent",
        "view": {"stroke": None},
        "axis": {
            "labelColor": _INK,
            "titleColor": _INK,
            "gridColor": "#88888833",
            "domainColor": "#888888",
            "labelFontSize": 13,
            "titleFontSize": 13,
        },
        "legend": {"labelColor": _INK, "titleColor": _INK, "orient": "top", "labelFontSize": 13},
        "text": {"color": _INK, "fontSize": 13},
    }
    svg = str(vl_convert.vegalite_to_svg(chart.properties(width=_WIDTH).configure(**config).to_dict()))
    label = html.escape(description)
    return svg.replace(_INK, "currentColor").replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _data(rows: list[dict[str, Any]]) -> Any:
    import altair as alt

    return alt.Data(values=rows)


def _similarity(facts: dict[str, Any]) -> str:
    import altair as alt

    histogram = facts["histogram"]
    edges = histogram["edges"]
    rows = [
        {"from": low, "to": high, "draw": draw, "pairs": count}
        for draw, counts in (("first draw", histogram["before"]), ("paired", histogram["after"]))
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
        if count
    ]
    # Pairs are filled and first draws outlined: two overlapping transparent fills would show as a third colour.
    base = alt.Chart(_data(rows)).encode(
        x=alt.X("from:Q", bin="binned", title="cosine of prompt and response"),
        x2="to:Q",
        y=alt.Y("pairs:Q", stack=None, title="pairs"),
    )
    names, colors = ["paired", "first draw"], ["#2f7fc1", "#e07b39"]
    color = alt.Color("draw:N", title=None, scale=alt.Scale(domain=names, range=colors))
    paired = base.transform_filter("datum.draw == 'paired'").mark_bar(opacity=0.8).encode(color=color)
    first = (
        base.transform_filter("datum.draw == 'first draw'").mark_bar(filled=False, strokeWidth=2).encode(color=color)
    )
    bars = paired + first
    limit = alt.Chart(_data([{"at": facts["threshold"]}])).mark_rule(strokeDash=[5, 4], color="#c0392b", size=2)
    description = f"Pairs and first draws by cosine of prompt and response; the limit is {facts['threshold']:g}."
    return _svg((bars + limit.encode(x="at:Q")).properties(height=220), description)


def _categories(facts: dict[str, Any]) -> str:
    import altair as alt

    rows = [{"category": name[:60], "pairs": count} for name, count in list(facts["categories"].items())[:40]]
    base = alt.Chart(_data(rows)).encode(
        y=alt.Y("category:N", title=None, sort="-x", axis=alt.Axis(labelLimit=200)), x=alt.X("pairs:Q", title="pairs")
    )
    bars = base.mark_bar(color="#2f7fc1", opacity=0.8)
    counts = ", ".join(f"{row['category']} {row['pairs']:,}" for row in rows)
    labels = base.mark_text(align="left", dx=4).encode(text="pairs:Q")
    return _svg((bars + labels).properties(height={"step": 22}), f"Pairs by category: {counts}.")
