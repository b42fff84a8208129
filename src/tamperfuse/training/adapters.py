"""Adapters: LoRA (Hu et al., 2021, arXiv 2106.09685) around a model, on its weights as they are or in 4 bits (QLoRA).

QLoRA (Dettmers et al., 2023, arXiv 2305.14314, section 3) trains the adapter against weights in 4-bit NormalFloat. What it
learns is added to the weights before they were quantized, which is how such adapters are published and served. While it
trains, whoever looks at the model sees the 4-bit one.
"""

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor, nn

from tamperfuse.models.layers import decoder_layers
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.precision import compute_dtype
from tamperfuse.records.errors import UserError
from tamperfuse.training.parameters import Training


@contextmanager
def low_rank(loaded: LoadedModel, training: Training) -> Iterator[nn.Module]:
    """Within the block the model wears an adapter, which alone trains; afterwards it is merged into the weights.

    Raises:
        UserError: the adapter fits no layer.
    """
    adapted = _adapted(loaded, training)
    try:
        yield adapted
    finally:
        loaded.model = adapted.merge_and_unload()
        loaded.model.requires_grad_(True)


@contextmanager
def low_rank_on_4_bits(loaded: LoadedModel, training: Training) -> Iterator[nn.Module]:
    """As :func:`low_rank`, the linear layers of all blocks in 4 bits meanwhile.

    Memory: half a byte for every such weight beside the model's own, which stay in float32 to be added to.

    Raises:
        UserError: bitsandbytes is not installed, or the adapter fits no layer.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("Method qlora needs bitsandbytes: pip install 'tamperfuse[qlora]', or use method lora.")
    model = loaded.model
    own = _quantize(model)
    model.is_loaded_in_4bit = True  # what peft asks before it adapts 4-bit layers
    try:
        adapted = _adapted(loaded, training)
        for parameter in adapted.parameters():
            if parameter.requires_grad:  # peft makes them in the dtype that 4-bit layers compute in
                parameter.data = parameter.data.float()
        try:
            yield adapted
        finally:
            _add_to(own, adapted)
            loaded.model = adapted.unload()
    finally:
        for name, layer in own.items():
            model.set_submodule(name, layer)
        del model.is_loaded_in_4bit
        model.requires_grad_(True)


def _adapted(loaded: LoadedModel, training: Training) -> PeftModel:
    targets = training.lora_targets
    config = LoraConfig(
        r=training.lora_rank,
        lora_alpha=training.lora_alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(loaded.model, config, autocast_adapter_dtype=False)
    except (ValueError, re.error) as error:  # a single string is a pattern
        raise UserError(
            f"lora_targets {targets!r} match no layer of {loaded.name}: name the ends of linear layers' names, such as "
            "q_proj, or all-linear."
        ) from error
    for module in adapted.modules():
        # Layers of other kinds, those in 4 bits among them, keep peft's way.
        if type(module) is Linear and type(module.base_layer) is nn.Linear:
            module.forward = MethodType(_low_rank_linear, module)
    return adapted


class _LowRank(torch.autograd.Function):
    """x Wᵀ + b + s (x Aᵀ) Bᵀ (Hu et al., equation 3), W and b frozen.

    The small products are added to the large ones where those lie; peft's way scales and adds in passes of their own, four
    over a layer's output and its gradient, which cost a small model more than the products. Kept for the backward pass: x
    and x Aᵀ.
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


def _low_rank_linear(module: Any, x: Tensor) -> Tensor:
    """Forward of peft's linear layer with one adapter."""
    name, base = module.active_adapters[0], module.base_layer
    a, b, scale = module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]
    result: Tensor = _LowRank.apply(x.reshape(-1, x.shape[-1]), base.weight, base.bias, a, b, scale)  # type: ignore[no-untyped-call]
    return result.view(*x.shape[:-1], -1)


@torch.no_grad()
def _quantize(model: nn.Module) -> dict[str, nn.Linear]:
    """Put 4-bit layers in the place of the blocks' linear ones; those, by name."""
    from bitsandbytes.nn import Linear4bit

    inner = {id(part) for layer in decoder_layers(model) for part in layer.modules()}
    own = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and id(m) in inner}
    for name, layer in own.items():
        device = layer.weight.device
        small = Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=compute_dtype(device)[0],
            quant_type="nf4",
        )
        small.load_state_dict(layer.state_dict())
        model.set_submodule(name, small.to(device))  # this is what quantizes
    return own


@torch.no_grad()
def _add_to(own: dict[str, nn.Linear], adapted: PeftModel) -> None:
    """Add what adapters learned to the layers that the 4-bit ones stand for."""
    for name, module in adapted.get_base_model().named_modules():
        if isinstance(module, LoraLayer) and name in own:
            weight = own[name].weight
            weight += module.get_delta_weight("default").to(weight)
