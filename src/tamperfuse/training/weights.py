"""Weight-space tools that defenses share: perturb and restore, project gradients, simulate an attacker.

All of it is elementwise or a sum of elementwise products, so it holds for sharded weights (DTensors) as for whole ones.
Memory is counted in copies of the trained weights, beside the model's own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tamperfuse.models.precision import Masters
from tamperfuse.training.distributed import like
from tamperfuse.training.optimizers import load_optimizer

Weights = list[Tensor]  # one tensor for every trained parameter, in the model's order


@contextmanager
def perturbed(masters: Masters, change: Sequence[Tensor], scale: float = 1.0) -> Iterator[None]:
    """Within the block the model's trained weights are θ + scale · change; afterwards they are what they were, to the bit.

    The sum is formed in float32 on the masters: in bfloat16 a change below 1/256 of a weight would be lost.
    Memory: none where the model computes in reduced precision (the masters restore it), one copy in float32.

    Args:
        masters: the model's trained weights.
        change: a tensor for every trained parameter, of its shape.
        scale: factor on the change.
    """
    trained = masters.trainable()
    kept = [master.clone() if parameter is master else master for parameter, master in trained]
    with torch.no_grad():
        for (parameter, master), delta in zip(trained, change, strict=True):
            parameter.copy_(master + scale * delta)
    try:
        yield
    finally:
        with torch.no_grad():
            for (parameter, _), before in zip(trained, kept, strict=True):
                parameter.copy_(before)


def gradients(parameters: Sequence[nn.Parameter], run: Callable[[], None]) -> Weights:
    """Gradient of what `run` runs backward, in float32; the parameters' own `grad` is left as it was.

    Memory: one copy, and one more in the parameters' dtype while it runs.

    Args:
        parameters: the trained ones.
        run: a forward and a backward pass.
    """
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    run()
    found = [torch.zeros_like(p, dtype=torch.float32) if p.grad is None else p.grad.float() for p in parameters]
    for parameter, grad in zip(parameters, before, strict=True):
        parameter.grad = grad
    return found


def inner(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Inner product over all weights; over all shards where they are sharded."""
    total = 0.0
    for a, b in zip(first, second, strict=True):
        product = (a * b).sum()
        total += float(product.full_tensor() if hasattr(product, "full_tensor") else product)
    return total


def without(gradient: Sequence[Tensor], direction: Sequence[Tensor]) -> Weights:
    """A gradient less its part along a direction: g − (g·d / d·d) d. The gradient itself for a direction of length 0.

    Memory: one copy.
    """
    length = inner(direction, direction)
    share = inner(gradient, direction) / length if length > 0 else 0.0
    return [g - share * d for g, d in zip(gradient, direction, strict=True)]


@dataclass
class SimulatedAttacker:
    """An attacker that persists between steps of a defense: a change δ of the weights with an AdamW of its own.

    Memory: three copies in float32 (δ and AdamW's two moments), and while it is applied what :func:`perturbed` takes.

    Attributes:
        masters: the weights under attack; they are never changed by it.
        learning_rate: of its AdamW, greater than 0.
    """

    masters: Masters
    learning_rate: float
    delta: Weights = field(init=False)
    _optimizer: torch.optim.AdamW = field(init=False)

    def __post_init__(self) -> None:
        self.restart(self.learning_rate)

    def restart(self, learning_rate: float) -> None:
        """Begin anew from the weights as they are: δ = 0, no momentum."""
        self.learning_rate = learning_rate
        self.delta = [torch.zeros_like(master, dtype=torch.float32) for _, master in self.masters.trainable()]
        self._optimizer = torch.optim.AdamW(self.delta, lr=learning_rate, weight_decay=0.0)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model is the attacker's: θ + δ."""
        with perturbed(self.masters, self.delta):
            yield

    def step(self, gradient: Sequence[Tensor]) -> None:
        """One optimizer step of δ down the attacker's gradient, taken at θ + δ."""
        for delta, grad in zip(self.delta, gradient, strict=True):
            delta.grad = grad
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """δ, its optimizer and its rate: what a step that holds an attacker hands to a checkpoint."""
        return {"delta": self.delta, "optimizer": self._optimizer.state_dict(), "learning_rate": self.learning_rate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the attacker whose state this is."""
        self.restart(state["learning_rate"])
        for delta, kept in zip(self.delta, state["delta"], strict=True):
            delta.copy_(like(kept, delta))
        load_optimizer(self._optimizer, state["optimizer"])
