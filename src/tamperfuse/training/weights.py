"""Weight-space tools for objectives: perturb and restore weights, add up gradients, simulate an attacker.

They work on sharded weights (DTensors) as well: operations are elementwise or sums of elementwise products, and a LoRA adapter
is whole on every process. They are meant for :meth:`tamperfuse.training.objectives.Objective.backward`, which runs in one
thread. Memory is given in copies of the trained weights, in addition to the model.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tamperfuse.models.precision import Masters
from tamperfuse.models.sharded import unsharded
from tamperfuse.training.distributed import placed_like
from tamperfuse.training.optimizers import load_optimizer

Weights = list[Tensor]  # one tensor for every trained parameter, in the model's order


@contextmanager
def perturbed(masters: Masters, change: Iterable[Tensor], scale: float = 1.0) -> Iterator[None]:
    """Within the block the model's trained weights are θ + scale · change; afterwards they are restored bit by bit.

    The sum is computed in float32 from the masters: in bfloat16 a change below 1/256 of a weight would be lost.
    Memory: none if the model computes in reduced precision (the masters restore it); one copy if it computes in float32.

    Args:
        masters: the model's trained weights.
        change: one tensor for each trained parameter, of its shape.
        scale: factor for the change.
    """
    trained = masters.trainable()
    saved = [master.clone() if parameter is master else master for parameter, master in trained]
    try:
        with torch.no_grad():
            for (parameter, master), delta in zip(trained, change, strict=True):
                parameter.copy_(master + scale * delta)
        yield
    finally:
        with torch.no_grad():
            for (parameter, _), weight in zip(trained, saved, strict=True):
                parameter.copy_(weight)


def gradients(
    parameters: Sequence[nn.Parameter], run: Callable[[], object], dtype: torch.dtype | None = torch.float32
) -> Weights:
    """The gradients that `run` accumulates; each parameter's `grad` is afterwards what it was before.

    Memory: one copy in `dtype`.

    Args:
        parameters: the trained parameters.
        run: a forward and a backward pass, such as `lambda: accumulate(self.loss)` in an objective's `backward`.
        dtype: of the result; None for that of each parameter.
    """
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    run()
    result: Weights = []
    for parameter, grad in zip(parameters, before, strict=True):
        taken = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        result.append(taken.detach().to(dtype or taken.dtype))
        parameter.grad = grad
    return result


@torch.no_grad()
def add_to_gradients(parameters: Sequence[nn.Parameter], change: Sequence[Tensor], scale: float = 1.0) -> None:
    """Add scale · change to each parameter's `grad`, in its dtype.

    Memory: none, except for parameters that have no `grad` yet.

    Args:
        parameters: the trained parameters.
        change: one tensor for each, of its shape.
        scale: factor for the change.
    """
    for parameter, part in zip(parameters, change, strict=True):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad.add_(part, alpha=scale)


def inner(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Inner product over all weights, and over all shards of sharded weights."""
    products = []
    for a, b in zip(first, second, strict=True):
        converted = a.float()
        products.append((converted * (converted if b is a else b.float())).sum())
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in products]
    # Read from the device once: a transfer for each weight would take longer than the products on a GPU.
    return float(torch.stack(whole).sum(dtype=torch.float64)) if whole else 0.0


@dataclass
class SimulatedAttacker:
    """An attacker simulated across the steps of a defense: a change δ of the weights, optimized by an AdamW of its own.

    Memory: three copies in float32 (δ and AdamW's two moments).

    Attributes:
        masters: the attacked weights; modified within :meth:`applied` only.
        learning_rate: of AdamW, greater than 0.
        delta: δ.
    """

    masters: Masters
    learning_rate: float
    delta: Weights = field(init=False)
    _adamw: torch.optim.AdamW = field(init=False)

    def __post_init__(self) -> None:
        self.restart(self.learning_rate)

    def restart(self, learning_rate: float) -> None:
        """Start again from the current weights: δ = 0, a new optimizer."""
        self.learning_rate = learning_rate
        self.delta = [torch.zeros_like(master, dtype=torch.float32) for _, master in self.masters.trainable()]
        self._adamw = torch.optim.AdamW(self.delta, lr=learning_rate, weight_decay=0.0, fused=True)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model's weights are θ + δ; afterwards they are θ again, bit by bit.

        Memory: none. Where the model computes in float32, θ is kept in the memory of δ meanwhile, and δ is afterwards
        (θ + δ) − θ as rounded, the change that was in effect; :attr:`delta` must not be used within the block.
        """
        trained = list(zip(self.masters.trainable(), self.delta, strict=True))
        with torch.no_grad():
            for (parameter, master), delta in trained:
                changed = master + delta
                if parameter is master:
                    delta.copy_(master)
                parameter.copy_(changed)
        try:
            yield
        finally:
            with torch.no_grad():
                for (parameter, master), delta in trained:
                    if parameter is master:
                        change = parameter - delta
                        parameter.copy_(delta)
                        delta.copy_(change)
                    else:
                        parameter.copy_(master)

    @torch.no_grad()
    def step(self, gradient: Sequence[Tensor]) -> None:
        """One step of AdamW on δ.

        Args:
            gradient: of the attacker's loss at θ + δ, one tensor for each trained parameter, in float32.
        """
        for delta, grad in zip(self.delta, gradient, strict=True):
            delta.grad = grad
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """δ, its optimizer and its learning rate, for the checkpoints of an objective that has an attacker."""
        return {"delta": self.delta, "optimizer": self._adamw.state_dict(), "learning_rate": self.learning_rate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that :meth:`state_dict` returned."""
        self.restart(state["learning_rate"])
        for delta, saved in zip(self.delta, state["delta"], strict=True):
            delta.copy_(placed_like(saved, delta))
        load_optimizer(self._adamw, state["optimizer"])


