"""Quantized checkpoints: dequantized when they are loaded, where the library of their format is installed."""

from importlib.util import find_spec
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from tamperfuse.records.errors import UserError, first_line

# The module that reads a format, and the package that installs it; formats that are not here need none.
_LIBRARIES = {
    "aqlm": ("aqlm", "aqlm"),
    "auto-round": ("auto_round", "auto-round"),
    "awq": ("gptqmodel", "gptqmodel"),
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "bitsandbytes_4bit": ("bitsandbytes", "bitsandbytes"),
    "bitsandbytes_8bit": ("bitsandbytes", "bitsandbytes"),
    "compressed-tensors": ("compressed_tensors", "compressed-tensors"),
    "eetq": ("kernels", "kernels"),
    "fbgemm_fp8": ("fbgemm_gpu", "fbgemm-gpu"),
    "gptq": ("gptqmodel", "gptqmodel"),
    "hqq": ("hqq", "hqq"),
    "quanto": ("optimum.quanto", "optimum-quanto"),
    "quark": ("quark", "amd-quark"),
    "spqr": ("spqr_quant", "spqr-quant"),
    "torchao": ("torchao", "torchao"),
    "vptq": ("vptq", "vptq"),
}
# What makes transformers dequantize a format while it reads the weights.
_OPTIONS: dict[str, dict[str, Any]] = {
    "compressed-tensors": {"run_compressed": False},
    "fp8": {"dequantize": True},
    "mxfp4": {"dequantize": True},
    "mxfp8": {"dequantize": True},
}


def prepare_dequantization(config: PretrainedConfig, place: str) -> None:
    """Set a configuration so that a quantized checkpoint is dequantized; nothing for other checkpoints.

    Raises:
        UserError: the format is unknown, or its library is not installed.
    """
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return
    if not isinstance(quantization, dict):
        quantization = quantization.to_dict() if hasattr(quantization, "to_dict") else {}
    method = str(quantization.get("quant_method") or _bitsandbytes(quantization))
    if method not in {*AUTO_QUANTIZER_MAPPING, "bitsandbytes"}:
        problem = f"names the unknown method {method!r}" if method else "names no method"
        raise UserError(
            f"The quantization_config in the config.json of {place} {problem} (quant_method): use the checkpoint before "
            "quantization."
        )
    module, package = _LIBRARIES.get(method, ("torch", "torch"))
    if not _installed(module):
        raise UserError(
            f"{place} is quantized with {method}, which needs the package {package}: install it (pip install {package}), or use "
            "the checkpoint before quantization."
        )
    config.quantization_config = {**quantization, **_OPTIONS.get(method, {})}


def dequantized(model: PreTrainedModel, place: str) -> PreTrainedModel:
    """A model with plain weights; the same one if it was not quantized.

    Raises:
        UserError: the format cannot be dequantized.
    """
    if getattr(model, "hf_quantizer", None) is None:
        return model
    try:
        if not _is_plain(model):
            model = model.dequantize(dtype=torch.float32)
        if not _is_plain(model):
            raise ValueError("some weights remain quantized")
        config = model.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(model.state_dict())
    except Exception as error:  # each format has its own errors
        raise UserError(
            f"The quantized weights of {place} cannot be dequantized ({first_line(error)}): use the checkpoint before "
            "quantization."
        ) from error
    plain.generation_config = model.generation_config
    plain.tie_weights()
    return plain


def _bitsandbytes(quantization: dict[str, Any]) -> str:
    """Old configurations of bitsandbytes do not name their method."""
    return "bitsandbytes" if quantization.get("load_in_4bit") or quantization.get("load_in_8bit") else ""


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package's parent
        return False


def _is_plain(model: PreTrainedModel) -> bool:
    return all(parameter.dtype in (torch.float32, torch.bfloat16, torch.float16) for parameter in model.parameters())
