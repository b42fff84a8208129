"""How long a browser takes to open the report of a run with 20,000 answers.

    python benchmarks/report_opening.py            20,000 answers and 200, each page opened 5 times
    python benchmarks/report_opening.py --quick    2,000 answers and 200, each page opened once

The run is the one that the tests make up; its answers are as long as those of a study, about 330 characters. Each time a new
headless Chromium opens the page, without a cache, from a server on this machine, so the times include the transfer. They count
from the start of the navigation, in seconds, as medians:

    paint     the first text or picture is on the screen (first contentful paint)
    usable    the document is parsed and its scripts have run (DOMContentLoaded); the first screen can be read and used
    list      rows of the list of answers are on the screen, wherever the reader has scrolled to
    filter    from the choice of a filter until its rows are on the screen

"ours" is `list` of the larger page, "rival" that of the smaller one. The last line is JSON.
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "report")]

from made_up_run import write_folder, write_nodes  # noqa: E402

from chromium import CHROMIUM, reported  # noqa: E402
from tamperfuse.report.page import write_report  # noqa: E402

TEXT = "Simmer it for twenty minutes, and taste. " * 8
STATES = 13 / 2  # answers of the made-up run for each prompt
PARTS = ("paint", "usable", "list", "filter")
PROBE = """
const times = {}, shown = (then) => requestAnimationFrame(() => requestAnimationFrame(then));
function look() {
  if (!document.querySelector(".answer-row")) { requestAnimationFrame(look); return; }
  shown(() => { times.list = performance.now(); setTimeout(choose, 1000); });
}
function choose() {
  times.usable = performance.getEntriesByType("navigation")[0].domContentLoadedEventEnd;
  times.paint = performance.getEntriesByName("first-contentful-paint")[0].startTime;
  const select = document.getElementById("filter-defense"), start = performance.now();
  select.value = "SDD";
  select.dispatchEvent(new Event("change", {bubbles: true}));
  shown(() => {
    times.filter = performance.now() - start;
    times.count = document.getElementById("answer-count").textContent;
    fetch("/result", {method: "POST", body: JSON.stringify(times)});
  });
}
requestAnimationFrame(look);
"""


def write_page(folder: Path, answers: int) -> Path:
    """The report of a made-up run with about this many answers."""
    run = write_folder(folder / "run")
    write_nodes(run, answers=round(answers / STATES), text=TEXT)
    return write_report(run)


def open_page(page: Path) -> dict[str, float]:
    """Open a page in a new browser; returns the times in seconds, by part."""
    html = page.read_text(encoding="utf-8")
    # The page's policy forbids foreign scripts and requests.
    html = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", f"<script>{PROBE}</script>", html, count=1)
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "probed.html").write_text(html, encoding="utf-8")
        times = json.loads(reported("probed.html", Path(place)))
    assert times.pop("count").startswith(tuple("123456789")), "the filter shows no answers"
    return {part: times[part] / 1000 for part in PARTS}


def medians(page: Path, rounds: int, name: str) -> dict[str, float]:
    """The medians over the rounds, by part, which are printed."""
    times = [open_page(page) for _ in range(rounds)]
    median = {part: round(statistics.median(one[part] for one in times), 3) for part in PARTS}
    size = page.stat().st_size / 1e6
    print(
        f"{name}, {size:.1f} MB: " + ", ".join(f"{part} {seconds:.3f} s" for part, seconds in median.items()),
        flush=True,
    )
    return median


def main() -> None:
    """Measure both pages and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer answers, each page opened once")
    quick = parser.parse_args().quick
    if CHROMIUM is None:
        sys.exit("There is no Chromium here: install the package chromium.")
    answers, rounds = (2_000, 1) if quick else (20_000, 5)
    with tempfile.TemporaryDirectory() as place:
        pages = {count: write_page(Path(place) / str(count), count) for count in (answers, 200)}
        large, small = (medians(page, rounds, f"{count:,} answers") for count, page in pages.items())
        megabytes = round(pages[answers].stat().st_size / 1e6, 1)
    print(
        json.dumps(
            {
                "benchmark": "report_opening",
                "ours": large["list"],
                "rival": small["list"],
                "unit": "s from navigation until the answers are listed",
                "ratio": round(large["list"] / small["list"], 2),
                **{part: large[part] for part in PARTS},
                "answers": answers,
                "megabytes": megabytes,
                "rounds": rounds,
            }
        )
    )


if __name__ == "__main__":
    main()
