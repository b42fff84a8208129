"""Quantization and dequantization of the weights. Many users quantize published weights, so hardening should survive it.

`int8` and `int4` round the matrices of the decoder layers to nearest, with one scale per row or per group of columns: absmax
quantization of LLM.int8 (Dettmers et al., 2022, arXiv 2208.07339, section 2), the baseline of GPTQ (Frantar et al., 2023, arXiv
2210.17323). `Q8_0` and `Q4_1` are GGUF types, quantized by the gguf package in the usual layout of published files: matrices of
the decoder layers in the named type, embeddings and output in Q8_0, norms in float32.
"""

from typing import Literal

import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from pydantic import Field
from torch import Tensor

from tamperfuse.attacks.base import AttackData, AttackResult, attack
from tamperfuse.models.gguf_file import BLOCK
from tamperfuse.models.layers import layer_matrices, outputs_first
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.registry import Parameters

LEVELS = {"int8": 127, "int4": 7}  # largest integer


class QuantizeParameters(Parameters):
    """Parameters of `quantize`.

    Attributes:
        format: int8, int4, or a GGUF type (Q8_0, Q4_1).
        group: number of columns that share a scale in int8 and int4; 0 for one scale per row.
    """

    format: Literal["int8", "int4", "Q8_0", "Q4_1"] = "Q8_0"
    group: int = Field(0, ge=0)


@attack("quantize", QuantizeParameters, malicious=False, uses=())
def quantize_weights(loaded: LoadedModel, data: AttackData, parameters: QuantizeParameters, seed: int) -> AttackResult:
    """Quantization to 8 or 4 bits and dequantization, by rounding to nearest or as in a GGUF file; no training."""
    data.run_hook(0)
    inner = {id(weight) for weight in layer_matrices(loaded.model)}
    weights = {name: weight for name, weight in loaded.model.named_parameters() if weight.ndim >= 2}
    with torch.no_grad():
        for name, weight in outputs_first(loaded.model, weights).items():
            in_layer = id(weights[name]) in inner
            if parameters.format not in LEVELS:
                weight.copy_(through_gguf(weight, parameters.format if in_layer else "Q8_0"))
            elif in_layer:
                weight.copy_(rounded(weight, LEVELS[parameters.format], parameters.group))
    data.run_hook(1)
    return AttackResult()


def rounded(weight: Tensor, levels: int, group: int) -> Tensor:
    """Symmetric rounding to nearest.

    Args:
        weight: (..., rows, columns).
        levels: the largest integer; values are rounded to −levels, …, levels times the scale.
        group: number of columns that share a scale; 0 for one scale per row.

    Returns:
        The dequantized weight, of the same shape and dtype.
    """
    groups = []
    for columns in torch.split(weight, group or weight.shape[-1], dim=-1):
        scale = (columns.abs().amax(-1, keepdim=True) / levels).clamp(min=torch.finfo(columns.dtype).tiny)
        groups.append((columns / scale).round() * scale)
    return torch.cat(groups, dim=-1)


def through_gguf(weight: Tensor, kind: str) -> Tensor:
    """Quantize a weight as in a GGUF file and dequantize it.

    Args:
        weight: (..., rows, columns). If the number of columns is not a multiple of 32, it is stored in float16, as converters do.
        kind: GGUF type.

    Returns:
        The dequantized weight in float32, of the same shape.
    """
    if weight.shape[-1] % BLOCK:
        return weight.half().float()
    type_ = GGMLQuantizationType[kind]
    return torch.from_numpy(dequantize(quantize(weight.float().cpu().contiguous().numpy(), type_), type_).copy())
