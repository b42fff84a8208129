"""What every page shares: one file that opens offline, light or dark, on a phone or a desk.

Nothing on a page reaches the network: Vega's code is inlined once for all charts, and a content security policy lets only
the two scripts run whose hashes it names, so that a model's answer cannot bring its own.
"""

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from tamperfuse.report.figures import Figure
from tamperfuse.report.formatting import duration, label, visible


def render_page(template: str, figures: list[Figure], **context: Any) -> str:
    """A page from a template of this package, with its figures drawn by the reader's browser.

    Args:
        template: file name under `templates/`.
        figures: what the page shows.
        context: what else the template speaks of.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tamperfuse.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(visible=visible, duration=duration, label=label)
    draw = (files("tamperfuse.report") / "templates" / "draw.js").read_text(encoding="utf-8")
    return environment.get_template(template).render(
        figures=figures,
        specs=_specs(figures),
        library=Markup(_library()),
        draw=Markup(draw),
        script_hashes=Markup(" ".join(_hash(script) for script in (_library(), draw))),
        **context,
    )


def figure_record(figures: list[Figure]) -> dict[str, Any]:
    """The figures as a page's JSON has them: words, and each panel's spec with its data."""
    return {
        figure.name: {
            "title": figure.title,
            "caption": figure.caption,
            "panels": [{"heading": p.heading, "words": p.words, "spec": p.chart.to_dict()} for p in figure.panels],
        }
        for figure in figures
    }


@cache
def _library() -> str:
    """Vega, Vega-Lite and vega-embed as one script, from vl-convert; no network. Takes some seconds."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # Neither the end of the element nor a comment may be met inside it, and a parser turns \r into \n before hashing.
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--").replace("\r\n", "\n").replace("\r", "\n")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _specs(figures: list[Figure]) -> Markup:
    """The panels' specs as JSON that can stand in a script element: nothing in it can close the element."""
    specs = {f"{f.name}-{i}": panel.chart.to_dict() for f in figures for i, panel in enumerate(f.panels)}
    for spec in specs.values():
        spec.pop("$schema")  # an address; the embedding says what it is
    text = json.dumps(specs, ensure_ascii=True, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
