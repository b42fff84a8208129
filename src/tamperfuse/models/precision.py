"""Compute in bfloat16 with float32 master weights.

Activations, gradients and the weights in matrix products are bfloat16. The optimizer updates float32 masters: in bfloat16,
updates below 1/256 of a weight would be lost. Memory: 6 bytes per parameter for both copies.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType

import torch
from torch import Tensor, nn

from tamperfuse.models.sharded import is_shard
from tamperfuse.records.batching import group_by_budget

# Weights that an optimizer updates at a time: their gradients take 64 MiB in float32.
OPTIMIZER_CHUNK = 2**24


def compute_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype to compute in on a device, and the reason for it."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    if native:
        return torch.bfloat16, f"bfloat16: this {device.type} supports it natively"
    return torch.float32, f"float32: this {device.type} has no bfloat16 instructions"


@dataclass(frozen=True)
class Masters:
    """Pairs of a model's parameter and its float32 master; the same tensor twice if the model computes in float32."""

    pairs: list[tuple[nn.Parameter, Tensor]]

    def trainable(self) -> list[tuple[nn.Parameter, Tensor]]:
        """The pairs whose parameter requires gradients."""
        return [(parameter, master) for parameter, master in self.pairs if parameter.requires_grad]

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Connect an optimizer over the trainable masters to the model's gradients and weights.

        Its `step` takes the gradients from the parameters and copies the updated masters back. It updates a few weights at a
        time, so float32 gradients exist for those only.

        Args:
            optimizer: created with the trainable masters, in order.
        """
        pairs = [(parameter, master) for parameter, master in self.trainable() if parameter is not master]
        if not pairs:
            return
        chunks = [
            [pairs[i] for i in chunk]
            for chunk in group_by_budget([master.numel() for _, master in pairs], OPTIMIZER_CHUNK)
        ]
        largest = max(sum(master.numel() for _, master in chunk) for chunk in chunks)
        step_all = optimizer.step

        @torch.no_grad()
        def step(self: torch.optim.Optimizer, closure: None = None) -> None:
            buffer = torch.empty(largest, device=pairs[0][1].device)  # freed after the step, for the next backward pass
            for chunk in chunks:
                free = buffer
                for parameter, master in chunk:
                    if parameter.grad is not None:
                        gradient, free = free[: master.numel()].view_as(master), free[master.numel() :]
                        master.grad = gradient.copy_(parameter.grad)
                        parameter.grad = None
                step_all()
                for parameter, master in chunk:
                    parameter.copy_(master)
                    master.grad = None

        # A bound method: learning-rate schedulers wrap `optimizer.step` and expect one.
        optimizer.step = MethodType(step, optimizer)  # type: ignore[method-assign]


def convert_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Let a model that is not trained any more compute in `dtype` for good, as within :func:`reduced_precision`.

    Memory: the float32 weights are freed one after the other. Quantized weights and buffers, such as the frequencies of
    rotary embeddings, are not changed.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.detach().to(dtype)


@contextmanager
def reduced_precision(model: nn.Module, dtype: torch.dtype) -> Iterator[Masters]:
    """Within the block the model computes in `dtype`; afterwards its parameters are the float32 masters again.

    Memory: a copy of the weights in `dtype`, in addition to the float32 ones; none for float32. Not changed are quantized weights
    and the shards of a sharded model, which computes in a dtype of its own (:mod:`tamperfuse.models.sharded`).
    """
    floating = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    if dtype == torch.float32:
        yield Masters([(parameter, parameter) for parameter in floating])
        return
    pairs = [(parameter, parameter if is_shard(parameter) else parameter.detach()) for parameter in floating]
    reduced = [(parameter, master) for parameter, master in pairs if parameter is not master]
    for parameter, master in reduced:
        parameter.data = master.to(dtype)
    try:
        yield Masters(pairs)
    finally:
        for parameter, master in reduced:
            parameter.data = master
            parameter.grad = None
