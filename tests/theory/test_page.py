"""The page is one offline file, escapes what it shows, and has its figures beside it; the charts compile."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("altair")
vl_convert = pytest.importorskip("vl_convert")

from tamperfuse.theory import figures  # noqa: E402
from tamperfuse.theory.figures import Figure  # noqa: E402
from tamperfuse.theory.page import write_theory_page  # noqa: E402


def small_phase() -> Figure:
    """The phase diagram on three cells, with the real layers and the real slider's parameter."""
    rows = [
        {"strength": s, "n_v": 2, "attack_n_s": 11, "drop": 0.01, "drop_limit": 0.02, "shade": 0.1, "edge": 2.0}
        | {"left": 10, "right": 12, "low": 1.5, "high": 2.5}
        for s in (0.1, 0.5, 1.0)
    ]
    chart = figures._phase_layers(figures.alt.InlineData(values=rows))
    return Figure("phase", "A </script><b>title</b>", "A & caption", chart.properties(width="container"), chart)


def test_page_and_json(tmp_path: Path) -> None:
    page = write_theory_page(tmp_path / "new", [small_phase(), figures._frontier()])
    html = page.read_text(encoding="utf-8")
    assert page.name == "theory.html"
    assert "prefers-color-scheme" in html and 'name="viewport"' in html
    assert "<b>title</b>" not in html and "&lt;b&gt;title" in html
    markup = re.sub(r"<script[^>]*>.*?</script>", "<script>", html, flags=re.S)
    assert not re.search(r"(?:src|href)=|https?://|@import|url\(", markup)
    assert not re.search(r"<script[^>]+src=", html)
    assert html.count("</script>") == 3
    specs = json.loads(re.search(r'id="specs" type="application/json">(.*?)</script>', html, re.S).group(1))  # type: ignore[union-attr]
    record = json.loads((tmp_path / "new" / "theory.json").read_text(encoding="utf-8"))
    assert record["schema"] == 1 and set(record["figures"]) == set(specs) == {"phase", "frontier"}
    assert record["figures"]["frontier"]["spec"] == specs["frontier"]
    assert "(3, 20, 2, 21)".strip("()") in html and "84.1% → 92.0%" in html


def test_charts_compile_to_svg(tmp_path: Path) -> None:
    paths = figures.write_figures(tmp_path, [small_phase(), figures._frontier()])
    assert [path.name for path in paths] == ["phase.svg", "frontier.svg"]
    assert all(path.read_text(encoding="utf-8").startswith("<svg") for path in paths)
