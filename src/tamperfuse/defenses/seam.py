"""SEAM, self-destructive models (Wang et al., ICLR 2026, arXiv 2505.12186): malicious gradients that undo benign training.

With g_a the gradient of malicious fine-tuning on compliant answers and g_b that of training on benign samples, it minimises

    L_ul + L_up + β · cos(g_a, g_b)                                                                       β = 0.01

so that a step of malicious fine-tuning raises the benign loss. L_up is the cross-entropy of refusals, and L_ul makes compliant
answers unlikely at every layer, as RepNoise does: −log(1 + mean_l h_l), with h_l their mean NLL as layer l predicts them. With
u = g / ‖g‖ and c = cos(g_a, g_b), the gradient of the last term is H_a (u_b − c u_a) / ‖g_a‖ + H_b (u_a − c u_b) / ‖g_b‖. The
products with the Hessians H_a and H_b are differences of gradients (the paper's Hessian-free estimate):

    H_a v ≈ (g_a(θ + ε v) − g_a(θ)) / ε                                                                 ε = 0.001

The authors train with AdamW at 2e-5, batch 8, 500 steps, without clipping.

Different here: ε = 0.1 by default. Spread over all weights, 0.001 is below what bfloat16 resolves in the gradients; AdamW at 3e-5
moves SmolLM2-135M by about 0.35 in its first step. L_up is the loss of `refusal`, which retains other abilities by distillation
on the benign set; the paper has no such loss. The logarithm is taken for each answer, at `layers` evenly spaced layers instead
of all. Gradients are clipped to norm 1, as in all trainings here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn

from tamperfuse.defenses.anchored import AnchoredTraining, answer_samples, train
from tamperfuse.defenses.base import DefenseData, DefenseResult, defense
from tamperfuse.defenses.refusal import refusal_samples
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.precision import Masters
from tamperfuse.records.registry import Budget
from tamperfuse.training.answers import AnsweredUnit, answer_of, answered, nll_of
from tamperfuse.training.distillation import AnchoredObjective, first_benign
from tamperfuse.training.layer_losses import layer_nll
from tamperfuse.training.objectives import Accumulate
from tamperfuse.training.weights import Weights, add_to_gradients, gradients, inner, perturbed


class SeamParameters(AnchoredTraining):
    """Parameters of `seam`: those of the training, and of the losses that are added to it.

    Attributes:
        steps: optimizer steps. With the defaults, about as many sequences as `fuse` trains on.
        batch: units in a step: a refusal, `benign_ratio` benign samples, a compliant answer.
        benign_ratio: benign samples in a step for each refusal, at least 1; g_b is that of the first of them.
        unlearning: weight of L_ul, at least 0.
        coupling: β, weight of the cosine, at least 0.
        epsilon: ε, greater than 0; the differences of gradients are taken over a change of the weights of norm ε √(1 − cos²).
        layers: number of layers, evenly spaced and with the last among them, for L_ul; the authors use all.
    """

    steps: int = Field(300, ge=1)
    batch: int = Field(6, ge=1)
    benign_ratio: int = Field(2, ge=1)
    unlearning: float = Field(1.0, ge=0)
    coupling: float = Field(0.01, ge=0)
    epsilon: float = Field(0.1, gt=0)
    layers: int = Field(8, ge=1)


@dataclass(kw_only=True)
class SeamObjective(AnchoredObjective):
    """The loss of :class:`~tamperfuse.training.distillation.AnchoredObjective`, L_ul, and the cosine of two gradients.

    Memory, in float32 copies of the weights, with all of training and apart from activations: 9 (g_a, g_b, a direction, the sum
    of differences, and the weights while they are changed, beside weights, a gradient and AdamW's two moments); 8 in bfloat16.
    Time: passes over five more sequences a unit, one of them with the predictions of the layers. One micro-batch a step.

    Attributes:
        unlearning: weight of L_ul.
        coupling: β.
        epsilon: ε.
        layers: number of layers.
    """

    unlearning: float = 1.0
    coupling: float = 0.01
    epsilon: float = 0.1
    layers: int = 8

    def begin(self, masters: Masters) -> None:
        """See :meth:`tamperfuse.training.objectives.Objective.begin`."""
        self.masters = masters

    def backward(self, accumulate: Accumulate) -> Tensor:
        """See :meth:`tamperfuse.training.objectives.Objective.backward`; the loss to report leaves the cosine out."""
        parameters = [parameter for parameter, _ in self.masters.trainable()]
        cosine = self.cosine_gradient(accumulate) if self.coupling else None
        loss = self.accumulate_loss(accumulate) + accumulate(self.unlearning_loss, answer_of)
        if cosine:
            add_to_gradients(parameters, cosine, self.coupling)
        return loss

    def cosine_gradient(self, accumulate: Accumulate) -> Weights:
        """The gradient of cos(g_a, g_b), estimated by differences; zeros if g_a or g_b is zero."""
        parameters = [parameter for parameter, _ in self.masters.trainable()]
        runs = [partial(accumulate, partial(nll_of, used), used) for used in (answer_of, first_benign)]
        pair = gradients(parameters, runs[0]), gradients(parameters, runs[1])
        lengths = [math.sqrt(inner(gradient, gradient)) for gradient in pair]
        total = [torch.zeros_like(part) for part in pair[0]]
        if not all(lengths):
            return total
        cosine = inner(*pair) / (lengths[0] * lengths[1])
        for i, j in ((0, 1), (1, 0)):
            share, other = cosine / lengths[i], 1.0 / lengths[j]
            direction = [other * b - share * a for a, b in zip(pair[i], pair[j], strict=True)]
            with perturbed(self.masters, direction, self.epsilon):
                there = gradients(parameters, runs[i], dtype=None)
            del direction
            for part, after, before in zip(total, there, pair[i], strict=True):
                part.add_(after.float() - before, alpha=1.0 / (self.epsilon * lengths[i]))
            del there  # before the next one is computed
        return total

    def unlearning_loss(
        self, model: nn.Module, units: Sequence[AnsweredUnit], total: int, device: torch.device
    ) -> Tensor:
        """L_ul: −log(1 + NLL) of compliant answers; a mean over units."""
        nll, _ = layer_nll(model, [unit.answer for unit in units], device, self.layers)
        return -self.unlearning * torch.log1p(nll).sum() / total


def budget(parameters: SeamParameters) -> Budget:
    """The training's steps, and the sequences that go through the model in each."""
    return Budget(parameters.steps, parameters.batch * (1 + parameters.benign_ratio + 5), memory_copies=9)


@defense("seam", SeamParameters, needs_answers=True, needs_benign=True, budget=budget)
def seam(loaded: LoadedModel, data: DefenseData, parameters: SeamParameters, seed: int) -> DefenseResult:
    """Experimental: refusal training that turns malicious gradients against benign ones (SEAM, Wang et al., 2025)."""
    names = {"unlearning", "coupling", "epsilon", "layers"}
    objective = SeamObjective(weight=parameters.kl_weight, **parameters.model_dump(include=names))
    answers, refusals = answer_samples(loaded, data, seed), refusal_samples(loaded, data, seed)
    return train(loaded, refusals, data, parameters, seed, "SEAM", objective, lambda units: answered(units, answers))
