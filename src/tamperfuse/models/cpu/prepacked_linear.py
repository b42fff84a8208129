"""Linear layers whose weights are reordered once for many small matrix products; used for decoding.

In a product with few rows, most of the time goes into bringing the weight into the layout that the CPU's bfloat16 kernels need.
Weights do not change during decoding, so they are reordered once. The operators are those that torch.compile emits for frozen
weights. The plain path is `nn.Linear`, which remains where a build of torch lacks the operators, and on other devices.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tamperfuse.models.cpu import enabled

# Layers with a larger dimension (the output matrix) are faster with nn.Linear.
MAX_FEATURES = 16_384


@contextmanager
def prepacked(model: nn.Module, rows: int) -> Iterator[None]:
    """Within the block, bfloat16 linear layers on the CPU use reordered weights.

    Weights must not change in the block. Memory: a second copy of these weights in bfloat16.

    Args:
        model: any module; layers on other devices, of other dtypes or of other types are not changed.
        rows: expected number of rows of the inputs: the sequences that are decoded together.
    """
    operators = getattr(torch.ops, "mkldnn", None)
    usable = enabled("prepacked_linear") and operators is not None and hasattr(operators, "_linear_pointwise")
    layers = [m for m in model.modules() if usable and type(m) is nn.Linear and _can_prepack(m)]
    for layer in layers:
        weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), rows)
        layer.forward = _product(weight, layer.bias)  # type: ignore[method-assign, assignment]  # an instance attribute, removed below
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _can_prepack(layer: nn.Linear) -> bool:
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and max(weight.shape) <= MAX_FEATURES


def _product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return result

    return forward
