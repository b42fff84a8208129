"""RepNoise, representation noising (Rosati et al., NeurIPS 2024, arXiv 2405.14577): harmful representations become noise.

With CE the cross-entropy of refusals, z_l the output of layer l's MLP on compliant answers, and h_l the mean NLL of these answers
as layer l predicts them (through the final norm and the output embeddings), the authors' code
(`representation_noising/loss.py`) minimises

    CE + β · mean_l MMD²(z_l, N(0, I)) − α · log(1 + mean_l h_l)                  β = 0.001, α = 1

The MMD has five Gaussian kernels, whose bandwidths are 1/4 to 4 times the mean squared distance of the points.

Different here: the points of the MMD are the tokens of one answer, and the logarithm is taken for each answer, both averaged over
answers, so that a batch can be split; the authors take whole padded sequences as points, and the logarithm of the batch's mean.
`layers` evenly spaced layers are used instead of all, to save the time that their predictions take. CE is the loss of `refusal`,
which retains other abilities by distillation on the benign set; the authors' retain loss is cross-entropy on harmless answers.
Refusals and compliant answers of a unit are not to the same prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from tamperfuse.defenses.anchored import AnchoredTraining, answer_samples, needs_benign, train
from tamperfuse.defenses.base import DefenseData, DefenseResult, defense
from tamperfuse.defenses.refusal import refusal_samples
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.registry import Budget
from tamperfuse.training.answers import AnsweredUnit, answer_of, answered
from tamperfuse.training.distillation import AnchoredObjective
from tamperfuse.training.layer_losses import layer_nll
from tamperfuse.training.objectives import Accumulate

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the kernels, relative to the mean squared distance of two points


class RepNoiseParameters(AnchoredTraining):
    """Parameters of `repnoise`: those of the training, and of what is done to compliant answers.

    Attributes:
        steps: optimizer steps. With the defaults, about as many sequences as `fuse` trains on.
        noise: β, weight of the distance between representations and Gaussian noise, at least 0.
        ascent: α, weight of the logarithm of the answers' NLL, at least 0.
        layers: number of layers, evenly spaced and with the last among them, that both act on; the authors use all.
    """

    steps: int = Field(449, ge=1)
    noise: float = Field(0.001, ge=0)
    ascent: float = Field(1.0, ge=0)
    layers: int = Field(8, ge=1)


@dataclass(kw_only=True)
class RepNoiseObjective(AnchoredObjective):
    """The loss of :class:`~tamperfuse.training.distillation.AnchoredObjective`, and that on compliant answers.

    Memory: no more copies of the weights than other training (4 in float32). Time: one more forward and backward pass over one
    sequence a unit, and for each layer the product of its response tokens with the output embeddings three times.

    Attributes:
        noise: β.
        ascent: α.
        layers: number of layers.
    """

    noise: float = 0.001
    ascent: float = 1.0
    layers: int = 8

    def backward(self, accumulate: Accumulate) -> Tensor:
        """See :meth:`tamperfuse.training.objectives.Objective.backward`; the loss to report is the sum."""
        return self.accumulate_loss(accumulate) + accumulate(self.answers_loss, answer_of)

    def answers_loss(self, model: nn.Module, units: Sequence[AnsweredUnit], total: int, device: torch.device) -> Tensor:
        """β · MMD² − α · log(1 + NLL) of compliant answers; a mean over units. Draws random numbers."""
        nll, activations = layer_nll(model, [unit.answer for unit in units], device, self.layers)
        distances = [squared_mmd(part, torch.randn_like(part)) for layer in activations for part in layer]
        noise = torch.stack(distances).sum() / len(activations)
        return (self.noise * noise - self.ascent * torch.log1p(nll).sum()) / total


def squared_mmd(first: Tensor, second: Tensor) -> Tensor:
    """The squared maximum mean discrepancy of two sets of points, with the kernels of :data:`BANDWIDTHS`; a biased estimate.

    Args:
        first: (points, dimensions), any floating dtype; computed in float32.
        second: likewise, as many points.

    Returns:
        A scalar, at least 0.
    """
    points = torch.cat([first, second]).float()
    squares = points.square().sum(-1)
    distances = (squares[:, None] + squares - 2.0 * points @ points.T).clamp(min=0.0)
    mean = distances.detach().sum() / (len(points) ** 2 - len(points))
    kernel = torch.stack([torch.exp(-distances / (mean * factor)) for factor in BANDWIDTHS]).sum(0)
    count = len(first)
    cross = kernel[:count, count:].mean() + kernel[count:, :count].mean()
    return kernel[:count, :count].mean() + kernel[count:, count:].mean() - cross


def budget(parameters: RepNoiseParameters) -> Budget:
    """The training's steps, and the sequences that go through the model in each."""
    return Budget(parameters.steps, parameters.batch * (1 + parameters.benign_ratio + 1))


@defense("repnoise", RepNoiseParameters, needs_answers=True, needs_benign=needs_benign, budget=budget)
def repnoise(loaded: LoadedModel, data: DefenseData, parameters: RepNoiseParameters, seed: int) -> DefenseResult:
    """Experimental: refusal training that turns states of compliant answers into noise (RepNoise, Rosati et al., 2024)."""
    objective = RepNoiseObjective(
        weight=parameters.kl_weight, noise=parameters.noise, ascent=parameters.ascent, layers=parameters.layers
    )
    answers = answer_samples(loaded, data, seed)
    refusals = refusal_samples(loaded, data, seed)
    return train(
        loaded, refusals, data, parameters, seed, "RepNoise", objective, lambda units: answered(units, answers)
    )
