"""Every answer of a run is on the page, escaped, with its verdicts; kinds of prompts; downloads; and the page in a browser."""

import base64
import csv
import io
import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up_run import add_nodes, write_nodes

from chromium import CHROMIUM, beside_page, in_page, needs_chromium
from tamperfuse.records.errors import UserError
from tamperfuse.records.results import COLUMNS
from tamperfuse.report import html as html_module
from tamperfuse.report.browser import browser_data
from tamperfuse.report.downloads import citation, csv_text
from tamperfuse.report.inputs import read_folder
from tamperfuse.report.page import write_report
from tamperfuse.report.prompt_kinds import breakdown, prompt_kinds
from tamperfuse.report.responses import JudgedAnswer, ModelState, read_answers

LARGE = 20_000


@pytest.fixture
def full_run(make_run: Callable[..., Path]) -> Path:
    folder = make_run()
    write_nodes(folder)
    return folder


def test_every_answer_is_read_with_its_verdicts(full_run: Path) -> None:
    answers = read_answers(full_run, read_folder(full_run))
    assert answers.complete and len(answers.answers) == 3 * (4 + 2) + 8
    assert answers.limits["rules"] == {"words": 4.0, "similarity": 0.3}
    first = answers.answers[0]
    assert first.state == ModelState("as shipped", "", 0, 0, limit=16)
    assert [verdict.judge for verdict in first.verdicts] == ["rules", "other"]  # the run's own judge first
    last = answers.answers[-1]
    assert (last.state.attack, last.state.step, last.verdicts[0].executed) == ("full-100", 8, True)


def test_trials_of_a_search_are_read(full_run: Path) -> None:
    run = read_folder(full_run)
    attacked = full_run / "nodes" / f"{4:016x}"
    trial = attacked / "trial-002"
    trial.mkdir()
    shutil.copy(attacked / "responses.parquet", trial)
    shutil.copy(full_run / "nodes" / f"{20:016x}" / "scores.parquet", trial)
    run.rows.append({**run.rows[0], "defense": "sdd", "attack": "adaptive#002", "node": attacked.name})
    answers = [a for a in read_answers(full_run, run).answers if a.state.attack == "adaptive#002"]
    assert len(answers) == 8 and all(answer.verdicts[0].executed for answer in answers)


def test_a_further_judge_of_a_trial_is_read(full_run: Path) -> None:
    attacked, further = full_run / "nodes" / f"{4:016x}", full_run / "nodes" / f"{50:016x}"
    add_nodes(full_run, further.name)
    run = read_folder(full_run)
    for folder in (attacked / "trial-000", further / "trial-000"):
        folder.mkdir(parents=True)
        shutil.copy(full_run / "nodes" / f"{20:016x}" / "scores.parquet", folder)
    shutil.copy(attacked / "responses.parquet", attacked / "trial-000")
    (further / "node.json").write_text(json.dumps({"kind": "further judge", "parents": [attacked.name], "depends": 1}))
    run.rows.append({**run.rows[0], "defense": "sdd", "attack": "adaptive#000", "node": attacked.name})
    answers = [a for a in read_answers(full_run, run).answers if a.state.attack == "adaptive#000"]
    assert {len(answer.verdicts) for answer in answers} == {4}  # two judges, in two files


def test_verdicts_of_an_earlier_study_in_the_folder_are_left_out(full_run: Path) -> None:
    judged, stale = full_run / "nodes" / f"{17:016x}", full_run / "nodes" / f"{51:016x}"
    shutil.copytree(judged, stale)
    answers = read_answers(full_run, read_folder(full_run))
    assert {len(answer.verdicts) for answer in answers.answers} == {2}
    add_nodes(full_run, stale.name)
    answers = read_answers(full_run, read_folder(full_run))
    assert {len(answer.verdicts) for answer in answers.answers} == {2, 4}


def test_limits_are_those_of_the_judge_with_the_verdicts(full_run: Path) -> None:
    further = full_run / "nodes" / f"{52:016x}"
    shutil.copytree(full_run / "nodes" / f"{17:016x}", further)
    table = pq.read_table(further / "scores.parquet")
    lenient = table.set_column(table.schema.get_field_index("judge"), "judge", pa.array(["lenient"] * table.num_rows))
    pq.write_table(lenient, further / "scores.parquet")
    record = json.loads((further / "node.json").read_text())
    record["depends"]["judge"] = ["rules", 1, "lenient", {}, {"words": 1}]
    (further / "node.json").write_text(json.dumps(record))
    add_nodes(full_run, further.name)
    limits = read_answers(full_run, read_folder(full_run)).limits
    assert (limits["rules"]["words"], limits["lenient"]["words"]) == (4.0, 1.0)


