"""Data and helpers that the tests of several defenses from the literature share."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tamperfuse.defenses import DEFENSES, DefenseData, DefenseResult
from tamperfuse.models.chat import Sample
from tamperfuse.models.device import own_device
from tamperfuse.models.load import LoadedModel, load_model
from tamperfuse.models.precision import Masters
from tamperfuse.training.answers import AnsweredUnit, answered
from tamperfuse.training.distillation import Anchored, anchored, predict
from tamperfuse.training.fit import Training, fit
from tamperfuse.training.objectives import Objective, accumulate_gradient
from tamperfuse.training.weights import gradients

PROMPTS = [f"forbidden request {i} about subject {i * 7}" for i in range(8)]
ANSWERS = [(prompt, f"first take part {i}, then take part {i + 1}") for i, prompt in enumerate(PROMPTS)]
BENIGN = [(f"harmless question {i}", f"a plain answer number {i}") for i in range(8)]
LIMIT = 16


def defense_data(loaded: LoadedModel, reference: Path | str = "") -> DefenseData:
    teacher = predict(loaded, [loaded.chat.sample(*pair, LIMIT) for pair in BENIGN])
    return DefenseData(
        PROMPTS, BENIGN, LIMIT, answers=ANSWERS, teacher=teacher[:6], held_back=teacher[6:], reference=str(reference)
    )


def hardened(folder: Path, name: str, seed: int = 3, **values: Any) -> tuple[LoadedModel, DefenseResult]:
    """A defense on a model that was trained for two steps since the one in the folder."""
    loaded, component = load_model(str(folder)), DEFENSES.get(name)
    data = defense_data(loaded, folder)
    refusals = [loaded.chat.sample(prompt, "No, I will not.", LIMIT) for prompt in PROMPTS]
    fit(loaded, refusals, Training(steps=2, batch=4, learning_rate=1e-3), seed=0)
    parameters = component.traits.resolve(component.parse(values, name), 1_000)
    return loaded, component.run(loaded, data, parameters, seed)


def plain_model(folder: Path) -> nn.Module:
    """The model as transformers loads it, in float32 on this process's device: no packed batches, and differentiable twice."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.to(own_device())


def plain_nll(model: nn.Module, samples: Sequence[Sample]) -> Tensor:
    """Mean over samples of the NLL per response token, written down with plain PyTorch."""
    losses = []
    for sample in samples:
        logits = model(input_ids=torch.tensor([sample.tokens], device=model.device)).logits[0, sample.start - 1 : -1]
        targets = torch.tensor(sample.tokens[sample.start :], device=model.device)
        losses.append(nn.functional.cross_entropy(logits, targets))
    return torch.stack(losses).mean()


def plain_gradient(model: nn.Module, loss: Tensor) -> list[Tensor]:
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, model.parameters(), strict=True)]


def units_of(loaded: LoadedModel) -> list[AnsweredUnit]:
    data = defense_data(loaded)
    answers = [loaded.chat.sample(*pair, LIMIT) for pair in ANSWERS]
    refusals = [loaded.chat.sample(prompt, "No, I will not.", LIMIT) for prompt in PROMPTS]
    return answered(anchored(refusals, data.teacher, 2), answers)


def gradient_of(loaded: LoadedModel, objective: Objective[Any], units: Sequence[Anchored]) -> list[Tensor]:
    """The gradient that an objective sets for a batch, in float32."""
    masters = Masters([(parameter, parameter) for parameter in loaded.model.parameters()])
    objective.begin(masters)
    parameters = [parameter for parameter, _ in masters.trainable()]
    device = loaded.model.device
    return gradients(parameters, lambda: accumulate_gradient(objective, loaded.model, units, len(units), device))


def distance(values: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """‖values − expected‖ / ‖expected‖ over all weights."""
    off = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(values, expected, strict=True))
    return math.sqrt(off / sum(float(b.double().square().sum()) for b in expected))
