"""Loading a model in shards (:mod:`tamperfuse.models.sharded`): what differs from loading it whole."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tamperfuse.models.checks import is_adapter
from tamperfuse.models.device import own_device
from tamperfuse.models.layers import decoder_layers
from tamperfuse.models.packed_check import is_remembered, prepare_forward, prepare_like
from tamperfuse.models.precision import compute_dtype
from tamperfuse.records.process import world_size

log = logging.getLogger("tamperfuse")

USE_FSDP = "ACCELERATE_USE_FSDP"

WAITING = timedelta(hours=2)  # for another process, as transformers sets it when it loads the first model in shards

#: Reads the shards of a model, whose forward passes then compute in the dtype.
Read = Callable[[torch.dtype], PreTrainedModel]


def connect_processes() -> None:
    """Connect the processes, unless they are connected; loading the first model in shards would do the same."""
    if dist.is_initialized():
        return
    device = own_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device, timeout=WAITING)
    else:
        dist.init_process_group("gloo", timeout=WAITING)


def can_be_sharded(name: str, folder: Path | None) -> bool:
    """Whether a model can be loaded in shards; otherwise the log says why not."""
    if folder and is_adapter(folder):
        reason = "it is an adapter, to be merged into its base model"
    else:
        reason = _why_not_sharded(AutoConfig.from_pretrained(str(folder or name), trust_remote_code=False))
    if reason:
        log.warning("%s is loaded whole by every process, since %s.", name, reason)
    return not reason


def _why_not_sharded(config: PretrainedConfig) -> str:
    if getattr(config, "quantization_config", None) is not None:
        return "its weights are quantized"
    text = config.get_text_config()
    if getattr(text, "tie_word_embeddings", False) and text.vocab_size % world_size():
        # FSDP2 pads uneven shards in a copy of its own for each of two tied weights: one would miss the other's updates.
        return f"its tied embeddings have {text.vocab_size} rows, which {world_size()} processes cannot divide evenly"
    return ""


def read_shards(read: Read) -> PreTrainedModel:
    """A model's float32 shards, on this process's device, whose forward passes compute in the dtype that suits the device."""
    return _read(read, compute_dtype(own_device())[0])


def prepare_shards(model: PreTrainedModel, read: Read) -> None:
    """As :func:`~tamperfuse.models.packed_check.prepare_forward`.

    Its check compares logits in float32. Where forward passes compute in another dtype, it runs on second shards of the same
    weights, which are gathered in float32, unless the result for the configuration is remembered.

    Args:
        model: the shards.
        read: reads them again.
    """
    if compute_dtype(own_device())[0] == torch.float32 or is_remembered(model):
        prepare_forward(model)
        return
    checked = _read(read, torch.float32)
    prepare_forward(checked)
    prepare_like(model, checked)


def _read(read: Read, dtype: torch.dtype) -> PreTrainedModel:
    with hidden_from_accelerate():
        model = read(dtype)
    _free_after_evaluation(model)
    return model


def distribution(config: PretrainedConfig, dtype: torch.dtype) -> Any:
    """How transformers shards a model of a configuration: the `distributed_config` of its from_pretrained.

    Args:
        config: of the model.
        dtype: in which blocks are gathered and computed; the shards are float32.

    Raises:
        UserError: the transformer blocks cannot be identified.
    """
    from transformers.distributed.configuration_utils import DistributedConfig

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    names = {id(module): name for name, module in model.named_modules()}
    blocks = names[id(decoder_layers(model)[0])].rpartition(".")[0]
    return DistributedConfig(
        fsdp_size=world_size(),
        fsdp_plan={f"{blocks}.*": "free_full_weight"},  # transformers' default knows blocks that are called layers
        fsdp_mixed_precision=dtype == torch.bfloat16,
    )


@contextmanager
def hidden_from_accelerate() -> Iterator[None]:
    """Within the block accelerate and transformers do not see that FSDP is configured: the model is sharded already."""
    value = os.environ.pop(USE_FSDP, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[USE_FSDP] = value


def _free_after_evaluation(model: PreTrainedModel) -> None:
    """Let a sharded model free what it gathered after every forward pass without gradients.

    FSDP2 would keep the embeddings gathered for a backward pass, and their parameters would not be DTensors until then.
    """
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]

    def reshard(module: nn.Module, inputs: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            for part in parts:
                part.reshard()

    model.register_forward_hook(reshard)
