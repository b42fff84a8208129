"""Every page in Chromium, at phone and desktop width, in light and dark: it fits, and keyboards and screen readers can use it.

The checks are a part of those of axe-core: language, title, headings, names of fields, images and regions, tables, what scrolls
or can be reached by keys, contrast. The page of `compare-chat` is opened without its server, with which another test opens it.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_up_run import write_folder

from chromium import beside_page, needs_chromium
from pairing_stand_ins import WordHashEncoder, pair_options, write_sources
from tamperfuse.commands import compare_chat
from tamperfuse.corpora.threats import PARTS, Threat, ThreatPrompt
from tamperfuse.evaluation.attack_trace import ALL_PARAMETERS, GradientCosines, TracePoint
from tamperfuse.evaluation.diagnosis import Diagnosis
from tamperfuse.evaluation.feature_overlap import FeatureOverlap
from tamperfuse.pairing.pipeline import pair_corpora
from tamperfuse.records.files import write_json
from tamperfuse.records.results import read_results, write_results
from tamperfuse.report import theory_figures
from tamperfuse.report.comparison import write_comparison
from tamperfuse.report.diagnosis import write_diagnosis
from tamperfuse.report.theory import write_theory_page

PAGES = ("one/report.html", "comparison.html", "pairs/audit.html", "theory.html", "diagnosis.html", "chat.html")
LONG = "a_name_in_which_a_line_cannot_be_broken_" * 3

SCRIPT = """
const tick = (ms) => new Promise((done) => setTimeout(done, ms));
const until = async (test) => { for (let i = 0; i < 600 && !test(); i++) await tick(50); };
const load = async (address) => {
  const there = () => frame.contentWindow.location.pathname.endsWith("/" + address);
  frame.src = address;
  await until(() => frame.contentDocument && there() && frame.contentDocument.readyState === "complete");
};
const problems = [], REACHABLE = "a[href], button, input, select, textarea, summary, [tabindex]";

const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true}), colors = new Map();
function channels(color) {  // red, green, blue and alpha of any CSS color, in [0, 255]
  if (!colors.has(color)) {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    colors.set(color, canvas.getImageData(0, 0, 1, 1).data);
  }
  return colors.get(color);
}
function luminance(color) {
  const [red, green, blue] = [...color].map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}
