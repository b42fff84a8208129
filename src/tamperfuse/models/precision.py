"""Compute in bfloat16, keep weights in float32.

Activations, gradients and the weights that matrices are multiplied with are bfloat16; the optimizer works on float32
masters, without which updates below 1/256 of a weight would be lost. Memory: 6 bytes a parameter for both copies.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType

import torch
from torch import Tensor, nn

from tamperfuse.records.batching import budgeted

# Weights that an optimizer steps at a time: their gradient takes 64 MiB in float32.
STEPPED = 2**24


def compute_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype to compute in on a device, and why."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported()
    else:
        fast = device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    if fast:
        return torch.bfloat16, f"bfloat16: this {device.type} multiplies it natively"
    return torch.float32, f"float32: this {device.type} has no bfloat16 instructions"


@dataclass(frozen=True)
class Masters:
    """Parameters of a model beside their float32 masters; the same tensors where the model computes in float32."""

    pairs: list[tuple[nn.Parameter, Tensor]]

    def trainable(self) -> list[tuple[nn.Parameter, Tensor]]:
        """The pairs that an optimizer steps."""
        return [(parameter, master) for parameter, master in self.pairs if parameter.requires_grad]

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Let an optimizer that was built on the trainable masters read the model's gradients and write its weights.

        It steps a few weights at a time, whose gradients exist in float32 just then: the whole step needs no memory for
        all of them, nor the time to fill it.
        """
        pairs = [(parameter, master) for parameter, master in self.trainable() if parameter is not master]
        if not pairs:
            return
        parts = [[pairs[i] for i in part] for part in budgeted([master.numel() for _, master in pairs], STEPPED)]
        largest = max(sum(master.numel() for _, master in part) for part in parts)
        step_all = optimizer.step

        @torch.no_grad()
        def step(self: torch.optim.Optimizer, closure: None = None) -> None:
            room = torch.empty(largest, device=pairs[0][1].device)  # not kept: the backward pass needs the memory
            for part in parts:
                free = room
                for parameter, master in part:
                    if parameter.grad is not None:
                        own, free = free[: master.numel()].view_as(master), free[master.numel() :]
                        master.grad = own.copy_(parameter.grad)
                        parameter.grad = None
                step_all()
                for parameter, master in part:
                    parameter.copy_(master)
                    master.grad = None

        # A method of the instance: schedules of the learning rate look for one.
        optimizer.step = MethodType(step, optimizer)  # type: ignore[method-assign]


@contextmanager
def reduced_precision(model: nn.Module, dtype: torch.dtype) -> Iterator[Masters]:
    """Within the block the model computes in `dtype`; afterwards it holds its masters, in float32, again.

    Memory: one copy of the weights in `dtype` beside the float32 ones. Nothing is copied for float32, and what is quantized
    stays as it is.
    """
    floating = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    if dtype == torch.float32:
        yield Masters([(parameter, parameter) for parameter in floating])
        return
    pairs = [(parameter, parameter.detach()) for parameter in floating]
    for parameter, master in pairs:
        parameter.data = master.to(dtype)
    try:
        yield Masters(pairs)
    finally:
        for parameter, master in pairs:
            parameter.data = master
            parameter.grad = None
