"""A LoRA layer on a CPU: the adapter's products are added to the base layer's output where it lies.

peft's Linear computes the same with separate passes to scale and to add, four over the layer's output and its gradient; in a
small model these take longer than the adapter's products.
"""

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear
from torch import Tensor, nn

from tamperfuse.models.cpu import enabled


def use_lora_linear(model: nn.Module) -> None:
    """Replace the forward method of peft's LoRA layers around `nn.Linear`, if the model is on a CPU.

    Other layers, such as those in 4 bits, keep peft's method.
    """
    if not enabled("lora_linear"):
        return
    for module in model.modules():
        if type(module) is not Linear or type(module.base_layer) is not nn.Linear:
            continue
        if module.base_layer.weight.device.type == "cpu":
            module.forward = MethodType(_forward, module)


def _forward(module: Any, x: Tensor) -> Tensor:
    """Forward method of peft's Linear with one adapter."""
    name, base = module.active_adapters[0], module.base_layer
    a, b, scale = module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]
    result: Tensor = _LoraLinear.apply(x.reshape(-1, x.shape[-1]), base.weight, base.bias, a, b, scale)  # type: ignore[no-untyped-call]
    return result.view(*x.shape[:-1], -1)


class _LoraLinear(torch.autograd.Function):
    """x Wᵀ + b + s (x Aᵀ) Bᵀ (Hu et al., 2021, arXiv 2106.09685, equation 3), W and b frozen.

    Stored for the backward pass: x and x Aᵀ.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """X (rows, in), weight (out, in), a (rank, in), b (out, rank) → (rows, out)."""
        inner = x @ a.t()
        ctx.save_for_backward(x, weight, a, b, inner)
        ctx.scale = scale
        return F.linear(x, weight, bias).addmm_(inner, b.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        """Gradients of x, a and b."""
        x, weight, a, b, inner = ctx.saved_tensors
        grad = outer[0]
        for_inner = (grad @ b).mul_(ctx.scale)
        for_x = (grad @ weight).addmm_(for_inner, a) if ctx.needs_input_grad[0] else None
        return for_x, None, None, for_inner.t() @ x, (inner.t() @ grad).mul_(ctx.scale).t(), None