function contrast(element, view) {
  const style = view.getComputedStyle(element);
  let below = element, ground = channels("transparent");
  for (; below && ground[3] < 255; below = below.parentElement) ground = channels(view.getComputedStyle(below).backgroundColor);
  const text = channels(element instanceof view.SVGElement ? style.fill : style.color);
  const [low, high] = [luminance(text), luminance(ground)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}

function check(page, view, width) {
  const all = (selector) => [...page.querySelectorAll(selector)].filter((element) => element.checkVisibility());
  const about = (element) => (element.outerHTML || "").slice(0, 120);
  const require = (words, elements, passes) => {
    for (const element of elements) if (!passes(element)) problems.push([frame.src, width, words, about(element)].join(" · "));
  };
  const unique = (words, elements, name) => {
    const names = elements.map(name);
    require(words, elements, (element) => names.filter((other) => other === name(element)).length === 1);
  };
  const root = page.documentElement, label = (element) => (element.getAttribute("aria-label") || "").trim();
  require("the page scrolls sideways", [root], () => root.scrollWidth <= root.clientWidth);
  require("no language or title", [root], () => root.lang && page.title.trim());
  require("not in the scheme's colors", [page.body], (body) =>
    (luminance(channels(view.getComputedStyle(body).backgroundColor)) < 0.2) === DARK);
  require("not one h1", [root], () => all("h1").length === 1);
  const headings = all("h1, h2, h3, h4"), level = (heading) => Number(heading.tagName[1]);
  require("a level of headings is left out", headings, (heading) => {
    const place = headings.indexOf(heading);
    return heading.textContent.trim() && level(heading) <= (place ? level(headings[place - 1]) + 1 : 1);
  });
  require("an image without a name", all("[role=img]"), label);
  require("something to reach inside an image", all("[role=img]"), (image) => !image.querySelector(REACHABLE));
  require("a field without a name", all("input, select, textarea"), (field) => field.labels.length || label(field));
  require("a link or button without a name", all("a, button"), (one) => one.textContent.trim() || label(one));
  require("a region without a name", all("[role=region]"), label);
  unique("two regions of one name", all("[role=region], nav"), label);
  unique("an id that is used twice", [...page.querySelectorAll("[id]:not(svg *)")], (element) => element.id);
  require("a heading of a table without scope or text", all("th"), (head) => head.scope && head.textContent.trim());
  const cells = width < 640 ? [] : all("td, th");  // on a phone the cells of the audit stand below each other
  require("a cell outside its column", cells, (cell) => view.getComputedStyle(cell).display === "table-cell");
  require("scrolls, but not by keys", all("body *"), (element) => {
    const style = view.getComputedStyle(element), scrolls = (value) => value === "auto" || value === "scroll";
    const moves = (scrolls(style.overflowX) && element.scrollWidth > element.clientWidth) ||
      (scrolls(style.overflowY) && element.scrollHeight > element.clientHeight);
    return !moves || element.matches(REACHABLE) || element.querySelector(REACHABLE);
  });
  require("tells something on hover, but not by keys", all("[data-tip]"), (element) => element.matches(REACHABLE));
  const skipped = "script, style, [aria-hidden=true]:not(svg *), [aria-disabled=true]";
  const texts = all("body *").filter((element) => !element.closest(skipped) &&
    [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
  require("contrast below 4.5", texts, (element) => contrast(element, view) >= 4.5);
}

(async () => {
  for (const address of ADDRESSES) {
    frame.style.width = "390px";
    await load(address);
    const view = frame.contentWindow, page = view.document;
    for (const part of page.querySelectorAll("details")) part.open = true;
    view.dispatchEvent(new Event("beforeprint"));  // draws every figure, wherever it is
    const plots = [...page.querySelectorAll("[id^=plot-]")];
    await until(() => plots.every((plot) => plot.querySelector("svg")));
    check(page, view, 390);
    frame.style.width = "1280px";
    await tick(300);
    check(page, view, 1280);
    if (plots.some((plot) => !plot.querySelector("svg"))) problems.push(address + ": a figure is not drawn");
  }
  report(JSON.stringify(problems));
})().catch((error) => report(JSON.stringify([String(error)])));
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all pages, whose models, threats and attacks have long names."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TAMPERFUSE_CACHE", str(folder / "cache"))
        runs = [rename(write_folder(folder / name)) for name in ("one", f"two_{LONG}")]
        write_comparison(runs, folder / "comparison.html")
        pair_corpora(pair_options(write_sources(folder), folder / "pairs"), WordHashEncoder())
        for name, values in (("STRENGTHS", (0.5, 1.0)), ("_INVARIANT", (2, 9)), ("_ATTACK_SPURIOUS", (11, 13))):
            patch.setattr(theory_figures, name, values)
        write_theory_page(folder, [theory_figures._phase("container"), theory_figures._frontier("container")])
        write_diagnosis_page(folder)
        patch.setattr(compare_chat, "made_by", lambda model: f"sdd on {LONG}")
        parts = {part: (ThreatPrompt("1", f"How do I cook {LONG}?"),) for part in PARTS}
        page = compare_chat.chat_page(["undefended", LONG], Threat(LONG, parts), None, 48)
        (folder / "chat.html").write_text(page, encoding="utf-8")
        yield folder


def rename(run: Path) -> Path:
    """Give the model, the threat and an attack of the made-up run long names."""
    new = {"smollm2-135m": LONG, "builtin:cooking": f"threat_{LONG}", "full-100": f"full_{LONG}"}
    for name in ("summary.json", "samples.json", "run.json", "study.yaml"):
        text = (run / name).read_text(encoding="utf-8")
        for old, long in new.items():
            text = text.replace(old, long)
        (run / name).write_text(text, encoding="utf-8")
    rows = [{**row, "attack": new.get(row["attack"], row["attack"])} for row in read_results(run)]
    write_results(run, rows)
    return run


def write_diagnosis_page(folder: Path) -> None:
    points = [TracePoint(0, -0.3, -1.0, 0.5, 3.6), TracePoint(8, -1.3, -0.7, 0.9, 4.5)]
    cosines = [GradientCosines(step, layer, -0.1, 0.2, 0.3) for step in (0, 8) for layer in (0, 1, ALL_PARAMETERS)]
    overlaps = [FeatureOverlap(layer, 0.5, 0.1) for layer in (0, 1)]
    inputs = {"attack": "harmful_finetune", "threat": LONG, "seed": 0}
    write_json(folder / "measured.json", inputs)
    write_diagnosis(folder, [Diagnosis(name, points, cosines, overlaps, {}, 1.0, 1.0) for name in ("refusal", LONG)])


@needs_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_page_in_a_browser(pages: Path, tmp_path: Path, dark: bool) -> None:
    shutil.copytree(pages, tmp_path, dirs_exist_ok=True)
    script = SCRIPT.replace("ADDRESSES", json.dumps(PAGES)).replace("DARK", json.dumps(dark))
    assert json.loads(beside_page(pages / "comparison.html", script, tmp_path, dark=dark)) == []
