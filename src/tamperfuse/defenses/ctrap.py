"""CTRAP, the collapse trap (Yi et al., 2025, arXiv 2505.16559): after a malicious step the model repeats one token.

With f the alignment loss on (prompt, refusal), h the loss of malicious fine-tuning on (prompt, compliant answer), and

    c(θ) = the mean of −log p(e | x, y_<t) over the positions t of benign text (x, y), for one fixed token e,

the paper minimises

    f(θ) + λ c(θ − α ∇h(θ))                                                               λ = 0.1, α = 0.1

The paper was read in summaries only, and its code was not available. That the step is a constant when c is differentiated (three
gradients, as its reported time suggests), and which token e is, are assumptions made here. Its models have 7 to 9 billion
parameters, and its attackers train LoRA adapters.

Different here: α = 0.01 by default: on SmolLM2-135M a step of 0.1 overshoots and raises the NLL of compliant answers. f is the
loss of `refusal`, which retains other abilities by distillation on the benign set; the summaries mention no such loss. Gradients
are clipped to norm 1, as in all trainings here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from tamperfuse.defenses.anchored import AnchoredTraining, answer_samples, train
from tamperfuse.defenses.base import DefenseData, DefenseResult, defense
from tamperfuse.defenses.refusal import refusal_samples
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.packed import packed_logits
from tamperfuse.models.precision import Masters
from tamperfuse.records.registry import Budget
from tamperfuse.training.answers import AnsweredUnit, answer_loss, answer_of, answered
from tamperfuse.training.batches import pack_samples
from tamperfuse.training.cross_entropy import sequence_nll
from tamperfuse.training.distillation import AnchoredObjective, first_benign
from tamperfuse.training.objectives import Accumulate
from tamperfuse.training.weights import gradients, perturbed


class CtrapParameters(AnchoredTraining):
    """Parameters of `ctrap`: those of the training, and of the trap.

    Attributes:
        steps: optimizer steps. With the defaults, about as many sequences as `fuse` trains on.
        benign_ratio: benign samples in a step for each refusal, at least 1; the first of them is to collapse after an attack.
        collapse: λ, weight of the collapse, at least 0.
        rate: α, learning rate of the simulated malicious step (of plain gradient descent), greater than 0.
        word: text whose first token is the one that the model is to repeat after a malicious step.
    """

    steps: int = Field(360, ge=1)
    benign_ratio: int = Field(2, ge=1)
    collapse: float = Field(0.1, ge=0)
    rate: float = Field(0.01, gt=0)
    word: str = Field("error", min_length=1)


@dataclass(kw_only=True)
class CtrapObjective(AnchoredObjective):
    """The loss of :class:`~tamperfuse.training.distillation.AnchoredObjective`, and the collapse after a malicious step.

    Memory, in float32 copies of the weights, with all of training and apart from activations: 6 (∇h, and the weights while they
    are changed, beside weights, gradients and AdamW's two moments); 5 in bfloat16. Time: forward and backward passes over two
    more sequences a unit. One micro-batch a step.

    Attributes:
        collapse: λ.
        rate: α.
        token: e, a token id.
    """

    token: int
    collapse: float = 0.1
    rate: float = 0.01

    def begin(self, masters: Masters) -> None:
        """See :meth:`tamperfuse.training.objectives.Objective.begin`."""
        self.masters = masters

    def backward(self, accumulate: Accumulate) -> Tensor:
        """See :meth:`tamperfuse.training.objectives.Objective.backward`; the loss to report is the sum."""
        parameters = [parameter for parameter, _ in self.masters.trainable()]
        malicious = gradients(parameters, lambda: accumulate(answer_loss, answer_of))
        with perturbed(self.masters, malicious, -self.rate):
            collapse = accumulate(self.collapse_loss, first_benign)
        del malicious
        return collapse + self.accumulate_loss(accumulate)

    def collapse_loss(
        self, model: nn.Module, units: Sequence[AnsweredUnit], total: int, device: torch.device
    ) -> Tensor:
        """λ · c on the first benign sample of each unit; a mean over units."""
        batch = pack_samples([unit.keep[0].sample for unit in units], device)
        logits = packed_logits(model, batch.row, batch.layout, batch.positions)
        nll = sequence_nll(logits, torch.full_like(batch.targets, self.token), batch.counts)
        return self.collapse * (nll / torch.tensor(batch.counts, device=device)).sum() / total


def budget(parameters: CtrapParameters) -> Budget:
    """The training's steps, and the sequences that go through the model in each."""
    return Budget(parameters.steps, parameters.batch * (1 + parameters.benign_ratio + 2), memory_copies=6)


@defense("ctrap", CtrapParameters, needs_answers=True, needs_benign=True, budget=budget)
def ctrap(loaded: LoadedModel, data: DefenseData, parameters: CtrapParameters, seed: int) -> DefenseResult:
    """Experimental: refusal training with a collapse to one token after a simulated malicious step (CTRAP, Yi et al., 2025)."""
    objective = CtrapObjective(
        weight=parameters.kl_weight,
        collapse=parameters.collapse,
        rate=parameters.rate,
        token=loaded.chat.response(parameters.word)[0],
    )
    answers = answer_samples(loaded, data, seed)
    refusals = refusal_samples(loaded, data, seed)
    return train(loaded, refusals, data, parameters, seed, "CTRAP", objective, lambda units: answered(units, answers))
