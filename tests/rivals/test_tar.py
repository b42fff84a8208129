"""TAR's gradient, compared with an attack and entropies in plain PyTorch."""

import math
from pathlib import Path

import pytest
import torch

from rival_stand_ins import (
    ANSWERS,
    LIMIT,
    distance,
    gradient_of,
    plain_gradient,
    plain_model,
    plain_nll,
    units_of,
)
from tamperfuse.defenses.tar import TarObjective, TarParameters, budget
from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel
from tamperfuse.training.distillation import AnchoredObjective
from tamperfuse.training.trap_units import TrapUnit, trap_units


def tar_units(loaded: LoadedModel, steps: int) -> list[TrapUnit]:
    answers = [loaded.chat.sample(*pair, LIMIT) for pair in ANSWERS]
    return trap_units(units_of(loaded), answers, steps)[:2]


def entropy_of(model: torch.nn.Module, samples: list[Sample]) -> torch.Tensor:
    entropies = []
    for sample in samples:
        logits = model(input_ids=torch.tensor([sample.tokens], device=model.device)).logits[0, sample.start - 1 : -1]
        entropies.append(torch.distributions.Categorical(logits=logits).entropy().mean())
    return torch.stack(entropies).mean()


def test_the_gradient_is_a_weighted_sum_along_an_attack(tiny: LoadedModel, tiny_folder: Path) -> None:
    units = tar_units(tiny, 4)
    before = [parameter.detach().clone() for parameter in tiny.model.parameters()]
    retain = gradient_of(tiny, AnchoredObjective(3.0), units)
    objective = TarObjective(weight=3.0, rates=(2e-3,), inner_steps=4, measure_every=2, resistance=0.5)
    taken = gradient_of(tiny, objective, units)
    assert all(torch.equal(p, b) for p, b in zip(tiny.model.parameters(), before, strict=True))
    model = plain_model(tiny_folder)
    attacker = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    expected = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for index in range(4):
        attacker.zero_grad()
        plain_nll(model, [unit.attack[index] for unit in units]).backward()
        attacker.step()
        if index in (1, 3):  # at weights of 1 : e² whose sum is 0.5
            weight = 0.5 / (1 + math.exp(2)) * (math.exp(2) if index == 3 else 1.0)
            part = plain_gradient(model, -weight * entropy_of(model, [unit.harmful for unit in units]))
            expected = [e + p for e, p in zip(expected, part, strict=True)]
    assert distance([t - r for t, r in zip(taken, retain, strict=True)], expected) < 5e-3


def test_the_default_weights_sum_to_those_of_the_authors() -> None:
    of_the_authors = sum(4 * math.exp((k - 64) / 16) for k in range(4, 65, 4))
    assert sum(TarObjective().weights().values()) == pytest.approx(TarParameters().resistance)
    assert TarParameters().resistance == pytest.approx(of_the_authors, abs=0.005)
    assert list(TarObjective(inner_steps=6, measure_every=4).weights()) == [4, 6]


def test_every_step_of_the_training_has_a_new_attacker_at_a_drawn_rate(tiny: LoadedModel) -> None:
    units = tar_units(tiny, 1)
    objective = TarObjective(rates=(1e-4, 1e-2), inner_steps=1, measure_every=1)
    moved, rates = [], []
    gradient_of(tiny, objective, units)
    for _ in range(6):
        objective.backward(lambda loss, used: _accumulate(tiny, loss, units))
        moved.append(max(float(delta.abs().max()) for delta in objective.attacker.delta))
        rates.append(objective.attacker.learning_rate)
    assert moved == pytest.approx(rates, rel=0.05)  # one step of AdamW
    assert set(rates) == {1e-4, 1e-2}


def _accumulate(loaded: LoadedModel, loss, units) -> torch.Tensor:
    value = loss(loaded.model, units, len(units), loaded.model.device)
    value.backward()
    return value.detach()


def test_the_budget_counts_every_pass() -> None:
    parameters = TarParameters(batch=2, benign_ratio=1, inner_steps=9, measure_every=4)
    assert budget(parameters).batch == 2 * (2 + 9 + 3)
