"""Compute in bfloat16, keep weights in float32.

Activations, gradients and the weights that matrices are multiplied with are bfloat16; the optimizer works on float32
masters, without which updates below 1/256 of a weight would be lost. Memory: 6 bytes a parameter for both copies.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


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
        """Let an optimizer that was built on the trainable masters read the model's gradients and write its weights."""
        pairs = [(parameter, master) for parameter, master in self.trainable() if parameter is not master]

        def fetch(*_: object) -> None:
            for parameter, master in pairs:
                master.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None

        def publish(*_: object) -> None:
            with torch.no_grad():
                for parameter, master in pairs:
                    parameter.copy_(master)
                    master.grad = None

        optimizer.register_step_pre_hook(fetch)
        optimizer.register_step_post_hook(publish)


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
