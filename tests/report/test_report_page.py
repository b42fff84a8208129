"""The page is one offline file that escapes what models say; its figures are right, and lie beside it."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from made_up_run import around, summary

from tamperfuse.records.errors import UserError
from tamperfuse.records.results import AttackCost, Measure, write_results
from tamperfuse.report import html as html_module
from tamperfuse.report.curves import capability_rows, harm_rows
from tamperfuse.report.figures import all_figures, write_figures
from tamperfuse.report.inputs import read_folder
from tamperfuse.report.page import write_report
from tamperfuse.report.tables import measure_cell, table

SCRIPT = re.compile(r"<script([^>]*)>(.*?)</script>", re.S)


def test_hostile_answers_stay_text(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    assert [attributes for attributes, _ in SCRIPT.findall(html)] == [' id="specs" type="application/json"', "", ""]
    markup = SCRIPT.sub("", html)
    assert "<script" not in markup and "<img" not in markup and "<b>" not in markup
    assert "&lt;/script&gt;&lt;script&gt;window.broken=1" in markup
    assert "[U+202E]abc[U+202C] [U+0007] 🍲 {{ 7*7 }}" in markup and "\u202e" not in html


def test_nothing_reaches_the_network(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    markup = SCRIPT.sub("", html)
    assert not re.search(r"\b(?:src|href|action|srcset)=(?!&#34;)", markup) and "@import" not in markup
    assert "url(" not in markup and not re.search(r"https?://(?!evil\.example)", markup)
    specs = SCRIPT.findall(html)[0][1]
    assert "http" not in specs and "</" not in specs
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy and policy[1].startswith("default-src 'none'; script-src 'sha256-") and "unsafe-eval" not in policy[1]


def test_page_says_what_it_must(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    for words in (
        "SDD does not hold: after full-100 the model executes 93%",
        "not resolved",
        "158,240",
        "torch 2.13.0",
    ):
        assert words in html
    for words in ('name="viewport"', "prefers-color-scheme", "model: smollm2-135m", "5 of these 5 executed", "reused"):
        assert words in html
    assert str(page.parent) not in html


def test_figures_lie_beside_the_page(page: Path) -> None:
    record = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert record["schema"] == 1 and record["verdicts"][0]["category"] == "does not hold"
    assert [p["heading"] for p in record["figures"]["harm"]["panels"]] == ["full-100", "lora-10"]
    assert all(p["spec"]["$schema"] for f in record["figures"].values() for p in f["panels"])


def test_rows_of_the_figures(make_run: Callable[..., Path]) -> None:
    run = read_folder(make_run())
    rows = harm_rows(run, "full-100")
    assert [r["step"] for r in rows if r["defense"] == "SDD"] == [0, 1, 2, 4, 8, 16]
    assert [(r["defense"], r["step"]) for r in rows if r["selected"]] == [("undefended", 2), ("SDD", 8)]
    states = [(r["state"], r["capability"]) for r in capability_rows(run) if r["defense"] == "SDD"]
    assert states == [("before", 0.97), ("after full-100", 0.88), ("after lora-10", 0.92), ("after benign task", 0.97)]
    # A second seed: means, the widest band, no selected step.
    run.rows.extend({**row, "seed": 1, "value": 0.0, "low": 0.0} for row in list(run.rows) if row["part"])
    doubled = harm_rows(run, "full-100")
    assert [r["rate"] for r in doubled] == [r["rate"] / 2 for r in rows]
    assert not any(r["selected"] for r in doubled) and {r["low"] for r in doubled} == {0.0}


def test_table_cells(make_run: Callable[..., Path]) -> None:
    told = summary()
    told.defenses["sdd"].attack_cost["full-100"] = AttackCost(steps=16, censored=True, ratio_vs_undefended=16)
    rows = {row.name: row for section in table(read_folder(make_run(told=told))) for row in section.rows}
    assert [cell.text for cell in rows["full-100"].cells] == ["1", "> 16"]
    assert rows["full-100"].cells[1].small == "more than 16 times"
    assert rows["reduction, attacks pooled"].cells[0].text == "\u2013"
    assert [c.text for c in rows["benign task: routing"].cells] == ["\u2013", "not resolved"]
    assert measure_cell(around(0.01, 0.02), "difference").text == "not resolved"  # the interval spans zero
    assert measure_cell(Measure(value=0.5)).small == "" and measure_cell(None).text == "\u2013"
    assert measure_cell(around(-0.25, 0.125), "nats").small == "\u22120.38 to \u22120.12"


def test_a_run_of_the_undefended_model_alone(make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html_module, "_library", lambda: "")
    told = summary().model_copy(update={"defenses": {"refusal": summary().defenses["refusal"]}})
    run = make_run(told=told)
    write_results(run, [])
    html = write_report(run).read_text(encoding="utf-8")
    assert "there is no defense to judge" in html and html.count('class="plot') == 1


def test_pictures(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run()
    paths = write_figures(run, tmp_path / "figures")
    assert [path.name for path in paths] == ["harm.png", "harm.svg", "capability.png", "capability.svg"]
    assert paths[0].read_bytes().startswith(b"\x89PNG") and paths[1].read_text(encoding="utf-8").startswith("<svg")
    assert all(panel.words for figure in all_figures(read_folder(run)) for panel in figure.panels)


@pytest.mark.parametrize("name", ["summary.json", "results.parquet", "study.yaml", "samples.json", "run.json"])
def test_missing_or_damaged_files(make_run: Callable[..., Path], name: str) -> None:
    run = make_run()
    for damage in (lambda path: path.write_bytes(b"\xff{"), Path.unlink):
        damage(run / name)
        with pytest.raises(UserError, match=name):
            write_report(run)
    assert not (run / "report.html").exists() and not (run / "report.json").exists()


def test_wrong_shape_is_named(make_run: Callable[..., Path]) -> None:
    run = make_run()
    (run / "run.json").write_text('{"started": "today"}', encoding="utf-8")
    with pytest.raises(UserError, match=r"run\.json is damaged \(at seconds\)"):
        write_report(run)
