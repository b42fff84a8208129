"""TAR, tampering attack resistance (Tamirisa et al., ICLR 2025, arXiv 2408.00761): uncertain answers along simulated attacks.

In each step of the training (algorithm 1) an attacker fine-tunes the model for K steps, and the weights θ are trained with

    ∇ retain(θ) + λ · Σ_k w_k ∇ L(θ + δ_k)                                                w_k ∝ exp(4 k / K), Σ_k w_k = 1

after some steps k of the attacker, where δ_k is what it has changed so far, as if the gradient at θ + δ_k were that at θ (first
order). L is minus the entropy of the model's predictions on other compliant answers (appendix C.3).

The authors take 750 steps at 2e-5, batch 8, K = 64 steps of AdamW at 2e-6, 2e-5 or 4e-5, and L after every fourth of them with
the weight 4 exp((k − 64) / 16); the sum of these weights is λ = 17.75. Their model of 8B was first trained on random targets.

Different here: 156 steps at 7e-5, batch 4, K = 16, rates for SmolLM2-135M; attackers train on compliant answers alone; one that L
takes in a unit may be a training sample of an attacker in another. `retain` is the loss of `refusal`, where the paper has cross-
entropy and the distance of the hidden states from those before. L is the entropy for refusals as well, where the paper uses DPO.
Gradients are clipped to norm 1.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from tamperfuse.defenses.anchored import AnchoredTraining, answer_samples, needs_benign, train
from tamperfuse.defenses.base import DefenseData, DefenseResult, Rates, defense
from tamperfuse.defenses.refusal import refusal_samples
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.packed import packed_logits
from tamperfuse.models.precision import Masters
from tamperfuse.records.registry import Budget
from tamperfuse.training.answers import nll_of
from tamperfuse.training.batches import pack_samples
from tamperfuse.training.cross_entropy import token_kl_uniform
from tamperfuse.training.distillation import AnchoredObjective
from tamperfuse.training.objectives import Accumulate
from tamperfuse.training.trap_units import TrapUnit, attack_answer, harmful_answer, trap_units
from tamperfuse.training.weights import SimulatedAttacker, gradients


class TarParameters(AnchoredTraining):
    """Parameters of `tar`: those of the training, and of the simulated attackers.

    Attributes:
        steps: optimizer steps. With the defaults, about as many sequences as `fuse` trains on.
        batch: units in a step: a refusal, `benign_ratio` benign samples, `inner_steps` + 1 compliant answers.
        resistance: λ, weight of the entropy in all measurements together, at least 0.
        inner_steps: K, steps of the attacker in each step of the training.
        measure_every: the entropy is raised after every so many steps of the attacker, and after its last.
        rates: the attackers' learning rates; each step of the training draws one.
    """

    steps: int = Field(156, ge=1)
    batch: int = Field(4, ge=1)
    resistance: float = Field(17.75, ge=0)
    inner_steps: int = Field(16, ge=1)
    measure_every: int = Field(4, ge=1)
    rates: Rates = Field((3e-5, 1e-4), min_length=1)


@dataclass(kw_only=True)
class TarObjective(AnchoredObjective):
    """The loss of :class:`~tamperfuse.training.distillation.AnchoredObjective` at θ, and the entropy along an attack.

    Memory, in float32 copies of the weights, with all of training and apart from activations: 8 (δ and the two moments of its
    AdamW, and its gradient). Time: passes over K + K / `measure_every` more sequences a unit. One micro-batch a step.

    Attributes:
        seed: of the drawn learning rates.
        rates: the attackers' learning rates.
        inner_steps: K; each unit has as many samples for the attacker.
        measure_every: steps of the attacker from one measurement to the next.
        resistance: λ.
    """

    seed: int = 0
    rates: tuple[float, ...] = (3e-5, 1e-4)
    inner_steps: int = 16
    measure_every: int = 4
    resistance: float = 17.75

    def begin(self, masters: Masters) -> None:
        """See :meth:`tamperfuse.training.objectives.Objective.begin`."""
        self.parameters = [parameter for parameter, _ in masters.trainable()]
        self.attacker, self.steps_taken = SimulatedAttacker(masters, self.rates[0]), 0

    def weights(self) -> dict[int, float]:
        """λ w_k for each step k of the attacker after which the entropy is taken: every n-th, and the last."""
        measured = {*range(self.measure_every, self.inner_steps, self.measure_every), self.inner_steps}
        shares = {step: math.exp(4.0 * step / self.inner_steps) for step in measured}
        return {step: self.resistance * share / sum(shares.values()) for step, share in shares.items()}

    def backward(self, accumulate: Accumulate) -> Tensor:
        """See :meth:`tamperfuse.training.objectives.Objective.backward`; the loss to report is that at θ."""
        self.attacker.restart(random.Random(f"{self.seed}:{self.steps_taken}").choice(self.rates))
        self.steps_taken += 1
        weights = self.weights()
        for index in range(self.inner_steps):
            used = partial(attack_answer, index)
            with self.attacker.applied():
                gradient = gradients(self.parameters, partial(accumulate, partial(nll_of, used), used))
            self.attacker.step(gradient)
            del gradient
            if index + 1 in weights:
                with self.attacker.applied():
                    accumulate(partial(self.resistance_loss, weights[index + 1]), harmful_answer)
        return self.accumulate_loss(accumulate)

    def resistance_loss(
        self, weight: float, model: nn.Module, units: Sequence[TrapUnit], total: int, device: torch.device
    ) -> Tensor:
        """`weight` · (log(vocabulary) − entropy), a mean over each answer's tokens and over units."""
        batch = pack_samples([unit.harmful for unit in units], device)
        logits = packed_logits(model, batch.row, batch.layout, batch.positions)
        counts = torch.tensor(batch.counts)
        tokens = token_kl_uniform(logits) / counts.repeat_interleave(counts).to(device)
        return weight * tokens.sum() / total

    def state_dict(self) -> dict[str, Any]:
        """The number of steps; attackers are simulated anew in each, and have no state."""
        return {"steps_taken": self.steps_taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`tamperfuse.training.objectives.Objective.load_state_dict`."""
        self.steps_taken = state["steps_taken"]


def budget(parameters: TarParameters) -> Budget:
    """The training's steps, and the sequences that go through the model in each."""
    answers = parameters.inner_steps + math.ceil(parameters.inner_steps / parameters.measure_every)
    return Budget(parameters.steps, parameters.batch * (1 + parameters.benign_ratio + answers), memory_copies=8)


@defense("tar", TarParameters, needs_answers=True, needs_benign=needs_benign, budget=budget)
def tar(loaded: LoadedModel, data: DefenseData, parameters: TarParameters, seed: int) -> DefenseResult:
    """Experimental: entropy of compliant answers, raised along simulated attacks in every step (TAR, Tamirisa et al., 2025)."""
    names = {"rates", "inner_steps", "measure_every", "resistance"}
    objective = TarObjective(weight=parameters.kl_weight, seed=seed, **parameters.model_dump(include=names))
    answers, refusals = answer_samples(loaded, data, seed), refusal_samples(loaded, data, seed)
    extend = partial(trap_units, answers=answers, steps=parameters.inner_steps)
    return train(loaded, refusals, data, parameters, seed, "TAR", objective, extend)
