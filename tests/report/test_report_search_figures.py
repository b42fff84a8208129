"""Adaptive attackers on the page: best so far, the frontier, and sentences that state only what is resolved."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from made_up_run import around, rate

from tamperfuse.records.searches import Searches, SearchResult, TrialResult, read_searches, write_searches
from tamperfuse.records.summary import Measure
from tamperfuse.report.figures import all_figures
from tamperfuse.report.inputs import read_folder
from tamperfuse.report.page import write_report
from tamperfuse.report.search_figures import best_so_far_rows, frontier_rows, search_sentences


def trial_result(trial: int, hits: int, lost: float) -> TrialResult:
    return TrialResult(
        seed=0,
        trial=trial,
        parameters={"learning_rate": 1.5e-4, "method": "lora"},
        stopped=False,
        step=4,
        attacker_dev=hits / 160,
        evaluation=rate(hits),
        capability_lost=lost,
    )


def search(
    defense: str, hits: list[int], final: Measure, slower: Measure, half: int, *, censored: bool = False
) -> SearchResult:
    points = [trial_result(k, best, 0.02 * k) for k, best in enumerate(hits)]
    return SearchResult(
        defense=defense,
        attack="adaptive",
        trials=len(hits),
        best_so_far=[rate(best) for best in hits],
        final_best_vs_undefended=final,
        best_so_far_vs_undefended=slower,
        trials_to_half=half,
        censored=censored,
        choices=points,
        frontier=points[::2],
    )


NONE = around(0.0, 0.0, resolved=False)
UNDEFENDED = search("refusal", [80, 155, 155], NONE, NONE, 1)


@pytest.mark.parametrize(
    ("defended", "sentence"),
    [
        (
            search("sdd", [2, 70, 150], around(0.03, 0.05, resolved=False), around(0.35, 0.1), 3),
            "executes 94% (undefended: 97%); a lower final rate is not resolved (95% interval of the difference: −2% to 8%); "
            "over the search the best so far is lower by 35 points (95% interval: 25% to 45%). Half of the "
            "undefended model's final rate took 3 trials (undefended: 1 trial).",
        ),
        (
            search("sdd", [2, 3, 4], around(0.94, 0.03), around(0.8, 0.05), 3, censored=True),
            "the final rate is lower by 94 points (95% interval: 91% to 97%); over the search the best so far "
            "is lower by 80 points (95% interval: 75% to 85%). Half of the undefended model's final rate took "
            "more than 3 trials",
        ),
        (
            search("sdd", [90, 155, 158], around(-0.02, 0.01), around(-0.01, 0.03, resolved=False), 1),
            "the final rate is higher by 2 points (95% interval: 1% to 3%); a slower search is not resolved",
        ),
    ],
)
def test_sentences_state_only_what_is_resolved(
    make_run: Callable[..., Path], defended: SearchResult, sentence: str
) -> None:
    folder = make_run()
    write_searches(folder, Searches(searches=[UNDEFENDED, defended]))
    [text] = search_sentences(read_folder(folder))
    assert text.startswith("SDD under adaptive, 3 trials: the attacker's best executes ") and sentence in text


def test_the_figure_has_every_trial_of_every_defense(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    assert "search" not in [figure.name for figure in all_figures(read_folder(folder))]
    defended = search("sdd", [2, 70, 150], around(0.03, 0.05, resolved=False), around(0.35, 0.1), 3)
    write_searches(folder, Searches(searches=[UNDEFENDED, defended]))
    run = read_folder(folder)
    rows = best_so_far_rows(run, "adaptive")
    assert [(r["defense"], r["trial"], r["rate"]) for r in rows] == [
        (name, number, hits / 160)
        for name, many in (("undefended", (80, 155, 155)), ("SDD", (2, 70, 150)))
        for number, hits in enumerate(many, 1)
    ]
    points = frontier_rows(run, "adaptive")
    assert [p["trial"] for p in points if p["defense"] == "SDD" and p["kind"] == "frontier"] == [1, 3]
    assert {p["setting"] for p in points} == {"learning_rate 0.00015, method lora"}
    page = write_report(folder)
    assert "a lower final rate is not resolved" in page.read_text(encoding="utf-8")
    panels = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))["figures"]["search"]["panels"]
    assert [panel["heading"] for panel in panels] == ["adaptive: best so far", "adaptive: frontier"]


def test_a_run_without_searches_leaves_no_file(tmp_path: Path) -> None:
    write_searches(tmp_path, Searches(searches=[UNDEFENDED]))
    assert read_searches(tmp_path).searches == [UNDEFENDED]
    write_searches(tmp_path, Searches())
    assert not list(tmp_path.iterdir()) and read_searches(tmp_path).searches == []
