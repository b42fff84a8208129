"""Booster (Huang et al., ICLR 2025, arXiv 2409.01586): alignment that makes one step of malicious fine-tuning gain little.

With f the alignment loss on (prompt, refusal), h the loss of malicious fine-tuning on (prompt, compliant answer) and w the
weights, the paper minimises

    f(w) + λ (h(w) − h(w − α ∇h(w) / ‖∇h(w)‖))

to first order: the normalised step is a constant, so that each training step follows

    ∇f(w) + λ (∇h(w) − ∇h(w − α ∇h(w) / ‖∇h(w)‖))

with three gradients. The authors train adapters of LoRA at learning rate 5e-4, batch 10, 20 epochs, λ = 5, α = 0.1.

Different here: all weights train, at 7e-5; α is then the norm of a step of all weights. f is the loss of `refusal`, which retains
other abilities by distillation on the benign set. The paper has no such loss, and `benign_ratio: 0` leaves it out. Gradients are
clipped to norm 1, as in all trainings here.
"""

import math
from dataclasses import dataclass

from pydantic import Field
from torch import Tensor

from tamperfuse.defenses.anchored import AnchoredTraining, answer_samples, needs_benign, train
from tamperfuse.defenses.base import DefenseData, DefenseResult, defense
from tamperfuse.defenses.refusal import refusal_samples
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.precision import Masters
from tamperfuse.records.registry import Budget
from tamperfuse.training.answers import answer_loss, answer_of, answered
from tamperfuse.training.distillation import AnchoredObjective
from tamperfuse.training.objectives import Accumulate
from tamperfuse.training.weights import add_to_gradients, gradients, inner, perturbed


class BoosterParameters(AnchoredTraining):
    """Parameters of `booster`: those of the training, and of the regularizer.

    Attributes:
        steps: optimizer steps. With the defaults, about as many sequences as `fuse` trains on.
        attenuation: λ, weight of what a malicious step gains, at least 0; at 0 the loss is that of `refusal`.
        radius: α, norm of that step over all weights, greater than 0. AdamW at 3e-5 moves SmolLM2-135M by about 0.35 in its
            first step.
    """

    steps: int = Field(360, ge=1)
    attenuation: float = Field(5.0, ge=0)
    radius: float = Field(0.1, gt=0)


@dataclass(kw_only=True)
class BoosterObjective(AnchoredObjective):
    """The loss of :class:`~tamperfuse.training.distillation.AnchoredObjective`, and what a malicious step gains.

    Memory, in float32 copies of the weights, with all of training and apart from activations: 6 (∇h, and the weights while they
    are changed, beside weights, gradients and AdamW's two moments); 5 in bfloat16. Time: two more forward and backward passes
    over one sequence a unit. One micro-batch a step.

    Attributes:
        attenuation: λ.
        radius: α.
    """

    attenuation: float = 5.0
    radius: float = 0.1

    def begin(self, masters: Masters) -> None:
        """See :meth:`tamperfuse.training.objectives.Objective.begin`."""
        self.masters = masters

    def backward(self, accumulate: Accumulate) -> Tensor:
        """See :meth:`tamperfuse.training.objectives.Objective.backward`; the loss to report is f."""
        parameters = [parameter for parameter, _ in self.masters.trainable()]
        gain = gradients(parameters, lambda: accumulate(answer_loss, answer_of))
        length = math.sqrt(inner(gain, gain))
        if length:
            with perturbed(self.masters, gain, -self.radius / length):
                after = gradients(parameters, lambda: accumulate(answer_loss, answer_of), dtype=None)
            for here, there in zip(gain, after, strict=True):
                here.sub_(there)
            del after
        loss = self.accumulate_loss(accumulate)
        add_to_gradients(parameters, gain, self.attenuation)
        return loss


def budget(parameters: BoosterParameters) -> Budget:
    """The training's steps, and the sequences that go through the model in each: compliant answers do so twice."""
    return Budget(parameters.steps, parameters.batch * (1 + parameters.benign_ratio + 2), memory_copies=6)


@defense("booster", BoosterParameters, needs_answers=True, needs_benign=needs_benign, budget=budget)
def booster(loaded: LoadedModel, data: DefenseData, parameters: BoosterParameters, seed: int) -> DefenseResult:
    """Experimental: refusal training that attenuates what a simulated malicious step gains (Booster, Huang et al., 2025)."""
    objective = BoosterObjective(
        weight=parameters.kl_weight, attenuation=parameters.attenuation, radius=parameters.radius
    )
    answers = answer_samples(loaded, data, seed)
    refusals = refusal_samples(loaded, data, seed)
    return train(loaded, refusals, data, parameters, seed, "Booster", objective, lambda units: answered(units, answers))
