"""TAR, tampering attack resistance (Tamirisa et al., ICLR 2025, arXiv 2408.00761): uncertain answers along simulated attacks.

In each step of the training (algorithm 1) an attacker fine-tunes the model for K steps, and the weights θ are trained with

    ∇ retain(θ) + λ · mean_k ∇ L(θ + δ_k)

over some steps k of the attacker, where δ_k is what it has changed so far. The gradient at θ + δ_k is used as if it were that at
θ (first order). L is minus the entropy of the model's predictions on other compliant answers than the attacker's; it stays high
for longer than a raised cross-entropy does (appendix C.3).

The authors take 750 steps at 2e-5, K = 64 steps of AdamW at 2e-6, 2e-5 or 4e-5, L at every fourth of them with λ = 4 / 64 for
each (λ = 1 in the formula above), on an 8B model that was first trained on random targets for hazardous text.

Different here: fewer steps of attackers, at rates for SmolLM2-135M, all of which train on compliant answers alone. The answer in
L is not one of its unit's attacker, but may be one of another unit's. `retain` is the loss of `refusal`: refusals, and
distillation on the benign set, where the paper has cross-entropy and the distance of hidden states from those of the model
before. The entropy is used for refusals as well, where the paper uses DPO.
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

from tamperfuse.defenses.anchored import AnchoredTraining, answer_samples, needs_benign, stops, train
from tamperfuse.defenses.base import DefenseData, DefenseResult, defense
from tamperfuse.defenses.refusal import refusal_samples
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.packed import packed_logits
from tamperfuse.models.precision import Masters
from tamperfuse.records.registry import Budget
from tamperfuse.training.answers import token_nll
from tamperfuse.training.batches import pack_samples
from tamperfuse.training.cross_entropy import token_kl_uniform
from tamperfuse.training.distillation import AnchoredObjective
from tamperfuse.training.objectives import Accumulate
from tamperfuse.training.trap import TrapUnit, trap_units
from tamperfuse.training.weights import SimulatedAttacker, gradients


class TarParameters(AnchoredTraining):
    """Parameters of `tar`: those of the training, and of the simulated attackers.

    Attributes:
        steps: optimizer steps. With the defaults, about as many sequences as `fuse` trains on.
        batch: units in a step: a refusal, `benign_ratio` benign samples, `inner_steps` + 1 compliant answers.
        resistance: λ, weight of the entropy, at least 0.
        inner_steps: K, steps of the attacker in each step of the training.
        measure_every: the entropy is raised after every so many steps of the attacker, and after its last.
        rates: the attackers' learning rates; each step of the training draws one.
    """

    steps: int = Field(91, ge=1)
    batch: int = Field(4, ge=1)
    resistance: float = Field(1.0, ge=0)
    inner_steps: int = Field(16, ge=1)
    measure_every: int = Field(4, ge=1)
    rates: tuple[float, ...] = Field((3e-5, 1e-4), min_length=1)


@dataclass(kw_only=True)
class TarObjective(AnchoredObjective):
    """The loss of :class:`~tamperfuse.training.distillation.AnchoredObjective` at θ, and the entropy along an attack.

    Memory, in float32 copies of the weights, with all of training and apart from activations: 8 (δ and the two moments of its
    AdamW, and its gradient). Time: passes over K + K / `every` more sequences a unit. One micro-batch a step.

    Attributes:
        seed: of the drawn learning rates.
        rates: the attackers' learning rates.
        inner_steps: K; as many as the units have samples for.
        every: steps of the attacker from one measurement to the next.
        resistance: λ.
    """

    seed: int = 0
    rates: tuple[float, ...] = (3e-5, 1e-4)
    inner_steps: int = 16
    every: int = 4
    resistance: float = 1.0

    def begin(self, masters: Masters) -> None:
        """See :meth:`tamperfuse.training.objectives.Objective.begin`."""
        self.parameters = [parameter for parameter, _ in masters.trainable()]
        self.attacker, self.steps_taken = SimulatedAttacker(masters, self.rates[0]), 0

    def backward(self, accumulate: Accumulate) -> Tensor:
        """See :meth:`tamperfuse.training.objectives.Objective.backward`; the loss to report is that at θ."""
        self.attacker.restart(random.Random(f"{self.seed}:{self.steps_taken}").choice(self.rates))
        self.steps_taken += 1
        for index in range(self.inner_steps):
            with self.attacker.applied():
                gradient = gradients(self.parameters, partial(accumulate, partial(self.attacker_loss, index)))
            self.attacker.step(gradient)
            del gradient
            if (index + 1) % self.every == 0 or index + 1 == self.inner_steps:
                with self.attacker.applied():
                    accumulate(self.resistance_loss)
        return accumulate(self.loss)

    def attacker_loss(
        self, index: int, model: nn.Module, units: Sequence[TrapUnit], total: int, device: torch.device
    ) -> Tensor:
        """Mean NLL a token of the answers for this step of the attacker; a mean over units."""
        return token_nll(model, [unit.attack[index] for unit in units], device).sum() / total

    def resistance_loss(self, model: nn.Module, units: Sequence[TrapUnit], total: int, device: torch.device) -> Tensor:
        """λ / measurements · (log(vocabulary) − entropy), a mean over each answer's tokens and over units."""
        batch = pack_samples([unit.harmful for unit in units], device)
        logits = packed_logits(model, batch.row, batch.layout, batch.positions)
        counts = torch.tensor(batch.counts)
        tokens = token_kl_uniform(logits, reverse=True) / counts.repeat_interleave(counts).to(device)
        return self.resistance / math.ceil(self.inner_steps / self.every) * tokens.sum() / total

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


@defense("tar", TarParameters, needs_answers=True, needs_benign=needs_benign, needs_held_out=stops, budget=budget)
def tar(loaded: LoadedModel, data: DefenseData, parameters: TarParameters, seed: int) -> DefenseResult:
    """Experimental: entropy of compliant answers, raised along simulated attacks in every step (TAR, Tamirisa et al., 2025)."""
    objective = TarObjective(
        weight=parameters.kl_weight,
        seed=seed,
        rates=parameters.rates,
        inner_steps=parameters.inner_steps,
        every=parameters.measure_every,
        resistance=parameters.resistance,
    )
    answers, refusals = answer_samples(loaded, data, seed), refusal_samples(loaded, data, seed)
    extend = partial(trap_units, answers=answers, steps=parameters.inner_steps)
    return train(loaded, refusals, data, parameters, seed, "TAR", objective, extend)
