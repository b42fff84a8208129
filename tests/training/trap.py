"""A small weight-space step: the loss is lowered at the weights and raised where a persistent attacker stands."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tamperfuse.models.chat import Sample
from tamperfuse.models.precision import Masters
from tamperfuse.training.objectives import Backward, SupervisedObjective
from tamperfuse.training.weights import SimulatedAttacker, gradients, without


@dataclass
class Trap:
    """Draws a random number in every step, so that a resumed run shows whether its generators went on."""

    weight: float = 0.2
    attacker: SimulatedAttacker = field(init=False)
    masters: Masters = field(init=False)

    def begin(self, masters: Masters) -> None:
        self.masters, self.attacker = masters, SimulatedAttacker(masters, learning_rate=1e-3)

    def backward(
        self, model: nn.Module, samples: Sequence[Sample], total: int, backward: Backward, device: torch.device
    ) -> Tensor:
        parameters = [parameter for parameter, _ in self.masters.trainable()]
        plain = SupervisedObjective()
        with self.attacker.applied():
            taken = gradients(parameters, lambda: plain.backward(model, samples, total, backward, device))
        self.attacker.step(taken)
        loss = plain.backward(model, samples, total, backward, device)
        kept = without(taken, [p.grad.float() for p in parameters if p.grad is not None])
        share = self.weight * (0.5 + float(torch.rand(())))
        for parameter, change in zip(parameters, kept, strict=True):
            assert parameter.grad is not None
            parameter.grad -= (share * change).to(parameter.grad.dtype)
        return loss

    def state_dict(self) -> dict[str, Any]:
        return self.attacker.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.attacker.load_state_dict(state)
