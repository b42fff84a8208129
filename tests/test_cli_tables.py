"""Tables of results that the commands print."""

import json
from pathlib import Path

import pytest
from rich.table import Table

from command_stand_ins import fails, output
from tamperfuse.cli.options import print_table
from tamperfuse.cli.summary_table import percent, summary_rows
from tamperfuse.records.summary import read_summary

ROOT = Path(__file__).parents[1]


def test_the_table_of_a_study_has_a_cell_for_every_model(finished_run: Path) -> None:
    summary = read_summary(finished_run)
    rows = dict(summary_rows(summary))
    assert {len(cells) for cells in rows.values()} == {1 + len(summary.defenses)}
    assert rows["benign answer rate"][0] == percent(summary.as_shipped.benign_answer_rate)
    assert rows["harmful execution before"][1:] == [
        percent(defense.harmful_execution.before_attack) for defense in summary.defenses.values()
    ]
    assert {"  after full", "  after benign, without an attacker", "  steps to reach half (full)"} <= rows.keys()


def test_the_table_of_a_study_has_each_models_own_measures() -> None:
    summary = read_summary(ROOT / "studies" / "results" / "demo")
    rows = dict(summary_rows(summary))
    for column, defense in enumerate(summary.defenses.values(), 1):
        harm = defense.harmful_execution
        expected = {
            "harmful execution before": harm.before_attack,
            **{f"  after {attack}": measure for attack, measure in harm.after_attack.items()},
            **{f"  after {control}, without an attacker": measure for control, measure in harm.after_control.items()},
            "reduction, pooled": defense.reduction_vs_undefended.pooled,
            "capability before": defense.capability.before_attack,
            "  self-degradation": defense.capability.self_degradation,
            "benign answer rate": defense.benign_answer_rate,
        }
        assert {label: rows[label][column] for label in expected} == {
            label: percent(m) for label, m in expected.items()
        }
    refusal, sdd = summary.defenses.values()
    assert refusal.harmful_execution.before_attack != sdd.harmful_execution.before_attack


def test_tables_as_json(quick_judging: None, finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = json.loads(output(["list", "--json"], capsys))
    assert {"sdd", "refusal"} <= {defense["name"] for defense in listed["defenses"]}
    study = str(finished_run / "study.yaml")
    summary = json.loads(output(["run", study, "--out", str(finished_run), "--json"], capsys))
    assert summary == json.loads((finished_run / "summary.json").read_text())
    policy = finished_run.parent / "policy.yaml"
    policy.write_text(
        "{defense: sdd, require: {harmful_execution.worst: {at_most: 0.0}, capability.before_attack: {at_least: 9.0}}}"
    )
    checked = json.loads(output(["gate", str(finished_run), "--policy", str(policy), "--json"], capsys, code=1))
    assert checked["passed"] is False and checked["checks"][0]["measure"] == "harmful_execution.worst"


def test_brackets_in_names_are_no_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "[/red]" in fails(["report", str(tmp_path / "[/red]")], capsys)
    monkeypatch.setattr("tamperfuse.report.page.write_report", lambda folder: folder / "report.html")
    monkeypatch.setattr("tamperfuse.report.page.headline", lambda folder: "[/red] :smile: holds")
    assert "[/red] :smile: holds" in output(["report", str(tmp_path)], capsys)


@pytest.mark.parametrize("columns", ["", "80"])
def test_a_table_in_a_file_is_as_wide_as_it_needs_to_be(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    table = Table("measure", *(f"defense {i}" for i in range(8)))
    table.add_row("executes", *(f"{i}5.0% ({i}0.0% to {i}9.0%)" for i in range(8)))
    print_table(table)
    text = capsys.readouterr().out
    assert ("75.0% (70.0% to 79.0%)" in text) == (columns == "")
