"""The theory page is one offline file with escaped text; the data of its figures are in theory.json; the charts compile."""

import json
import re
from pathlib import Path

import altair as alt
import pytest

from tamperfuse.report import theory_figures as figures
from tamperfuse.report.figures import Figure, Panel
from tamperfuse.report.theory import write_theory_page


@pytest.fixture
def two_figures() -> list[Figure]:
    """The phase diagram on three cells, with the real layers, under a title that must be escaped; and the frontier."""
    rows = [
        {"strength": s, "n_v": 2, "attack_n_s": 11, "drop": 0.01, "drop_limit": 0.02, "shade": 0.1, "edge": 2.0}
        | {"left": 10, "right": 12, "low": 1.5, "high": 2.5}
        for s in (0.1, 0.5, 1.0)
    ]
    chart = figures._phase_layers(alt.InlineData(values=rows)).properties(width="container")
    phase = Figure(
        "phase", "A </script><b>title</b>", "A & caption", [Panel("", figures._phase_description(rows, (0.1,)), chart)]
    )
    return [phase, figures._frontier("container")]


def test_page_and_json(tmp_path: Path, two_figures: list[Figure]) -> None:
    page = write_theory_page(tmp_path / "new", two_figures)
    html = page.read_text(encoding="utf-8")
    assert page.name == "theory.html"
    assert "Content-Security-Policy" in html and 'name="viewport"' in html
    assert "<b>title</b>" not in html and "&lt;b&gt;title" in html
    markup = re.sub(r"<script[^>]*>.*?</script>", "<script>", html, flags=re.S)
    assert not re.search(r"src=|href=\"(?!#)|https?://|@import|url\(", markup)
    assert not re.search(r"<script[^>]+src=", html)
    specs = json.loads(re.search(r'id="specs" type="application/json">(.*?)</script>', html, re.S).group(1))  # type: ignore[union-attr]
    record = json.loads((tmp_path / "new" / "theory.json").read_text(encoding="utf-8"))
    assert record["schema"] == 1 and set(record["figures"]) == {"phase", "frontier"}
    assert set(specs) == {"phase-0", "frontier-0"}
    assert "3, 20, 2, 21" in html and "84.1% → 92.0%" in html


def test_the_attack_strength_is_on_a_slider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "STRENGTHS", (0.5, 1.0))
    monkeypatch.setattr(figures, "_INVARIANT", (2, 9))
    monkeypatch.setattr(figures, "_ATTACK_SPURIOUS", (11, 13))
    spec = figures._phase("container").panels[0].chart.to_dict()
    (slider,) = [param for param in spec["params"] if "bind" in param]
    assert slider["bind"]["input"] == "range" and slider["value"] == 0.5
    assert spec["transform"] == [{"filter": "abs(datum.strength - strength) < 0.01"}]


def test_charts_compile_to_svg(tmp_path: Path, two_figures: list[Figure]) -> None:
    paths = figures.write_figures(tmp_path, [two_figures[0], figures._frontier(620)])
    assert [path.name for path in paths] == ["phase.svg", "frontier.svg"]
    assert all(path.read_text(encoding="utf-8").startswith("<svg") for path in paths)
