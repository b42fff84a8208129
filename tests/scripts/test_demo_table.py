"""The demo's table from a finished run."""

import importlib
from pathlib import Path

import pytest

from tamperfuse.cli.summary_table import percent
from tamperfuse.records.summary import read_summary


def test_every_measure_stands_in_the_page(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    script = importlib.import_module("demo_table")
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- tables: python scripts/demo_table.py x -->\nold\n<!-- end of tables -->\nbelow\n")
    script.main([str(finished_run), str(page)])
    text = page.read_text(encoding="utf-8")
    assert text.startswith("above\n") and text.endswith("\nbelow\n") and "\nold\n" not in text
    summary = read_summary(finished_run)
    assert "|  | as shipped | `refusal` | `sdd` |" in text
    for defense in summary.defenses.values():
        assert percent(defense.harmful_execution.before_attack) in text
        assert percent(defense.benign_answer_rate_near) in text
        assert script.nats(defense.benign_kl) in text
