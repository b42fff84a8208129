"""The page is one offline file that escapes what models say; its figures are right, and lie beside it."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_run import around, cost, result_rows, summary
from markupsafe import Markup

import tamperfuse
from tamperfuse.records.errors import UserError
from tamperfuse.records.pages import page_environment
from tamperfuse.records.results import COLUMNS, read_results, write_results
from tamperfuse.records.summary import AttackCost, Measure, UsableHarm, read_summary
from tamperfuse.report import html as html_module
from tamperfuse.report.curves import capability_rows, harm_rows
from tamperfuse.report.figures import all_figures, legend
from tamperfuse.report.inputs import read_folder
from tamperfuse.report.page import write_report
from tamperfuse.report.tables import measure_cell, table

SCRIPT = re.compile(r"<script([^>]*)>(.*?)</script>", re.S)


def test_hostile_answers_stay_text(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    json_only = ' type="application/json"'
    expected = [f' id="answer-data"{json_only}', f' id="specs"{json_only}', "", "", "", ""]
    assert [attributes for attributes, _ in SCRIPT.findall(html)] == expected
    markup = SCRIPT.sub("", html)
    assert "<script" not in markup and "<img" not in markup and "<b>" not in markup and "evil.example" not in markup
    answers = SCRIPT.findall(html)[0][1]
    assert "<" not in answers and "\\u003c/script\\u003e\\u003cscript\\u003ewindow.broken=1" in answers
    texts = [answer[2] for answer in json.loads(answers)["answers"]]
    assert any("[U+202E]abc[U+202C] [U+0007] 🍲 {{ 7*7 }}" in text for text in texts) and "\u202e" not in html


def test_a_model_s_name_cannot_reorder_the_page() -> None:
    template = page_environment("tamperfuse.report").from_string("<i>{{ name }}</i>{{ markup }}")
    assert template.render(name="a\u202eb<", markup=Markup("<b>")) == "<i>a[U+202E]b&lt;</i><b>"


def test_nothing_reaches_the_network(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    markup = SCRIPT.sub("", html)
    assert not re.search(r"\b(?:src|action|srcset)=(?!&#34;)", markup) and "@import" not in markup
    assert not re.search(r'\bhref="(?!#|data:(?:text/csv|application/json);base64,)', markup)
    assert "url(" not in markup and not re.search(r"https?://(?!evil\.example)", markup)
    specs = SCRIPT.findall(html)[1][1]
    assert "http" not in specs and "</" not in specs
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy and policy[1].startswith("default-src 'none'; script-src 'sha256-") and "unsafe-eval" not in policy[1]


def test_the_page_has_its_contents(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    for words in (
        "SDD does not hold: after full-100 the model executes 93%",
        "It answers 92.2% of harmless prompts (as shipped: 97.7%)",
        "at least: capability was not measured at a more harmful step",
        "Harmful execution after controls, without an attacker",
        "not resolved",
        "158,240",
        "torch 2.13.0",
    ):
        assert words in html
    for words in (
        'name="viewport"',
        "prefers-color-scheme",
        "model: smollm2-135m",
        "a few answers of each model",
        "reused",
    ):
        assert words in html
    assert str(page.parent) not in html


def test_figures_lie_beside_the_page(page: Path) -> None:
    record = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert record["schema"] == 2 and record["headlines"][0]["category"] == "does not hold"
    assert [p["heading"] for p in record["figures"]["harm"]["panels"]] == ["full-100", "lora-10"]
    assert all(p["spec"]["$schema"] for f in record["figures"].values() for p in f["panels"])


def test_rows_of_the_figures(make_run: Callable[..., Path]) -> None:
    run = read_folder(make_run())
    rows = harm_rows(run, "full-100")
    assert [r["step"] for r in rows if r["defense"] == "SDD"] == [0, 1, 2, 4, 8, 16]
    assert [(r["defense"], r["step"]) for r in rows if r["selected"]] == [("undefended", 2), ("SDD", 8)]
    assert {r["all_models"] for r in rows if r["step"] == 2} == {"undefended 100%, SDD 33.1%"}
    states = [(r["state"], r["capability"]) for r in capability_rows(run) if r["defense"] == "SDD"]
    assert states == [("before", 0.97), ("after full-100", 0.88), ("after lora-10", 0.92), ("after benign", 0.97)]
    # A second seed whose attacker stops elsewhere: means, the widest band, no selected step.
    second = [{**row, "seed": 1, "value": 0.0, "low": 0.0} for row in run.rows if row["part"]]
    moved = [{**row, "step": 1} if row["metric"] == "chosen_step" else row for row in second]
    doubled = harm_rows(replace(run, rows=[*run.rows, *moved]), "full-100")
    assert [r["rate"] for r in doubled] == [r["rate"] / 2 for r in rows]
    assert not any(r["selected"] for r in doubled) and {r["low"] for r in doubled} == {0.0}


def test_table_cells(make_run: Callable[..., Path]) -> None:
    measured = summary()
    costs = measured.defenses["sdd"].attack_cost
    costs["full-100"] = AttackCost(steps=16, censored=True, last_point=False, ratio_vs_undefended=16)
    costs["lora-10"] = AttackCost(steps=16, censored=False, last_point=True, ratio_vs_undefended=8)
    rows = {row.name: row for section in table(read_folder(make_run(measured=measured))) for row in section.rows}
    assert [cell.text for cell in rows["full-100"].cells] == ["1", "> 16"]
    assert rows["full-100"].cells[1].small == "not reached, more than 16 times"
    assert rows["lora-10"].cells[1].small == "at the last evaluated step, 8 times"
    assert rows["all attacks pooled"].cells[0].text == "\u2013"
    assert [c.text for c in rows["routing: gap in score vs undefended"].cells] == ["\u2013", "not resolved"]
    assert rows["before any attack"].shipped.text == "93.8%" and rows["answer rate"].shipped.text == "97.7%"
    usable = rows["at least 95% of the capability"].cells
    assert usable[1].text == "33.1%" and "capability was not measured" in usable[1].small
    assert "capability" not in usable[0].small
    assert measure_cell(around(0.01, 0.02), "difference").text == "not resolved"  # the interval spans zero
    assert measure_cell(Measure(value=0.5)).small == "" and measure_cell(None).text == "\u2013"
    assert measure_cell(around(-0.25, 0.125), "nats").small == "\u22120.38 to \u22120.12"
    costs |= {"full-100": cost(16, 8), "lora-10": cost(16, 16, censored=True)}
    rows = {row.name: row for section in table(read_folder(make_run(measured=measured))) for row in section.rows}
    assert rows["full-100"].cells[1].small == "8 times (4 to 16)"
    assert rows["lora-10"].cells[1].small == "not reached, more than 16 times (16 or more)"
    costs["lora-10"] = AttackCost(steps=4, censored=False, last_point=False, ratio_vs_undefended=None)
    rows = {row.name: row for section in table(read_folder(make_run(measured=measured))) for row in section.rows}
    assert [cell.small for cell in rows["lora-10"].cells] == ["", "no ratio"]


def test_each_seed_is_printed(make_run: Callable[..., Path]) -> None:
    run = read_folder(make_run())
    assert "seeds" not in "".join(cell.small for section in table(run) for row in section.rows for cell in row.cells)
    of_seed = [
        {**row, "seed": 1, "value": 0.25 if row["metric"] == "harmful_execution" else row["value"]} for row in run.rows
    ]
    several = replace(run, rows=[*run.rows, *of_seed], summary=run.summary.model_copy(update={"seeds": [0, 1]}))
    [after] = [section for section in table(several) if section.title.endswith("malicious attacks that count")]
    rows = {row.name: row.cells for row in after.rows}
    assert [cell.small.partition("seeds ")[2] for cell in rows["after lora-10"]] == ["93.8%, 25%", "88.8%, 25%"]


def test_groups_of_attacks_stand_apart(make_run: Callable[..., Path]) -> None:
    measured = summary()
    for defense in measured.defenses.values():
        defense.attack_cost["lora-10"] = None
        defense.reduction_vs_undefended.attacks_that_count.remove("lora-10")
        defense.reduction_vs_undefended.too_weak.append("lora-10")
    sections = {section.title: section.rows for section in table(read_folder(make_run(measured=measured)))}
    rows = {title: [(row.name, row.note) for row in rows] for title, rows in sections.items()}
    assert rows["Harmful execution after malicious attacks that count"] == [("after full-100", "")]
    assert rows["Harmful execution after attacks too weak to count: below 80% on the undefended model"] == [
        ("after lora-10", "trains no steps")
    ]
    assert rows["Harmful execution after controls, without an attacker"] == [("after benign", "")]
    assert rows["Attack cost: steps to half of the undefended model's highest rate"] == [
        ("full-100", ""),
        ("no cost", "train no steps: lora-10"),
    ]


def test_a_run_of_the_undefended_model_alone(make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html_module, "_library", lambda: "")
    measured = summary().model_copy(update={"defenses": {"refusal": summary().defenses["refusal"]}})
    run = make_run(measured=measured)
    write_results(run, [row for row in result_rows() if row["defense"] == "refusal"])
    html = write_report(run).read_text(encoding="utf-8")
    assert "there is no defense to evaluate" in html and html.count('class="plot') == 3


def test_results_of_another_run_are_noticed(make_run: Callable[..., Path]) -> None:
    run = make_run()
    for missing, words in (
        ({"seed": 0}, "refusal before any attack, seed 0"),
        ({"defense": "sdd", "attack": "lora-10"}, "sdd after lora-10, seed 0"),
    ):
        rows = [row for row in result_rows() if any(row[name] != value for name, value in missing.items())]
        write_results(run, rows)
        with pytest.raises(UserError, match=f"beside it has: {words}. They are not of one run"):
            read_folder(run)


def test_every_model_has_its_own_shape_and_color(make_run: Callable[..., Path]) -> None:
    one = summary().defenses["sdd"]
    measured = summary().model_copy(update={"defenses": {f"sdd-{i}": one for i in range(20)}})
    shown = [(item["color"], item["glyph"]) for item in legend(read_folder(make_run(measured=measured)))]
    assert len(set(shown)) == 20


def test_every_panel_has_a_text_alternative(make_run: Callable[..., Path]) -> None:
    figures = all_figures(read_folder(make_run()))
    assert figures and all(panel.alt_text for figure in figures for panel in figure.panels)


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


def test_a_summary_of_another_schema_is_refused(make_run: Callable[..., Path]) -> None:
    path = make_run() / "summary.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, "schema": 1}), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"summary\.json has schema 1, and this version reads schema 2: run the study again"
    ):
        write_report(path.parent)


def test_a_summary_is_read_as_it_was_written(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    assert read_summary(folder) == summary()
    harm = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["defenses"]["sdd"]["usable_harm"]
    assert harm["0.05"]["capability_not_measured"] is True and "capability_not_measured" not in harm["0.10"]
    assert isinstance(read_summary(folder).defenses["sdd"].usable_harm["0.05"], UsableHarm)


def test_results_as_a_data_frame(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    loaded = tamperfuse.load_run(folder)
    frame = loaded.to_pandas()
    assert list(frame.columns) == COLUMNS.names and len(frame) == len(read_results(folder))
    chosen = frame[(frame.metric == "chosen_step") & (frame.defense == "sdd")]
    assert dict(zip(chosen.attack, chosen.value, strict=True)) == {"full-100": 8, "lora-10": 16}
    assert loaded.summary == summary()
