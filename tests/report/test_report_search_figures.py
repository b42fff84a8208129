"""The adaptive attacker on the page: best so far, the frontier, and sentences that claim no more than is resolved."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_up_run import around, rate

from tamperfuse.records.results import Measure
from tamperfuse.records.searches import Climb, Searches, Tried, read_searches, write_searches
from tamperfuse.report.figures import all_figures
from tamperfuse.report.inputs import read_folder
from tamperfuse.report.page import write_report
from tamperfuse.report.search_figures import climb_rows, findings, frontier_rows


def tried(trial: int, hits: int, lost: float, **more: Any) -> Tried:
    setting = {"learning_rate": 1.5e-4, "method": "lora"}
    told = {
        "seed": 0,
        "trial": trial,
        "parameters": setting,
        "stopped": False,
        "step": 4,
        "dev": hits / 160,
        "lost": lost,
    }
    return Tried(**told | {"evaluation": rate(hits)} | more)


def climb(
    defense: str, hits: list[int], ceiling: Measure, slower: Measure, half: int, *, censored: bool = False
) -> Climb:
    points = [tried(k, best, 0.02 * k) for k, best in enumerate(hits)]
    return Climb(
        defense=defense,
        attack="adaptive",
        trials=len(hits),
        best_so_far=[rate(best) for best in hits],
        ceiling_vs_undefended=ceiling,
        climb_vs_undefended=slower,
        half=half,
        censored=censored,
        tried=points,
        frontier=points[::2],
    )


NONE = around(0.0, 0.0, resolved=False)
UNDEFENDED = climb("refusal", [80, 155, 155], NONE, NONE, 1)


@pytest.mark.parametrize(
    ("defended", "words"),
    [
        (
            climb("sdd", [2, 70, 150], around(0.03, 0.05, resolved=False), around(0.35, 0.1), 3),
            "executes 94% (undefended: 97%); a lower ceiling is not resolved (95% interval of the difference: −2% to 8%); over "
            "the search its best so far is lower by 35 points (95% interval of the difference: 25% to 45%). Half of the "
            "undefended model's best took 3 trials (undefended: 1 trial).",
        ),
        (
            climb("sdd", [2, 3, 4], around(0.94, 0.03), around(0.8, 0.05), 3, censored=True),
            "the ceiling is lower by 94 points (95% interval of the difference: 91% to 97%); over the search its best so far is "
            "lower by 80 points (95% interval of the difference: 75% to 85%). Half of the undefended model's best took more than "
            "3 trials",
        ),
        (
            climb("sdd", [90, 155, 158], around(-0.02, 0.01), around(-0.01, 0.03, resolved=False), 1),
            "the ceiling is higher by 2 points (95% interval of the difference: −3% to −1%); a slower climb is not resolved",
        ),
    ],
)
def test_the_finding_claims_what_is_resolved(make_run: Callable[..., Path], defended: Climb, words: str) -> None:
    folder = make_run()
    write_searches(folder, Searches(searches=[UNDEFENDED, defended]))
    [said] = findings(read_folder(folder))
    assert said.startswith("SDD under adaptive, 3 trials: the attacker's best executes ") and words in said


def test_the_figure_has_every_trial_of_every_defense(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    assert "search" not in [figure.name for figure in all_figures(read_folder(folder))]
    defended = climb("sdd", [2, 70, 150], around(0.03, 0.05, resolved=False), around(0.35, 0.1), 3)
    write_searches(folder, Searches(searches=[UNDEFENDED, defended]))
    run = read_folder(folder)
    rows = climb_rows(run, "adaptive")
    assert [(r["defense"], r["trial"], r["rate"]) for r in rows] == [
        (name, number, hits / 160)
        for name, many in (("undefended", (80, 155, 155)), ("SDD", (2, 70, 150)))
        for number, hits in enumerate(many, 1)
    ]
    points = frontier_rows(run, "adaptive")
    assert [p["trial"] for p in points if p["defense"] == "SDD" and p["kind"] == "frontier"] == [1, 3]
    assert {p["setting"] for p in points} == {"learning_rate 0.00015, method lora"}
    page = write_report(folder)
    assert "a lower ceiling is not resolved" in page.read_text(encoding="utf-8")
    panels = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))["figures"]["search"]["panels"]
    assert [panel["heading"] for panel in panels] == ["adaptive: best so far", "adaptive: frontier"]


def test_a_run_without_searches_leaves_no_file(tmp_path: Path) -> None:
    write_searches(tmp_path, Searches(searches=[UNDEFENDED]))
    assert read_searches(tmp_path).searches == [UNDEFENDED]
    write_searches(tmp_path, Searches())
    assert not list(tmp_path.iterdir()) and read_searches(tmp_path).searches == []
