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
    malicious, controls = text.split("| control |")
    summary = read_summary(finished_run)
    for name, defense in summary.defenses.items():
        assert f"`{name}` executes" in malicious and f"task score of `{name}`" in controls
        for attack, measure in defense.harmful_execution.after_attack.items():
            row = next(line for line in malicious.splitlines() if line.startswith(f"| `{attack}` |"))
            assert script.percent(measure) in row
        for attack, measure in defense.harmful_execution.after_control.items():
            row = next(line for line in controls.splitlines() if line.startswith(f"| `{attack}` |"))
            assert script.percent(measure) in row


def test_a_folder_that_is_no_run_is_an_error(script: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"holds no summary\.json"):
        script.main([str(tmp_path)])
