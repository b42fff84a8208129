"""SEAM's gradient, compared with second derivatives in plain PyTorch."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rival_stand_ins import distance, gradient_of, plain_gradient, plain_model, plain_nll, units_of
from tamperfuse.defenses.seam import SeamObjective, SeamParameters, budget
from tamperfuse.models.load import LoadedModel
from tamperfuse.training.answers import AnsweredUnit
from tamperfuse.training.distillation import AnchoredObjective


def cosine_of(model: nn.Module, units: list[AnsweredUnit]) -> Tensor:
    """cos(g_a, g_b), which can be differentiated."""
    flat = []
    for samples in ([unit.answer for unit in units], [unit.keep[0].sample for unit in units]):
        parts = torch.autograd.grad(plain_nll(model, samples), list(model.parameters()), create_graph=True)
        flat.append(torch.cat([part.flatten() for part in parts]))
    return torch.cosine_similarity(*flat, dim=0)


def test_the_gradient_of_the_cosine_is_that_of_second_derivatives(tiny: LoadedModel, tiny_folder: Path) -> None:
    units = units_of(tiny)[:3]
    before = [parameter.detach().clone() for parameter in tiny.model.parameters()]
    plain, taken = (
        gradient_of(tiny, SeamObjective(weight=3.0, coupling=beta, epsilon=3e-3, layers=2), units)
        for beta in (0.0, 5.0)
    )
    assert all(torch.equal(p, b) for p, b in zip(tiny.model.parameters(), before, strict=True))
    model = plain_model(tiny_folder)
    expected = plain_gradient(model, 5.0 * cosine_of(model, units))
    assert distance([t - p for t, p in zip(taken, plain, strict=True)], expected) < 0.03


def test_a_step_along_the_coupling_turns_the_gradients_against_each_other(tiny: LoadedModel, tiny_folder: Path) -> None:
    units, model = units_of(tiny)[:3], plain_model(tiny_folder)
    plain, taken = (
        gradient_of(tiny, SeamObjective(coupling=beta, epsilon=0.1, layers=1), units) for beta in (0.0, 1.0)
    )
    before = float(cosine_of(model, units).detach())
    with torch.no_grad():
        for parameter, whole, part in zip(model.parameters(), taken, plain, strict=True):
            parameter -= 1e-2 * (whole - part)
    assert float(cosine_of(model, units).detach()) < before


def test_compliant_answers_become_unlikely_at_every_layer(tiny: LoadedModel, tiny_folder: Path) -> None:
    units, model = units_of(tiny)[:3], plain_model(tiny_folder)
    refusals = gradient_of(tiny, AnchoredObjective(3.0), units)
    taken = gradient_of(tiny, SeamObjective(weight=3.0, coupling=0.0, unlearning=0.5, layers=2), units)
    losses = []
    for unit in units:
        tokens, start = unit.answer.tokens, unit.answer.start
        out = model(input_ids=torch.tensor([tokens], device=model.device), output_hidden_states=True)
        logits = [model.lm_head(model.model.norm(out.hidden_states[1])), out.logits]
        target = torch.tensor(tokens[start:], device=model.device)
        nll = [nn.functional.cross_entropy(x[0, start - 1 : -1], target) for x in logits]
        losses.append(torch.log(1 + torch.stack(nll).mean()))
    expected = plain_gradient(model, -0.5 * torch.stack(losses).mean())
    assert distance([t - r for t, r in zip(taken, refusals, strict=True)], expected) < 1e-3


def test_the_budget_counts_every_pass() -> None:
    parameters = SeamParameters(batch=2, benign_ratio=1)
    assert (budget(parameters).steps, budget(parameters).batch) == (300, 14)
    with pytest.raises(ValueError, match="benign_ratio"):
        SeamParameters(benign_ratio=0)
