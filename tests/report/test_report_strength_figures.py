"""Defenses that differ in strength alone on the page: the trade-off, the correlation, and inversions that are significant."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml
from made_up_run import around, defense_summary, summary

from tamperfuse.records.summary import NOT_MEASURED, DefenseSummary, Measure
from tamperfuse.report.figures import all_figures
from tamperfuse.report.inputs import Run, read_folder
from tamperfuse.report.page import SHORT_TITLES
from tamperfuse.report.strength_figures import (
    HARM,
    LOSS,
    inversions,
    strength_groups,
    strength_rows,
    strength_sentences,
)

STRENGTHS = (0, 0.25, 0.5, 0.75, 1)


def hardened(harm: Measure, price: Measure, loss: Measure) -> DefenseSummary:
    measured = defense_summary("sdd")
    harmful = measured.harmful_execution.model_copy(update={"mean": harm})
    capability = measured.capability.model_copy(update={"drop_vs_shipped": price, "self_degradation": loss})
    return measured.model_copy(update={"harmful_execution": harmful, "capability": capability})


def run_of(make_run: Callable[..., Path], harm: Sequence[float], **changes: object) -> Run:
    """A run with a fuse for each rate of harm, of ascending strength; the study file has the strongest first."""
    names = [f"fuse-{number}" for number in range(len(harm))]
    measured = {
        name: hardened(around(rate, 0.05), around(0.01 * i, 0.02), around(0.1 * i, 0.05))
        for i, (name, rate) in enumerate(zip(names, harm, strict=True))
    }
    folder = make_run(
        measured=summary().model_copy(update={"defenses": {"refusal": defense_summary("refusal")} | measured})
    )
    settings = {
        name: {"defense": "fuse", "on": "refusal", "strength": strength, "price": 0.1} | changes.get(name, {})
        for name, strength in zip(names, STRENGTHS, strict=False)
    }
    study = {"defenses": {"refusal": {}} | dict(reversed(settings.items()))}
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return read_folder(folder)


def figure_of(run: Run):
    return next((figure for figure in all_figures(run) if figure.name == "strength"), None)


def test_points_are_ordered_by_strength_and_the_correlation_is_in_the_caption(make_run: Callable[..., Path]) -> None:
    run = run_of(make_run, [0.9, 0.7, 0.72, 0.4, 0.2])
    [group] = strength_groups(run)
    assert tuple(group.values()) == STRENGTHS
    rows = strength_rows(run, group, HARM)
    assert [(r["text"], r["effect"], r["price"]) for r in rows][1] == ("0.25", 0.7, 0.01)
    figure = figure_of(run)
    assert figure and [panel.heading for panel in figure.panels] == [HARM.name, LOSS.name]
    assert SHORT_TITLES[figure.name]
    assert "strength and harmful execution after attacks, 5 defenses: −0.90 (aim: −1). No inversion" in figure.caption
    assert "strength and self-degradation, 5 defenses: 1.00 (aim: 1). No inversion is significant." in figure.caption
    assert "strength 0.5: 72% at a price of 2%" in figure.panels[0].alt_text
    assert figure.panels[0].chart.to_dict()["layer"]


def test_an_inversion_is_named_if_it_is_significant(make_run: Callable[..., Path]) -> None:
    run = run_of(make_run, [0.9, 0.4, 0.75, 0.38, 0.36])
    sentences = strength_sentences(run, *strength_groups(run))
    assert sentences[1:-2] == ["Inversion: strength 0.5 executes more than strength 0.25 (75% against 40%)."]


@pytest.mark.parametrize(("gap", "named"), [(0.069, False), (0.072, True)])
def test_the_limit_is_the_root_of_the_squared_half_intervals(gap: float, named: bool) -> None:
    measures = [(0.2, around(0.5, 0.05)), (0.8, around(0.5 - gap, 0.05))]  # 0.05 · √2 = 0.0707
    assert inversions(LOSS, measures)[0].startswith("Inversion") == named
    assert inversions(HARM, measures) == ["No inversion is significant."], "less harm is what strength is for"
    assert inversions(LOSS, [(s, Measure(value=m.value)) for s, m in measures]) == ["No inversion is significant."]


def test_defenses_that_differ_otherwise_make_no_figure(make_run: Callable[..., Path]) -> None:
    rates = [0.9, 0.5, 0.2]
    assert strength_groups(run_of(make_run, rates))
    assert not strength_groups(run_of(make_run, rates[:2]))
    assert not strength_groups(run_of(make_run, rates, **{"fuse-1": {"price": 0.2}}))
    assert not strength_groups(run_of(make_run, rates, **{"fuse-1": {"strength": 0}})), "only two strengths"
    assert figure_of(run_of(make_run, rates[:2])) is None


def test_what_was_not_measured_is_left_out_and_equal_values_have_no_correlation(
    make_run: Callable[..., Path],
) -> None:
    run = run_of(make_run, [0.5, 0.5, 0.5])
    for name in list(strength_groups(run)[0]):
        capability = run.summary.defenses[name].capability
        run.summary.defenses[name].capability = capability.model_copy(update={"self_degradation": NOT_MEASURED})
    figure = figure_of(run)
    assert figure and [panel.heading for panel in figure.panels] == [HARM.name]
    assert "undefined, all are equal." in figure.caption and "self-degradation, " not in figure.caption