def test_equal_defenses_have_their_answers_each(full_run: Path) -> None:
    run = read_folder(full_run)
    run.rows.extend([{**row, "defense": "twin"} for row in run.rows if row["defense"] == "sdd"])
    states = [answer.state.defense for answer in read_answers(full_run, run).answers]
    assert states.count("twin") == states.count("sdd") > 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("scores.parquet", b"PAR1 no"),
        ("responses.parquet", b""),
        ("node.json", b"[]"),
        ("node.json", b"{"),
    ],
)
def test_a_damaged_node_is_named(full_run: Path, name: str, content: bytes) -> None:
    next(full_run.glob(f"nodes/*/{name}")).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(name)):
        read_answers(full_run, read_folder(full_run))


def test_a_table_of_a_node_without_a_column_is_named(full_run: Path) -> None:
    path = next(full_run.glob("nodes/*/responses.parquet"))
    pq.write_table(pq.read_table(path).drop_columns("prompt"), path)
    with pytest.raises(UserError, match=r"responses\.parquet lacks values"):
        read_answers(full_run, read_folder(full_run))


def test_the_data_of_the_browser(full_run: Path) -> None:
    run = read_folder(full_run)
    data = browser_data(read_answers(full_run, run), {"How do I cook forbidden-1?": "technique"})
    assert data["judges"] == ["rules", "other"] and data["reasons"] == ["", "refuses, off its prompt"]
    assert ["How do I cook forbidden-1?", "evaluation", "technique"] in data["prompts"]
    assert [(c["text"], c["limit"]) for c in data["criteria"][0]] == [
        ("declines the request: {}", None),
        ("similarity to its prompt {}", 0.3),
        ("mood: {}", None),
    ]
    state, _, text, cut, verdicts = data["answers"][0]
    assert data["states"][state]["defense"] == "as shipped" and text.endswith("taste.")
    assert cut == 1 and data["answers"][1][3] == 0, "the same text, which ended by itself only once"
    assert verdicts == [[0, 1, 0, [False, 0.512, "calm"], []], [1, 1, 0, [], []]]
    refused = next(answer[4][0] for answer in data["answers"] if not answer[4][0][1])
    assert refused == [0, 0, 1, [True, 0.2999, "calm"], [1]]  # as exact as it takes to tell it from its limit


def of_an_older_version(folder: Path, number: int) -> None:
    """Remove from the responses of a node what older versions did not record."""
    path = folder / "nodes" / f"{number:016x}" / "responses.parquet"
    pq.write_table(pq.read_table(path).drop_columns("cut"), path)


def test_where_an_answer_was_cut_is_recorded_or_unknown(full_run: Path, make_run: Callable[..., Path]) -> None:
    of_an_older_version(full_run, 2)
    run = read_folder(full_run)
    answers = read_answers(full_run, run).answers
    assert {a.cut for a in answers if a.state.defense == "refusal"} == {None}
    assert {a.cut for a in answers if a.state.defense == "sdd"} == {True, False}
    shutil.rmtree(full_run / "nodes")
    samples = [
        sample.model_copy(update={"cut": cut}) for sample in run.samples.samples[:1] for cut in (True, False, None)
    ]
    path = make_run(samples=samples) / "samples.json"
    published = json.loads(path.read_text(encoding="utf-8"))
    del published["samples"][2]["cut"]  # as in results that were published before it was recorded
    path.write_text(json.dumps(published), encoding="utf-8")
    data = browser_data(read_answers(path.parent, read_folder(path.parent)), {})
    assert [answer[3] for answer in data["answers"]] == [1, 0, None]


