"""CTRAP's gradient, compared with that of its formula in plain PyTorch, and what it does to a model."""

from pathlib import Path

import torch

from rival_stand_ins import distance, gradient_of, plain_gradient, plain_model, plain_nll, units_of
from tamperfuse.defenses.ctrap import CtrapObjective, CtrapParameters, budget
from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel, load_model
from tamperfuse.training.distillation import AnchoredObjective
from tamperfuse.training.fit import Training, fit

TOKEN = 100


def collapse_of(model: torch.nn.Module, samples: list[Sample]) -> torch.Tensor:
    """The mean NLL of the one token at the positions of each response."""
    losses = []
    for sample in samples:
        logits = model(input_ids=torch.tensor([sample.tokens], device=model.device)).logits[0, sample.start - 1 : -1]
        losses.append(-logits.log_softmax(-1)[:, TOKEN].mean())
    return torch.stack(losses).mean()


def test_the_gradient_is_that_of_the_formula(tiny: LoadedModel, tiny_folder: Path) -> None:
    units = units_of(tiny)[:3]
    before = [parameter.detach().clone() for parameter in tiny.model.parameters()]
    alignment = gradient_of(tiny, AnchoredObjective(3.0), units)
    taken = gradient_of(tiny, CtrapObjective(weight=3.0, collapse=2.0, rate=0.05, token=TOKEN), units)
    assert all(torch.equal(p, b) for p, b in zip(tiny.model.parameters(), before, strict=True))
    model = plain_model(tiny_folder)
    malicious = plain_gradient(model, plain_nll(model, [unit.answer for unit in units]))
    with torch.no_grad():
        for parameter, part in zip(model.parameters(), malicious, strict=True):
            parameter -= 0.05 * part
    expected = plain_gradient(model, 2.0 * collapse_of(model, [unit.keep[0].sample for unit in units]))
    assert distance([t - a for t, a in zip(taken, alignment, strict=True)], expected) < 1e-3


def test_benign_text_collapses_after_a_malicious_step(tiny_folder: Path) -> None:
    collapsed = {}
    for collapse in (0.0, 1.0):
        loaded, model = load_model(str(tiny_folder)), plain_model(tiny_folder)
        units = units_of(loaded)
        answers, benign = [unit.answer for unit in units], [unit.keep[0].sample for unit in units]
        objective = CtrapObjective(weight=6.0, collapse=collapse, rate=0.1, token=TOKEN)
        fit(loaded, units, Training(steps=12, batch=4, learning_rate=5e-3), seed=0, objective=objective)
        model.load_state_dict(loaded.model.state_dict())
        malicious = plain_gradient(model, plain_nll(model, answers))
        with torch.no_grad():
            before = float(collapse_of(model, benign))
            for parameter, part in zip(model.parameters(), malicious, strict=True):
                parameter -= 0.1 * part
            collapsed[collapse] = before - float(collapse_of(model, benign))
    assert collapsed[1.0] > collapsed[0.0] + 1.0


def test_the_budget_counts_compliant_answers_and_what_collapses() -> None:
    parameters = CtrapParameters(batch=4, benign_ratio=2)
    assert (budget(parameters).steps, budget(parameters).batch) == (360, 20)
