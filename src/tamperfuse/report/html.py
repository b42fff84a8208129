"""Rendering of pages in the frame of :mod:`tamperfuse.records.pages`, with figures.

A page makes no network requests: Vega's code is inlined once for all charts.
"""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import vl_convert
from markupsafe import Markup

from tamperfuse.records.amounts import duration
from tamperfuse.records.pages import frame, page_environment, script_text
from tamperfuse.report.figures import Figure
from tamperfuse.report.formatting import label
from tamperfuse.report.values import value_table

PACKAGE = "tamperfuse.report"


def render_page(
    template: str,
    figures: list[Figure],
    contents: Sequence[tuple[str, str]],
    scripts: Sequence[str] = (),
    **context: Any,
) -> str:
    """Render a template of this package; the browser draws the figures.

    Args:
        template: file name under `templates/`.
        figures: of the page.
        contents: its parts, as (anchor, title).
        scripts: file names under `templates/` of the page's scripts, beside those of figures and of the frame.
        context: further variables of the template.
    """
    environment = page_environment(PACKAGE)
    environment.filters.update(duration=duration, label=label)
    specs = _specs(figures)
    environment.globals["value_tables"] = {name: value_table(spec) for name, spec in specs.items()}
    code = [_library(), script_text(PACKAGE, "draw.js")] if figures else []
    code += [script_text(PACKAGE, name) for name in scripts]
    return environment.get_template(template).render(
        figures=figures, specs=script_json(specs), **frame(contents, code), **context
    )


def script_json(value: Any) -> Markup:
    """A value as JSON that can stand in a script element: characters that could end it are escaped, and all beyond ASCII."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def figure_record(figures: list[Figure]) -> dict[str, Any]:
    """The figures as JSON: titles, captions, and each panel's Vega-Lite specification with its data."""
    return {
        figure.name: {
            "title": figure.title,
            "caption": figure.caption,
            "panels": [
                {"heading": p.heading, "alt_text": p.alt_text, "spec": p.chart.to_dict()} for p in figure.panels
            ],
        }
        for figure in figures
    }


@cache
def _library() -> str:
    """Vega, Vega-Lite and vega-embed as one script, from vl-convert, without network. Takes some seconds."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # The script must not contain the end of its element or a comment; HTML parsers turn \r into \n, which changes the hash.
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--").replace("\r\n", "\n").replace("\r", "\n")


def _specs(figures: list[Figure]) -> dict[str, dict[str, Any]]:
    """The specification of every panel, by the name of its place on the page."""
    specs = {f"{f.name}-{i}": panel.chart.to_dict() for f in figures for i, panel in enumerate(f.panels)}
    for spec in specs.values():
        spec.pop("$schema")  # a URL; vegaEmbed is told the mode instead
    return specs
