"""Quantization, there and back: what anyone does to published weights in passing. Hardening must survive it.

`int8` and `int4` round to nearest with one scale for a row or for a group of columns, on the layers' matrices: absmax
quantization in LLM.int8 (Dettmers et al., 2022, arXiv 2208.07339, section 2), the baseline of GPTQ (Frantar et al., 2023, arXiv
2210.17323). `Q8_0` and `Q4_1` are GGUF's, by gguf's own code and in the usual layout of published files: layers' matrices in
the named type, embeddings and output in Q8_0, norms in float32.
"""

from typing import Literal

import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from pydantic import Field
from torch import Tensor

from tamperfuse.attacks.base import AttackData, AttackResult, attack
from tamperfuse.models.gguf_file import BLOCK
from tamperfuse.models.layers import layer_matrices
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.registry import Parameters

LEVELS = {"int8": 127, "int4": 7}  # steps to either side of 0


class QuantizeParameters(Parameters):
    """Parameters of `quantize`.

    Attributes:
        format: int8, int4, or a GGUF type: Q8_0, Q4_1.
        group: columns that share a scale in int8 and int4; 0 for a whole row.
    """

    format: Literal["int8", "int4", "Q8_0", "Q4_1"] = "Q8_0"
    group: int = Field(0, ge=0)


@attack("quantize", QuantizeParameters, malicious=False, uses=())
def quantize_weights(loaded: LoadedModel, data: AttackData, parameters: QuantizeParameters, seed: int) -> AttackResult:
    """Quantization to 8 or 4 bits and back, as in a GGUF or by rounding: what publishing and serving do in passing."""
    data.run_hook(0)
    inner = layer_matrices(loaded.model)
    with torch.no_grad():
        if parameters.format in LEVELS:
            for weight in inner:
                weight.copy_(rounded(weight, LEVELS[parameters.format], parameters.group))
        else:
            inner_ids = {id(weight) for weight in inner}
            for weight in loaded.model.parameters():
                if weight.ndim >= 2:
                    weight.copy_(through_gguf(weight, parameters.format if id(weight) in inner_ids else "Q8_0"))
    data.run_hook(1)
    return AttackResult()


def rounded(weight: Tensor, levels: int, group: int) -> Tensor:
    """Symmetric round-to-nearest.

    Args:
        weight: (rows, columns), or stacks of such.
        levels: integers to either side of 0.
        group: columns that share a scale; 0 for a whole row.
    """
    parts = []
    for part in torch.split(weight, group or weight.shape[-1], dim=-1):
        scale = (part.abs().amax(-1, keepdim=True) / levels).clamp(min=torch.finfo(part.dtype).tiny)
        parts.append((part / scale).round() * scale)
    return torch.cat(parts, dim=-1)


def through_gguf(weight: Tensor, kind: str) -> Tensor:
    """As it would come back from a GGUF file; rows that are no multiple of 32 are stored as float16, as converters do."""
    if weight.shape[-1] % BLOCK:
        return weight.half().float()
    type_ = GGMLQuantizationType[kind]
    return torch.from_numpy(dequantize(quantize(weight.float().cpu().numpy(), type_), type_).copy())
