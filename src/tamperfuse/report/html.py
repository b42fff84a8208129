"""Rendering of pages: one file that opens offline, with a light and a dark style.

A page makes no network requests: Vega's code is inlined once for all charts, and a content security policy allows only the
scripts whose hashes it lists, so that a script in a model's answer cannot run. `base.html.j2` is the frame of all pages.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from tamperfuse.report.figures import Figure
from tamperfuse.report.formatting import duration, label, visible


def render_page(template: str, figures: list[Figure], scripts: Sequence[str] = (), **context: Any) -> str:
    """Render a template of this package; the browser draws the figures.

    Args:
        template: file name under `templates/`.
        figures: of the page.
        scripts: file names under `templates/` of the page's scripts, beside those that draw figures and show tooltips.
        context: further variables of the template.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tamperfuse.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(visible=visible, duration=duration, label=label)
    code = ([_library(), _script("draw.js")] if figures else []) + [_script(name) for name in ("page.js", *scripts)]
    return environment.get_template(template).render(
        figures=figures,
        specs=_specs(figures),
        scripts=[Markup(script) for script in code],
        script_hashes=Markup(" ".join(_hash(script) for script in code)),
        **context,
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


def _script(name: str) -> str:
    return (files("tamperfuse.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _specs(figures: list[Figure]) -> Markup:
    """The panels' specifications as JSON, escaped so that it can stand in a script element."""
    specs = {f"{f.name}-{i}": panel.chart.to_dict() for f in figures for i, panel in enumerate(f.panels)}
    for spec in specs.values():
        spec.pop("$schema")  # a URL; vegaEmbed is told the mode instead
    return script_json(specs)
