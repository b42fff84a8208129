"""Writing a sharded model as the checkpoint that `save_pretrained` writes of a complete one.

The weights are gathered one after the other; the main process keeps those of one file until it is written. Where transformers
converts weights on the way to a checkpoint, such as experts that a model stacks, the main process keeps all of them.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from tamperfuse.models.sharded import model_class, on_main_process
from tamperfuse.records.batching import group_by_budget
from tamperfuse.records.files import write_json
from tamperfuse.records.process import is_main

FILE_BYTES = 5 * 10**9  # most bytes of a file, unless one weight is larger


def save_sharded(model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    """Write weights and configuration. A collective operation: every process must call it; the main one writes.

    Args:
        model: a sharded model.
        folder: exists on the main process.
        dtype: of the written weights.
    """
    weights = _written_weights(model)
    conversions = getattr(model, "_weight_conversions", None)
    groups = group_by_budget([weight.numel() * dtype.itemsize for _, weight in weights], FILE_BYTES)
    if conversions:
        groups = [list(range(len(weights)))]
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors" if len(groups) > 1 else "model.safetensors"
        tensors = {weights[i][0]: _complete(weights[i][1], dtype) for i in group}
        if not is_main():
            continue
        if conversions:
            tensors = _as_stored(model, tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    if not is_main():
        return
    if len(groups) > 1:
        total = sum(weight.numel() for _, weight in weights)
        metadata = {"total_parameters": total, "total_size": total * dtype.itemsize}
        write_json(folder / "model.safetensors.index.json", {"metadata": metadata, "weight_map": weight_map})
    _save_configuration(model, folder, dtype)


def _written_weights(model: PreTrainedModel) -> list[tuple[str, Tensor]]:
    """The weights and buffers of a checkpoint, tied weights once."""
    left_out = {
        *(getattr(model, "_keys_to_ignore_on_save", None) or ()),
        *(getattr(model, "all_tied_weights_keys", None) or ()),
    }
    return [(name, tensor) for name, tensor in model.state_dict().items() if name not in left_out]


@torch.no_grad()
def _complete(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight with all shards gathered, on the main process; None elsewhere."""
    result: Tensor = on_main_process(weight.to(dtype) if weight.is_floating_point() else weight)
    return result


def _as_stored(model: PreTrainedModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    from transformers.core_model_loading import revert_weight_conversion

    stored: dict[str, Tensor] = revert_weight_conversion(model, tensors)
    return stored


def _save_configuration(model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    model.config.architectures = [model_class(model).__name__]
    before, model.config.dtype = model.config.dtype, str(dtype).removeprefix("torch.")
    model.config.save_pretrained(folder)
    model.config.dtype = before
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
