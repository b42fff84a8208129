"""The training with simulated attackers on the page: read from the run's nodes, and shown where there is such a training."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tamperfuse.records.errors import UserError
from tamperfuse.records.results import read_results, write_results
from tamperfuse.report import html as html_module
from tamperfuse.report.inputs import read_folder
from tamperfuse.report.page import write_report
from tamperfuse.report.trap_figures import trap_rows

MEASURED, TRAINED = "a" * 16, "b" * 16
CHECKS = [
    {"step": 0, "price": 0.0, "scale": 0.5, "harmful_nll": 2.0, "benign_nll": 1.0},
    {"step": 5, "price": 0.02, "scale": 0.3, "harmful_nll": 2.5, "benign_nll": 1.1, "attacker_steps": 5}
    | {"attacker_rate": 3e-5, "attacker_retains": 1.0, "attacked_harmful_nll": 6.0, "attacked_benign_nll": 4.0},
]
STUDY = "defenses:\n  refusal: {}\n  sdd: {defense: fuse, strength: 0.5, price: 0.1}\n"


def write_node(folder: Path, key: str, record: object) -> None:
    node = folder / "nodes" / key
    node.mkdir(parents=True, exist_ok=True)
    (node / "node.json").write_text(json.dumps(record), encoding="utf-8")


def with_trap(folder: Path, trap: object = CHECKS) -> Path:
    """The made-up run, whose defense "sdd" was trained with simulated attackers."""
    rows = read_results(folder)
    for row in rows:
        if (row["defense"], row["attack"]) == ("sdd", ""):
            row["node"] = MEASURED
    write_results(folder, rows)
    write_node(folder, MEASURED, {"kind": "measure", "parents": [TRAINED]})
    write_node(folder, TRAINED, {"kind": "defense", "parents": [], "facts": {"trap": trap}})
    (folder / "study.yaml").write_text(STUDY, encoding="utf-8")
    return folder


def test_losses_and_price_of_each_check_are_drawn(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html_module, "_library", lambda: "")
    folder = make_run()
    assert read_folder(folder).traps == []
    run = read_folder(with_trap(folder))
    rows = trap_rows(run)
    harmful, benign, price = rows.values()
    assert [(r["step"], r["line"], r["value"]) for r in harmful] == [
        (0, "at θ", 2.0),
        (5, "at θ", 2.5),
        (5, "at θ + δ", 6.0),
    ]
    assert (harmful[-1]["attacker"], harmful[-1]["steps"]) == ("retaining at 3e-05", "5")
    assert harmful[0]["defense"] == "SDD" and not harmful[0]["attacker"]
    assert [r["value"] for r in benign] == [1.0, 1.1, 4.0]
    assert [r["value"] for r in price] == [0.0, 0.05, 0.02, 0.05], "allowed: strength × price"
    page = write_report(folder)
    assert '<a href="#trap">Training</a>' in page.read_text(encoding="utf-8")
    panels = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))["figures"]["trap"]["panels"]
    assert [panel["heading"] for panel in panels] == list(rows)
    assert "SDD, seed 0, at θ + δ (retaining at 3e-05): 6.00" in panels[0]["alt_text"]


def test_a_study_file_without_a_price_leaves_the_allowed_one_out(make_run: Callable[..., Path]) -> None:
    folder = with_trap(make_run())
    for text in ("a: [", "defenses: {sdd: {strength: much}}", "[]"):
        (folder / "study.yaml").write_text(text, encoding="utf-8")
        *_, price = trap_rows(read_folder(folder)).values()
        assert {row["line"] for row in price} == {"price"}


@pytest.mark.parametrize("trap", [None, "x", [1, {"price": 1.0}], [{"step": "five"}], {"step": 1}])
def test_facts_that_are_no_log_are_not_drawn(make_run: Callable[..., Path], trap: object) -> None:
    assert read_folder(with_trap(make_run(), trap)).traps == []


def test_a_damaged_record_is_a_user_error(make_run: Callable[..., Path]) -> None:
    folder = with_trap(make_run())
    (folder / "nodes" / TRAINED / "node.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"node\.json"):
        read_folder(folder)
