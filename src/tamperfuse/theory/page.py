"""The theory page: phase diagram with the attack's strength on a slider, theorems, counterexamples, what follows.

One file that opens offline (Vega's code is inlined), in light and dark; its figures lie beside it as JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from tamperfuse.theory.figures import Figure, all_figures
from tamperfuse.theory.findings import known_counterexamples

__all__ = ["write_theory_page"]


def _for_script(data: Any) -> Markup:
    """JSON that can stand inside a script element: nothing in it can close the element or open a comment."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _library() -> Markup:
    """Vega, Vega-Lite and vega-embed as one script, from vl-convert; no network."""
    return Markup(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script"))


def write_theory_page(out_dir: Path | str, figures: list[Figure] | None = None) -> Path:
    """Write `theory.html` and `theory.json` into `out_dir`, which is made if need be.

    Args:
        out_dir: the folder.
        figures: those of `all_figures()` if they are at hand already; computing them takes about 15 seconds.

    Returns:
        the path of theory.html.
    """
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = all_figures() if figures is None else figures
    specs = {figure.name: figure.chart.to_dict() for figure in drawn}
    counterexamples = known_counterexamples()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((Path(__file__).parent / "page.html.j2").read_text(encoding="utf-8"))
    html = template.render(figures=drawn, counterexamples=counterexamples, specs=_for_script(specs), library=_library())
    page = folder / "theory.html"
    page.write_text(html, encoding="utf-8")
    record = {
        "schema": 1,
        "figures": {f.name: {"title": f.title, "caption": f.caption, "spec": specs[f.name]} for f in drawn},
        "counterexamples": counterexamples,
    }
    (folder / "theory.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return page
