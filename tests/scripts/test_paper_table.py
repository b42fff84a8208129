"""The tables of the paper's experiment from a finished run, and errors for other runs."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tamperfuse.records.results import read_results, write_results
from tamperfuse.records.summary import read_summary

ROOT = Path(__file__).parents[2]
FIRST, SECOND, MOST = "10-shots-b5-3e-5", "10-shots-b5-1e-4", "100-shots-b10-1e-4"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("paper_table")


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A run with the attacks of studies/paper.yaml, whose judge does not grade, and a further judge that does."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(finished_run / "summary.json", folder)
    summary = json.loads((folder / "summary.json").read_text())
    for number, defense in enumerate(summary["defenses"].values()):
        execution = defense["harmful_execution"]
        rates = {FIRST: 0.25, SECOND: 0.5 + 0.25 * number, MOST: 0.75}
        execution["after_attack"] = {
            name: {"value": rate, "low": rate - 0.1, "high": rate + 0.1, "n": 40} for name, rate in rates.items()
        }
    graded = json.loads(json.dumps(summary["defenses"]))
    for defense in graded.values():
        score = {"value": 4.5, "low": 4.0, "high": 5.0, "n": 40}
        after = {FIRST: score, SECOND: {**score, "value": 4.25}, MOST: score}
        defense["mean_score"] = {"before_attack": {**score, "value": 1.0}, "after_attack": after, "after_control": {}}
    summary["judges"] = {"grades": graded}
    (folder / "summary.json").write_text(json.dumps(summary))
    rows = read_results(finished_run)
    write_results(folder, [{**row, "attack": MOST if row["attack"] == "full" else row["attack"]} for row in rows])
    return folder


def cells(text: str, start: str) -> list[list[str]]:
    """The cells of all rows that begin so."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith(start)]


def test_the_strongest_setting_of_each_number_of_shots_is_shown(script: Any, run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- tables: python scripts/paper_table.py x -->\n<!-- end of tables -->\nbelow\n")
    script.main([str(run), str(page)])
    text = page.read_text(encoding="utf-8")
    assert text.startswith("above\n<!-- tables: python scripts/paper_table.py ") and text.endswith("\nbelow\n")
    assert "| executes, judge `builtin` | no attack | 10 shots | 100 shots |" in text
    before = script.percent(read_summary(run).defenses["refusal"].harmful_execution.before_attack)
    builtin, graded, _ = cells(text, "| `refusal` |")
    assert builtin == ["`refusal`", before, "50% (40% to 60%), `b5-1e-4`", "75% (65% to 85%), `b10-1e-4`"]
    assert "| mean score / executes, judge `grades` | no attack | 10 shots | 100 shots |" in text
    assert graded[1:3] == [f"1.00 / {before}", "4.25 / 50% (40% to 60%), `b5-1e-4`"]
    assert cells(text, "| `sdd` |")[0][2] == "75% (65% to 85%), `b5-1e-4`"


def test_capability_is_that_before_and_after_each_kind_of_fine_tuning(script: Any, run: Path) -> None:
    text = script.tables(run)
    tasks = cells(text, "| accuracy |")[0][1:]
    accuracies = [row for row in read_results(run) if row["metric"] == "accuracy"]
    assert tasks == [f"`{task}`" for task in sorted({row["task"] for row in accuracies})]
    labels = [row[0] for row in cells(text.partition("| accuracy |")[2], "| `")]
    each_defense = ["`{}`", "`{}` after `benign`", "`{}` after `" + MOST + "`"]
    assert labels == ["`as shipped`", *(label.format(name) for name in ("refusal", "sdd") for label in each_defense)]
    assert "–" not in text.partition("| accuracy |")[2]


def test_the_names_of_the_published_studies_are_read(script: Any) -> None:
    for name in ("paper", "paper-7b", "paper-8b"):
        text = (ROOT / "studies" / f"{name}.yaml").read_text(encoding="utf-8")
        matches = [script.NAME.fullmatch(line.strip().partition(":")[0]) for line in text.splitlines()]
        shots = [int(match[1]) for match in matches if match]
        assert [shots.count(number) for number in sorted(set(shots))] == [3, 3, 3], name


def test_other_runs_are_an_error(script: Any, finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no attacks named NUMBER-shots-SETTING"):
        script.main([str(finished_run)])
    with pytest.raises(SystemExit, match=r"holds no summary\.json"):
        script.main([str(tmp_path)])
