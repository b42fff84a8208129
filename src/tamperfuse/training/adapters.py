"""LoRA adapters (Hu et al., 2021, arXiv 2106.09685) around a model, on its weights as they are or in 4 bits (QLoRA).

QLoRA (Dettmers et al., 2023, arXiv 2305.14314, section 3) trains the adapter against weights quantized to 4-bit NormalFloat. The
learned update is then added to the unquantized weights, which is how such adapters are published and served. During
training, hooks see the 4-bit model.
"""

import importlib.util
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tamperfuse.models.adapter import adapted_tied_layers
from tamperfuse.models.cpu.lora_linear import use_lora_linear
from tamperfuse.models.layers import decoder_layers
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.precision import compute_dtype
from tamperfuse.models.sharded import is_sharded
from tamperfuse.records.errors import UserError
from tamperfuse.training.distributed import placed_like
from tamperfuse.training.parameters import Training

log = logging.getLogger("tamperfuse")


@contextmanager
def lora_adapter(loaded: LoadedModel, training: Training) -> Iterator[nn.Module]:
    """Within the block the model has an adapter and only the adapter trains; afterwards it is merged into the weights.

    Raises:
        UserError: the adapter's targets match no layer.
    """
    adapted = _add_adapter(loaded, training, _without_adapter(loaded.model))
    try:
        yield adapted
    finally:
        if is_sharded(loaded.model):  # peft cannot add an update to a part of a weight
            _add_updates({}, adapted)
            loaded.model = adapted.unload()
        else:
            loaded.model = adapted.merge_and_unload()
        loaded.model.requires_grad_(True)


@contextmanager
def qlora_adapter(loaded: LoadedModel, training: Training) -> Iterator[nn.Module]:
    """As :func:`lora_adapter`, with the linear layers of all transformer blocks in 4 bits during training.

    Memory: half a byte for each of these weights, in addition to the unquantized ones.

    Raises:
        UserError: bitsandbytes is not installed, the model is sharded, or the adapter's targets match no layer.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("Method qlora needs bitsandbytes: pip install 'tamperfuse[qlora]', or use method lora.")
    if is_sharded(loaded.model):
        raise UserError("Method qlora does not train a model in shards: use method lora, or DDP in place of FSDP2.")
    model = loaded.model
    excluded = _without_adapter(model)
    unquantized = _quantize(model, excluded)
    model.is_loaded_in_4bit = True  # peft reads it to choose its 4-bit layers
    try:
        adapted = _add_adapter(loaded, training, excluded)
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


def _without_adapter(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers that get no adapter, whatever the targets.

    They are those outside the decoder and its output, such as a vision tower's, and those that compute something else than a
    linear layer, such as the routers of Llama 4 and Phi-3.5-MoE.
    """
    decoder = {id(module) for module in model.get_decoder().modules()} | {id(model.get_output_embeddings())}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and (id(module) not in decoder or not _is_linear(module))
    ]


@torch.no_grad()
def _is_linear(module: nn.Module) -> bool:
    """Whether a linear layer's class computes what `nn.Linear` does, tried on one vector where it has a method of its own."""
    if not isinstance(module, nn.Linear) or type(module).forward is nn.Linear.forward:
        return True
    weight = module.weight
    vector = torch.linspace(-1, 1, module.in_features, dtype=weight.dtype, device=weight.device)[None]
    try:
        computed = module(vector)
    except Exception:  # code of an architecture, on an input of another shape than it expects
        return False
    expected = functional.linear(vector, weight, module.bias)
    return (
        isinstance(computed, Tensor)
        and computed.shape == expected.shape
        and torch.allclose(computed, expected, 1e-3, 1e-5)
    )


def _add_adapter(loaded: LoadedModel, training: Training, excluded: list[str]) -> PeftModel:
    targets = training.lora_targets
    config = LoraConfig(
        r=training.lora_rank,
        lora_alpha=training.lora_alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=excluded or None,
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You have passed exclude_modules")  # none of which is a target
            adapted = get_peft_model(loaded.model, config, autocast_adapter_dtype=False)
    except (ValueError, re.error) as error:  # a single string is a regular expression
        raise UserError(
            f"lora_targets {targets!r} match no layer of {loaded.name}: list the last parts of linear layers' names, such as "
            "q_proj, or use all-linear."
        ) from error
    if tied := adapted_tied_layers(adapted):
        adapted.unload()
        raise UserError(
            f"lora_targets {targets!r} match {tied[0]}, whose weights {loaded.name} uses as embeddings and as output: merged "
            "into them, an update of one would change both, so leave it out."
        )
    use_lora_linear(adapted)
    if targets == "all-linear":
        _say_what_has_none(adapted)
    return adapted


def _say_what_has_none(adapted: PeftModel) -> None:
    """Print which weights of the decoder have no adapter, such as those of routers and of most stacked experts."""
    model = adapted.get_base_model()
    output = model.get_output_embeddings()
    left_out = {
        ".".join(f"{path}.{name}".removesuffix(".weight").split(".")[-2:])
        for path, module in model.get_decoder().named_modules()
        if module is not output and not isinstance(module, nn.Embedding)
        for name, weight in module.named_parameters(recurse=False)
        if weight.ndim > 1 and not re.search(r"(^|\.)(base_layer|lora_\w+)(\.|$)", path)
    }
    if left_out:
        log.info("      all-linear gives no adapter to: %s", ", ".join(sorted(left_out)))


@torch.no_grad()
def _quantize(model: PreTrainedModel, excluded: list[str]) -> dict[str, nn.Linear]:
    """Replace the transformer blocks' linear layers, but those excluded, by 4-bit ones; returns the replaced layers by name."""
    from bitsandbytes.nn import Linear4bit

    in_blocks = {id(module) for layer in decoder_layers(model) for module in layer.modules()}
    replaced = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) in in_blocks and name not in excluded
    }
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
def _add_updates(replaced: Mapping[str, nn.Linear], adapted: PeftModel) -> None:
    """Add the adapters' updates to the layers below them, and to stacked experts.

    Args:
        replaced: by name, layers that get the update in place of the one below the adapter.
        adapted: the model.
    """
    for name, module in adapted.get_base_model().named_modules():
        if isinstance(module, ParamWrapper):
            weight = module.get_param()
            weight += placed_like(module.get_delta_weight("default").to(weight.dtype), weight)
        elif isinstance(module, LoraLayer):
            weight = replaced.get(name, module.get_base_layer()).weight
            weight += placed_like(module.get_delta_weight("default").to(weight.dtype), weight)
