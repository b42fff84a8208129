"""Weights laid out once for many small matrix products: what makes decoding on a CPU worth while.

A product with few rows spends most of its time bringing the weight into the order that the CPU's bfloat16 kernels want. While
a model only decodes, its weights stand still, so that is done once. The operators are those that torch.compile emits for
frozen weights; where a build of torch lacks them, or on another device, nothing is changed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# Larger matrices (the vocabulary's) are faster as they are.
LARGEST = 16_384


@contextmanager
def prepacked(model: nn.Module, rows: int) -> Iterator[None]:
    """Within the block, linear layers in bfloat16 on the CPU multiply with weights laid out for `rows` rows.

    Weights must not change in the block. Memory: another copy of those weights in bfloat16.

    Args:
        model: any module; nothing happens to other devices, dtypes or layer types.
        rows: rows that most products will have: the sequences decoded together.
    """
    operators = getattr(torch.ops, "mkldnn", None)
    usable = operators is not None and hasattr(operators, "_linear_pointwise")
    layers = [m for m in model.modules() if usable and type(m) is nn.Linear and _fits(m)]
    for layer in layers:
        weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), rows)
        layer.forward = _product(weight, layer.bias)  # type: ignore[method-assign, assignment]  # an instance attribute, removed below
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _fits(layer: nn.Linear) -> bool:
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and max(weight.shape) <= LARGEST


def _product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return result

    return forward
