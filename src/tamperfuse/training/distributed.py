"""Several processes that train one model: what they must agree on, and tensors that they hold in shards.

The user's own accelerate file says how (`accelerate launch --config_file …`). Three ways:

    DDP            every process holds the model in reduced precision and its float32 masters; gradients are averaged
    FSDP2          every process holds a shard of float32 weights, gathered in reduced precision for each layer in turn
    DeepSpeed      as its own file says; the optimizer is DeepSpeed's. Written from its documentation, never run

Each step is a conversation: all processes must run forward and backward equally often. What they do in between (a hook, a
test) is each one's own affair, so a hook runs on every process, on the whole model.
"""

import os
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from tamperfuse.records.errors import UserError


def sharding() -> Literal["", "fsdp", "deepspeed"]:
    """What spreads one model over the processes, as `accelerate launch` says it; "" if each holds all of it."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        return "deepspeed"
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        return ""
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError("Training is sharded by FSDP2 alone: set fsdp_version: 2 in the accelerate file.")
    return "fsdp"


def together() -> bool:
    """Whether several processes are connected."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def most(value: int, device: torch.device) -> int:
    """The largest value that any process has; every process must ask."""
    if not together():
        return value
    shared = torch.tensor(value, device=device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)


def everyone(value: Any) -> list[Any]:
    """What each process has, in their order; a small object."""
    if not together():
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def whole(value: Any) -> Any:
    """A tensor, or a structure of them, its shards put together; every process must ask."""
    if isinstance(value, Tensor):
        return value.full_tensor() if hasattr(value, "full_tensor") else value
    if isinstance(value, dict):
        return {key: whole(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(part) for part in value)
    return value


def whole_weight(weight: Tensor) -> Tensor:
    """A trained weight in float32, its shards put together; every process must ask."""
    if sharding() == "deepspeed":
        from deepspeed.utils import safe_get_full_fp32_param

        full: Tensor = safe_get_full_fp32_param(weight)
        return full
    full = whole(weight.detach())
    return full


def like(value: Tensor, placed: Tensor) -> Tensor:
    """A whole tensor as another of its shape is placed: on its device, and only this process's shard where it is sharded."""
    value = value.to(placed.device)
    if not hasattr(placed, "device_mesh"):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(placed, DTensor)
    return distribute_tensor(value, placed.device_mesh, placed.placements, src_data_rank=None)