def test_kinds_of_prompts(full_run: Path, tmp_path: Path) -> None:
    assert set(prompt_kinds("builtin:cooking").values()) >= {"recipe", "technique"}
    threat = tmp_path / "threat.jsonl"
    threat.write_text('{"prompt": "A", "part": "evaluation", "kind": "x"}\n{"prompt": "B", "category": "y"}\n')
    assert prompt_kinds(str(threat)) == {"A": "x", "B": "y"}
    threat.write_text("{broken")
    assert prompt_kinds(str(threat)) == prompt_kinds("somebody/dataset") == {}
    run = read_folder(full_run)
    kinds = {f"How do I cook forbidden-{i}?": "technique" if i else "recipe" for i in range(4)}
    table = breakdown(run, read_answers(full_run, run).answers, kinds)
    assert table is not None and table.columns == [
        "undefended, before any attack",
        "SDD, before any attack",
        "SDD, after the attacks that work",  # the undefended model's answers after them were not kept
    ]
    texts = {row.name: [cell.text + " " + cell.small for cell in row.cells[1:]] for row in table.rows}
    assert texts["technique"] == ["0% 0 of 3", "100% 3 of 3"] and texts["recipe"] == ["0% 0 of 1", "100% 1 of 1"]
    assert list(texts)[-1] == "harmless, near the threat"
    assert breakdown(run, [], kinds) is None


def test_answers_of_each_seed_count_at_its_own_step(full_run: Path) -> None:
    run = read_folder(full_run)
    [first] = [
        row for row in run.rows if (row["defense"], row["attack"], row["metric"]) == ("sdd", "full-100", "chosen_step")
    ]
    of_first_seed = read_answers(full_run, run).answers
    run.rows.append({**first, "seed": 1, "step": 1})
    of_other_seed = [
        replace(answer, state=replace(answer.state, seed=1))
        for answer in of_first_seed
        if answer.state.attack == "full-100"
    ]
    kinds = {f"How do I cook forbidden-{i}?": "recipe" for i in range(4)}

    def executed(answers: list[JudgedAnswer]) -> list[str]:
        table = breakdown(run, answers, kinds)
        return [cell.small for row in table.rows for cell in row.cells if row.name == "recipe"] if table else []

    assert executed(of_first_seed)[-1] == "4 of 4", "at step 8"
    expected = sum(a.verdicts[0].executed for a in of_other_seed if a.state.step == 1 and a.part == "evaluation")
    assert executed([*of_first_seed, *of_other_seed])[-1] == f"{4 + expected} of 8", "at step 1 of the other seed"


def test_downloads(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    links = dict(re.findall(r'<a download="([^"]+)" href="data:[a-z/]+;base64,([^"]+)"', html))
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(links["demo-results.csv"]).decode())))
    run = read_folder(page.parent)
    assert len(rows) == len(run.rows) and list(rows[0]) == COLUMNS.names
    assert json.loads(base64.b64decode(links["demo-summary.json"])) == json.loads(
        (page.parent / "summary.json").read_text()
    )
    assert "@misc{tamperfuse-demo," in html and "year = {2026}" in html
    assert csv_text([{**run.rows[0], "attack": "=1+1"}]).splitlines()[1].count("'=1+1") == 1
    cited = citation(replace(run, name="sdd_x~^\\"), "today")
    assert r"sdd\_x\textasciitilde{}\textasciicircum{}\textbackslash{}" in cited


