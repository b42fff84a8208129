"""The tables of an adaptive attacker from a finished run: one row for each search, one for each trial against a defense."""

import importlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from tamperfuse.records.searches import read_searches

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "studies" / "results" / "search"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("search_table")


def rows(text: str, head: str) -> list[list[str]]:
    """The cells of the rows of the table whose head begins with these cells."""
    block = text.partition(f"| {head} |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines()[2:]]


def test_every_search_and_every_trial_against_a_defense_has_a_row(script: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- tables: python scripts/search_table.py x -->\n<!-- end of tables -->\n")
    script.main([str(RESULTS), str(page)])
    text = page.read_text(encoding="utf-8")
    sdd = read_searches(RESULTS).searches[1]
    assert [row[:2] for row in rows(text, "attack | model")] == [["`adaptive`", "`refusal`"], ["`adaptive`", "`sdd`"]]
    assert rows(text, "attack | model")[1][5] == script.brief(sdd.best_so_far[-1])
    trials = rows(text, "model | seed")
    assert [row[:3] for row in trials] == [["`sdd`", "0", str(k + 1)] for k in range(len(sdd.choices))]
    assert [row[5] for row in trials] == [script.brief(choice.evaluation) for choice in sdd.choices]


def test_a_search_that_did_not_reach_half_has_a_lower_bound_and_a_trial_that_ended_early_is_marked(script: Any) -> None:
    search = read_searches(RESULTS).searches[1]
    censored = search.model_copy(update={"censored": True, "trials_to_half": 5})
    summary = script.read_summary(RESULTS)
    assert "| > 5 |" in script.search_table(summary, [censored])[2]
    stopped = search.model_copy(update={"choices": [search.choices[0].model_copy(update={"stopped": True})]})
    assert "(ended early)" in script.trial_table([stopped])[2] and "(ended early)" not in "".join(
        script.trial_table([search])[2:3]
    )


def test_a_run_without_a_search_is_refused(script: Any, tmp_path: Path) -> None:
    for name in ("summary.json", "results.parquet"):
        shutil.copy(RESULTS / name, tmp_path)
    with pytest.raises(SystemExit, match="no results of a search"):
        script.main([str(tmp_path)])
