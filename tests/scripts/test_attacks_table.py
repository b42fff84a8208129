"""The tables of attacks from a finished run, and errors for unusable input."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from tamperfuse.records.summary import read_summary

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("attacks_table")


def test_every_attack_and_control_has_a_row(script: Any, finished_run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- tables: python scripts/attacks_table.py x -->\nold\n<!-- end of tables -->\nbelow\n")
    script.main([str(finished_run), str(page)])
    text = page.read_text(encoding="utf-8")
    assert text.startswith("above\n<!-- tables: python scripts/attacks_table.py ") and text.endswith("\nbelow\n")
    assert "\nold\n" not in text
    malicious, controls = tables_of(text)
    assert malicious["full"]["steps"] == "3"
    for name, defense in read_summary(finished_run).defenses.items():
        assert any(column.startswith(f"task score of `{name}`") for column in controls["benign"])
        for table, rates in (
            (malicious, defense.harmful_execution.after_attack),
            (controls, defense.harmful_execution.after_control),
        ):
            for attack, measure in rates.items():
                assert table[attack][f"`{name}` executes"] == script.percent(measure)


def tables_of(text: str) -> list[dict[str, dict[str, str]]]:
    """The cells of each table, by the name of the row and the title of the column."""
    tables: list[dict[str, dict[str, str]]] = []
    titles: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells and cells[0].startswith("`"):
            tables[-1][cells[0].strip("`")] = dict(zip(titles, cells, strict=True))
        elif cells and cells[0] in ("malicious attack", "control"):
            titles = cells
            tables.append({})
    return tables


def test_a_folder_that_is_no_run_is_an_error(script: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"holds no summary\.json"):
        script.main([str(tmp_path)])