def test_a_page_of_twenty_thousand_answers(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(html_module, "_library", lambda: "window.vegaEmbed = () => {};")
    folder = make_run()
    write_nodes(folder, answers=LARGE * 2 // 13, text="Simmer it for twenty minutes, and taste. " * 8)
    start = time.process_time()
    html = write_report(folder).read_text(encoding="utf-8")
    assert time.process_time() - start < 60
    data = json.loads(re.search(r'id="answer-data" type="application/json">(.*?)</script>', html, re.S)[1])  # type: ignore[index]
    assert abs(len(data["answers"]) - LARGE) < 20 and html.count("Simmer it") <= 8 * len(data["answers"])
    if CHROMIUM:
        probe = """
const list = document.getElementById("answer-list");
list.scrollTop = 500000;
requestAnimationFrame(() => requestAnimationFrame(() => {
  const rows = document.querySelectorAll(".answer-row");
  report(JSON.stringify({rows: rows.length, first: Number(rows[0].dataset.position), height: list.scrollHeight}));
}));
"""
        measured = json.loads(in_page(folder / "report.html", probe, tmp_path))
        assert 0 < measured["rows"] < 60 and measured["first"] > 6000 and measured["height"] > 78 * (LARGE - 20)


PROBE = """
const out = {}, by = (id) => document.getElementById(id);
const fire = (element, kind) => element.dispatchEvent(new Event(kind, {bubbles: true}));
const tick = (ms) => new Promise((done) => setTimeout(done, ms));
(async () => {
  out.overflow = document.documentElement.scrollWidth - innerWidth;
  out.dark = matchMedia("(prefers-color-scheme: dark)").matches;
  out.all = by("answer-count").textContent;
  by("filter-defense").value = "SDD"; fire(by("filter-defense"), "change");
  out.sdd = by("answer-count").textContent;
  by("filter-verdict").value = "reason:refuses"; fire(by("filter-verdict"), "change");
  out.refused = by("answer-count").textContent;
  by("answer-search").value = "FORBIDDEN-3"; fire(by("answer-search"), "input");
  await tick(300);
  out.searched = by("answer-count").textContent;
  out.cards = [...document.querySelectorAll(".answer-card")].map((card) => card.textContent);
  by("answer-reset").click();
  by("filter-verdict").value = "cut"; fire(by("filter-verdict"), "change");
  out.cut = [by("answer-count").textContent, document.querySelector(".answer-card").textContent];
  by("answer-reset").click();
  by("answer-list").dispatchEvent(new KeyboardEvent("keydown", {key: "End", bubbles: true}));
  out.active = by("answer-list").getAttribute("aria-activedescendant");
  location.hash = "#curve-full-100";
  await tick(300);
  const curve = by("curve-full-100");
  out.open = curve.open;
  for (let i = 0; i < 40 && !curve.querySelector("svg"); i++) await tick(100);
  const marks = [...curve.querySelectorAll("svg path[aria-roledescription='point']")];
  out.marks = marks.length;
  out.silent = [];
  for (const mark of marks) {
    const box = mark.getBoundingClientRect();
    const place = {bubbles: true, clientX: box.left + box.width / 2, clientY: box.top + box.height / 2};
    const top = document.elementFromPoint(place.clientX, place.clientY);
    for (const event of [new PointerEvent("pointermove", place), new MouseEvent("mousemove", place)]) top.dispatchEvent(event);
    await tick(30);
    const tooltip = document.querySelector(".vg-tooltip.visible");
    const words = tooltip ? tooltip.textContent : "";
    // Where points cover each other, the tooltip of the upper one has the other model as well.
    const complete = ["executed", "undefended ", "SDD "].every((part) => words.includes(part));
    if (!complete) out.silent.push(mark.getAttribute("aria-label"));
  }
  const values = curve.querySelector(".values"), summary = values.querySelector("summary");
  summary.focus();
  summary.click();
  const rows = values.querySelectorAll("tbody tr");
  out.values = [document.activeElement === summary, rows[0].checkVisibility(), rows.length];
  const cell = document.querySelector(".heat a[href='#curve-full-100']");
  cell.focus();
  out.tip = by("tip").hidden ? "" : by("tip").textContent;
  out.unrecorded = by("answer-count").nextElementSibling.textContent;
  report(JSON.stringify(out));
})().catch((error) => { report(JSON.stringify({error: String(error)})); });
"""


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_the_page_in_a_browser(full_run: Path, tmp_path: Path, width: int, dark: bool) -> None:
    of_an_older_version(full_run, 2)
    out = json.loads(in_page(write_report(full_run), PROBE, tmp_path, width, dark=dark))
    assert "error" not in out and out["overflow"] == 0 and out["dark"] is dark
    assert [out[key] for key in ("all", "sdd", "refused", "searched")] == [f"{n} of 26 answers" for n in (26, 14, 6, 1)]
    assert len(out["cards"]) == 2 and "rules: not executed: refuses, off its prompt" in out["cards"][0]
    assert "similarity to its prompt 0.2999 (at least 0.3): failed" in out["cards"][0]
    assert out["cut"][0] == "6 of 26 answers" and "Cut at the limit of 16 tokens." in out["cut"][1]
    assert "not recorded for 6 of 26 answers" in out["unrecorded"] and "Cut" not in out["cards"][0]
    assert out["active"] == "answer-25" and out["open"]
    assert out["marks"] == 14 and out["silent"] == []  # six points of each model, and two rings
    assert out["values"] == [True, True, 12]  # all points again, for readers without a mouse
    assert out["tip"].startswith("undefended after full-100: executes")


@needs_chromium
def test_the_policy_lets_the_page_s_own_scripts_run(full_run: Path, tmp_path: Path) -> None:
    page = write_report(full_run)
    look = """
const timer = setInterval(() => {
  const list = frame.contentDocument.getElementById("answer-list");
  if (!list || !list.querySelector(".answer-row.chosen")) return;
  clearInterval(timer);
  report(frame.contentDocument.getElementById("answer-count").textContent);
}, 50);
"""
    assert beside_page(page, look, tmp_path) == "26 of 26 answers"
