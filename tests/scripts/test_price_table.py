"""The table of what defenses change before any attack: a column for each model and threat, and errors for other folders."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tamperfuse.cli.summary_table import percent
from tamperfuse.records.results import read_results, write_results
from tamperfuse.records.summary import read_summary


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    return importlib.import_module("price_table")


def cells(text: str, start: str) -> list[str]:
    """The cells of the row that begins so, without its name."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return next(row[1:] for row in rows if row[0] == start)


def test_each_threat_has_its_columns(script: Any, finished_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(finished_run / "results.parquet", other)
    summary = json.loads((finished_run / "summary.json").read_text())
    (other / "summary.json").write_text(json.dumps({**summary, "threat": "builtin:gardening"}))
    page = tmp_path / "page.md"
    page.write_text("<!-- tables: python scripts/price_table.py x -->\nold\n<!-- end of tables -->\nbelow\n")
    script.main([str(finished_run), str(other), str(page)])
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"<!-- tables: python scripts/price_table.py {finished_run} {other} {page} -->")
    assert text.endswith("\nbelow\n") and "\nold\n" not in text
    defenses = read_summary(finished_run).defenses.values()
    executes = [percent(defense.harmful_execution.before_attack) for defense in defenses]
    assert cells(text, "harmful execution")[1:3] == executes == cells(text, "harmful execution")[4:]
    assert cells(text, "measure")[3:] == ["gardening: as shipped", "gardening: `refusal`", "gardening: `sdd`"]
    drops = [percent(defense.benign_answer_drop_vs_shipped) for defense in defenses]
    assert cells(text, "drop of the benign answer rate") == ["", *drops, "", *drops]


def test_seeds_are_listed_in_their_order(script: Any, finished_run: Path, tmp_path: Path) -> None:
    shutil.copy(finished_run / "summary.json", tmp_path)
    rows = [row for row in read_results(finished_run) if row["seed"] == 0]
    second = [{**row, "seed": 1, "value": 0.125} for row in rows if row["metric"] == "harmful_execution"]
    write_results(tmp_path, [*second, *rows])
    before = read_summary(finished_run).defenses["sdd"].harmful_execution.before_attack.value
    assert cells(script.tables([tmp_path]), "… by seed")[2] == f"{before:.1%}, 12.5%"


@pytest.mark.parametrize("arguments", [[], ["page.md"]])
def test_without_a_run_the_usage_is_printed(script: Any, arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="prints the table"):
        script.main(arguments)


def test_other_folders_are_refused_in_a_sentence(script: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"summary\.json"):
        script.main([str(tmp_path)])
