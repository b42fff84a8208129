"""LoRA adapters (Hu et al., 2021, arXiv 2106.09685) around a model, on its weights as they are or in 4 bits (QLoRA).

QLoRA (Dettmers et al., 2023, arXiv 2305.14314, section 3) trains the adapter against weights quantized to 4-bit NormalFloat. The
learned update is then added to the unquantized weights, which is how such adapters are published and served. During
training, hooks see the 4-bit model.
"""

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from tamperfuse.models.cpu.lora_linear import use_lora_linear
from tamperfuse.models.layers import decoder_layers
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.precision import compute_dtype
from tamperfuse.records.errors import UserError
from tamperfuse.training.parameters import Training


@contextmanager
def lora_adapter(loaded: LoadedModel, training: Training) -> Iterator[nn.Module]:
    """Within the block the model has an adapter and only the adapter trains; afterwards it is merged into the weights.

    Raises:
        UserError: the adapter's targets match no layer.
    """
    adapted = _add_adapter(loaded, training)
    try:
        yield adapted
    finally:
        loaded.model = adapted.merge_and_unload()
        loaded.model.requires_grad_(True)


@contextmanager
def qlora_adapter(loaded: LoadedModel, training: Training) -> Iterator[nn.Module]:
    """As :func:`lora_adapter`, with the linear layers of all transformer blocks in 4 bits during training.

    Memory: half a byte for each of these weights, in addition to the unquantized ones.

    Raises:
        UserError: bitsandbytes is not installed, or the adapter's targets match no layer.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("Method qlora needs bitsandbytes: pip install 'tamperfuse[qlora]', or use method lora.")
    model = loaded.model
    unquantized = _quantize(model)
    model.is_loaded_in_4bit = True  # peft reads it to choose its 4-bit layers
    try:
        adapted = _add_adapter(loaded, training)
        for parameter in adapted.parameters():
            if parameter.requires_grad:  # peft creates them in the 4-bit layers' compute dtype
                parameter.data = parameter.data.float()
        try:
            yield adapted
        finally:
            _add_updates(unquantized, adapted)
            loaded.model = adapted.unload()
    finally:
        for name, layer in unquantized.items():
            model.set_submodule(name, layer)
        del model.is_loaded_in_4bit
        model.requires_grad_(True)


def _add_adapter(loaded: LoadedModel, training: Training) -> PeftModel:
    targets = training.lora_targets
    config = LoraConfig(
        r=training.lora_rank,
        lora_alpha=training.lora_alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(loaded.model, config, autocast_adapter_dtype=False)
    except (ValueError, re.error) as error:  # a single string is a regular expression
        raise UserError(
            f"lora_targets {targets!r} match no layer of {loaded.name}: list the last parts of linear layers' names, such as "
            "q_proj, or use all-linear."
        ) from error
    use_lora_linear(adapted)
    return adapted


@torch.no_grad()
def _quantize(model: nn.Module) -> dict[str, nn.Linear]:
    """Replace the transformer blocks' linear layers by 4-bit ones; returns the replaced layers by name."""
    from bitsandbytes.nn import Linear4bit

    in_blocks = {id(module) for layer in decoder_layers(model) for module in layer.modules()}
    replaced = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and id(m) in in_blocks}
    for name, layer in replaced.items():
        device = layer.weight.device
        quantized = Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=compute_dtype(device)[0],
            quant_type="nf4",
        )
        quantized.load_state_dict(layer.state_dict())
        model.set_submodule(name, quantized.to(device))  # moving it quantizes
    return replaced


@torch.no_grad()
def _add_updates(unquantized: dict[str, nn.Linear], adapted: PeftModel) -> None:
    """Add the adapters' updates to the unquantized layers."""
    for name, module in adapted.get_base_model().named_modules():
        if isinstance(module, LoraLayer) and name in unquantized:
            weight = unquantized[name].weight
            weight += module.get_delta_weight("default").to(weight)
