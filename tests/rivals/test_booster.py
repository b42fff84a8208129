"""Booster's gradient, compared with that of its formula in plain PyTorch."""

import math
from pathlib import Path

import pytest
import torch

from rival_stand_ins import distance, gradient_of, plain_gradient, plain_model, plain_nll, units_of
from tamperfuse.defenses.booster import BoosterObjective, BoosterParameters, budget
from tamperfuse.models.load import LoadedModel
from tamperfuse.training.distillation import AnchoredObjective


@pytest.mark.parametrize("radius", [0.05, 0.5])
def test_the_gradient_is_that_of_the_formula(tiny: LoadedModel, tiny_folder: Path, radius: float) -> None:
    units = units_of(tiny)[:3]
    answers = [unit.answer for unit in units]
    before = [parameter.detach().clone() for parameter in tiny.model.parameters()]
    alignment = gradient_of(tiny, AnchoredObjective(3.0), units)
    taken = gradient_of(tiny, BoosterObjective(weight=3.0, attenuation=2.0, radius=radius), units)
    assert all(torch.equal(p, b) for p, b in zip(tiny.model.parameters(), before, strict=True))
    model = plain_model(tiny_folder)
    here = plain_gradient(model, plain_nll(model, answers))
    length = math.sqrt(sum(float(part.square().sum()) for part in here))
    with torch.no_grad():
        for parameter, part in zip(model.parameters(), here, strict=True):
            parameter -= radius * part / length
    there = plain_gradient(model, plain_nll(model, answers))
    regularizer = [2.0 * (h - t) for h, t in zip(here, there, strict=True)]
    assert distance([t - a for t, a in zip(taken, alignment, strict=True)], regularizer) < 1e-3


def test_without_attenuation_it_is_refusal_training(tiny: LoadedModel) -> None:
    units = units_of(tiny)[:3]
    plain, taken = (
        gradient_of(tiny, objective, units)
        for objective in (AnchoredObjective(3.0), BoosterObjective(weight=3.0, attenuation=0.0))
    )
    assert distance(taken, plain) < 1e-6


def test_a_training_step_lowers_what_a_malicious_step_gains(tiny: LoadedModel, tiny_folder: Path) -> None:
    units = units_of(tiny)[:4]
    answers = [unit.answer for unit in units]

    def gained(change: list[torch.Tensor]) -> float:
        model = plain_model(tiny_folder)
        with torch.no_grad():
            for parameter, part in zip(model.parameters(), change, strict=True):
                parameter -= 1e-3 * part
        before = plain_nll(model, answers)
        step = plain_gradient(model, before)
        length = math.sqrt(sum(float(part.square().sum()) for part in step))
        with torch.no_grad():
            for parameter, part in zip(model.parameters(), step, strict=True):
                parameter -= 0.3 * part / length
            return float(before - plain_nll(model, answers))

    plain = gradient_of(tiny, AnchoredObjective(0.0), units)
    boosted = gradient_of(tiny, BoosterObjective(weight=0.0, attenuation=1.0, radius=0.3), units)
    part = [b - p for b, p in zip(boosted, plain, strict=True)]
    assert gained(part) < gained([torch.zeros_like(p) for p in part])


def test_the_budget_counts_compliant_answers_twice() -> None:
    parameters = BoosterParameters(batch=4, benign_ratio=2)
    assert (budget(parameters).steps, budget(parameters).batch) == (360, 20)