@dataclass
class LoraAttacker:
    """An attacker with a LoRA adapter, simulated across the steps of a defense: δ = alpha / rank · B A for some matrices.

    As in peft, A is drawn from the uniform distribution on ±1/√columns and B is 0 at first (Hu et al., 2021, arXiv 2106.09685).
    AdamW moves both, by the gradients that follow from that of the matrices at θ + δ. If the weights are sharded, every process
    holds the whole adapter and gathers one gradient after the other in :meth:`step`.

    Memory: A, B and AdamW's moments, 3 · rank · (rows + columns) numbers a matrix; within :meth:`applied` also a copy of the
    matrices if the model computes in float32.

    Attributes:
        masters: the attacked weights; modified within :meth:`applied` only.
        learning_rate: of AdamW, greater than 0.
        matrices: positions among the trained parameters of the matrices that have an adapter.
        seed: of A.
        rank: of δ.
        alpha: δ is scaled by alpha / rank.
        factors: (B, A) for each matrix (rows, columns): (rows, rank) and (rank, columns). A Conv1D (GPT-2) stores its matrix as
            (in, out), so that there, unlike in peft, the factor on the side of the outputs is drawn and the other one is 0.
    """

    masters: Masters
    learning_rate: float
    matrices: Sequence[int]
    seed: int
    rank: int = 16
    alpha: float = 32.0
    factors: list[tuple[Tensor, Tensor]] = field(init=False)
    _adamw: torch.optim.AdamW = field(init=False)

    def __post_init__(self) -> None:
        trained = self.masters.trainable()
        self._adapted = Masters([trained[i] for i in self.matrices])
        generator = torch.Generator().manual_seed(self.seed)
        self.factors = []
        for _, master in self._adapted.pairs:
            rows, columns = master.shape
            a = (2 * torch.rand(self.rank, columns, generator=generator) - 1) / columns**0.5
            self.factors.append((torch.zeros(rows, self.rank, device=master.device), a.to(master.device)))
        weights = [factor for pair in self.factors for factor in pair]
        self._adamw = torch.optim.AdamW(weights, lr=self.learning_rate, weight_decay=0.0, fused=True)

    @property
    def delta(self) -> Weights:
        """δ of every trained parameter, 0 for those without an adapter. Memory: one copy."""
        change = [torch.zeros_like(master, dtype=torch.float32) for _, master in self.masters.trainable()]
        for i, (b, a) in zip(self.matrices, self.factors, strict=True):
            change[i] = placed_like(self.alpha / self.rank * (b @ a), change[i])
        return change

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model's weights are θ + δ; afterwards they are θ again, bit by bit."""
        products = (placed_like(b @ a, m) for (b, a), (_, m) in zip(self.factors, self._adapted.pairs, strict=True))
        with perturbed(self._adapted, products, self.alpha / self.rank):
            yield

    @torch.no_grad()
    def step(self, gradient: Sequence[Tensor]) -> None:
        """One step of AdamW on A and B.

        Args:
            gradient: of the attacker's loss at θ + δ, one tensor for each trained parameter, in any dtype.
        """
        for i, (b, a) in zip(self.matrices, self.factors, strict=True):
            complete = unsharded(gradient[i]).float()
            b.grad = self.alpha / self.rank * (complete @ a.t())
            a.grad = self.alpha / self.rank * (b.t() @ complete)
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """A, B and their optimizer, for the checkpoints of an objective that has an attacker."""
        return {"factors": self.factors, "optimizer": self._adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that :meth:`state_dict` returned, of an attacker with the same learning rate."""
        for pair, saved in zip(self.factors, state["factors"], strict=True):
            for factor, value in zip(pair, saved, strict=True):
                factor.copy_(value)
        load_optimizer(self._adamw, state["optimizer"])
