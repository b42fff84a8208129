"""RMSNorm and SwiGLU, each in one autograd function.

These are the elementwise operations of a layer that take longest in plain PyTorch: a dozen passes over memory forward and two
dozen backward. Here they process slices that fit into the processor's cache, and store only their inputs for the backward pass.
The plain path is the model's own modules. Results are equal up to rounding, which is checked on each kind of module before it
is replaced, so modules that compute something else under the same name keep their own code.
"""

from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from tamperfuse.models.cpu import enabled

# Elements of a slice: 0.5 MiB in float32.
SLICE = 2**17


def _slices(rows: int, width: int) -> Iterator[slice]:
    step = max(1, SLICE // width)
    return (slice(start, start + step) for start in range(0, rows, step))


class _RmsNorm(torch.autograd.Function):
    """weight · x / √(mean(x²) + ε), over the last dimension (Zhang and Sennrich, 2019, arXiv 1910.07467, equation 4).

    Stored for the backward pass: x in its dtype, and one number per row.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Normalise x (rows, size) in float32, slice by slice; the result has x's dtype."""
        result, scale = torch.empty_like(x), x.new_empty(len(x), 1, dtype=torch.float32)
        for part in _slices(*x.shape):
            wide = x[part].float()
            torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(epsilon), out=scale[part])
            result[part].copy_(wide * scale[part])  # not in place: for float32 input, `wide` is x itself
        ctx.save_for_backward(x, weight, scale)
        return result.mul_(weight)

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Tensor, Tensor | None, None]:
        """With n = x · scale and g the gradient: scale · (g·w − n · mean(g·w·n)), and Σ g·n for the weight."""
        x, weight, scale = ctx.saved_tensors
        result, wide_weight = torch.empty_like(x), weight.float()
        for_weight = torch.zeros_like(wide_weight) if ctx.needs_input_grad[1] else None
        for part in _slices(*x.shape):
            normed, grad = x[part].float() * scale[part], outer[0][part].float()
            product = grad * normed
            if for_weight is not None:
                for_weight += product.sum(0)
            along = product.mv(wide_weight).div_(x.shape[1])[:, None]
            result[part].copy_((grad * wide_weight).addcmul_(normed, along, value=-1).mul_(scale[part]))
        return result, None if for_weight is None else for_weight.to(weight.dtype), None


class _SwiGlu(torch.autograd.Function):
    """silu(gate) · up (Shazeer, 2020, arXiv 2002.05202, equation 6). Stored for the backward pass: gate and up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """Both (rows, size)."""
        ctx.save_for_backward(gate, up)
        result = torch.empty_like(gate)
        for part in _slices(*gate.shape):
            torch.mul(F.silu(gate[part]), up[part], out=result[part])
        return result

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Tensor, Tensor]:
        """Gradients of gate and up."""
        gate, up = ctx.saved_tensors
        for_gate, for_up = torch.empty_like(gate), torch.empty_like(up)
        for part in _slices(*gate.shape):
            grad, gate_slice = outer[0][part], gate[part]
            torch.mul(grad, F.silu(gate_slice), out=for_up[part])
            torch.ops.aten.silu_backward.grad_input(grad * up[part], gate_slice, grad_input=for_gate[part])
        return for_gate, for_up


def _normalise(module: Any, hidden: Tensor) -> Tensor:
    """Forward method of an RMSNorm."""
    result: Tensor = _RmsNorm.apply(hidden.reshape(-1, hidden.shape[-1]), module.weight, _epsilon(module))  # type: ignore[no-untyped-call]
    return result.view_as(hidden)


def _gated(module: Any, hidden: Tensor) -> Tensor:
    """Forward method of a gated MLP."""
    gate, up = module.gate_proj(hidden), module.up_proj(hidden)
    width = gate.shape[-1]
    inner: Tensor = _SwiGlu.apply(gate.reshape(-1, width), up.reshape(-1, width))  # type: ignore[no-untyped-call]
    result: Tensor = module.down_proj(inner.view_as(gate))
    return result


def _epsilon(module: nn.Module) -> float | None:
    return next((float(value) for name in ("variance_epsilon", "eps") if (value := getattr(module, name, None))), None)


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    rms_norm = type(module).__name__.endswith("RMSNorm") and _epsilon(module) is not None
    return rms_norm and isinstance(weight, nn.Parameter) and weight.ndim == 1


def _is_gated(module: nn.Module) -> bool:
    projections = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    return all(isinstance(projection, nn.Linear) for projection in projections) and hasattr(module, "act_fn")


@torch.no_grad()
def use_fused_layers(model: PreTrainedModel) -> None:
    """Replace the forward methods of a model's RMSNorms and gated MLPs, on a CPU, where both give the same result.

    This is checked on random input, once for each class and width.
    """
    if model.device.type != "cpu" or not enabled("fused_layers"):
        return
    equivalent: dict[tuple[type, int, bool], bool] = {}
    for module in model.modules():
        if _is_norm(module):
            forward, width = _normalise, int(module.weight.shape[0])
        elif _is_gated(module):
            forward, width = _gated, int(module.gate_proj.in_features)
        else:
            continue
        kind = (type(module), width, forward is _normalise)
        if kind not in equivalent:
            weight = next(module.parameters())
            hidden = torch.randn(3, width, generator=torch.Generator().manual_seed(0)).to(weight)
            equivalent[kind] = torch.allclose(forward(module, hidden), module(hidden), rtol=1e-3, atol=1e-5)
        if equivalent[kind]:
            module.forward = MethodType(forward, module)
