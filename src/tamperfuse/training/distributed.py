"""Training one model with several processes: what they exchange, and tensors stored in shards.

The user's accelerate configuration decides how (`accelerate launch --config_file …`):

    DDP            every process holds the model in reduced precision and its float32 masters; gradients are averaged
    FSDP2          every process holds a shard of the float32 weights; each layer is gathered in reduced precision when needed
                   (:mod:`tamperfuse.models.sharded`)
    DeepSpeed      as its own configuration file says, with DeepSpeed's optimizer. Written from its documentation, never run

All processes must run the same number of forward and backward passes in each step. Hooks run on every process: on the model in
its shards if it was loaded in shards, otherwise on the complete model.
"""

import os
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from tamperfuse.models.sharded import is_distributed, is_shard, unsharded
from tamperfuse.models.sharded_loading import USE_FSDP
from tamperfuse.records.errors import UserError


def sharding() -> Literal["", "fsdp", "deepspeed"]:
    """Which library shards the model over processes, read from the environment of `accelerate launch`; "" for none.

    Raises:
        UserError: the first version of FSDP is configured.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        return "deepspeed"
    if os.environ.get(USE_FSDP, "").lower() != "true":
        return ""
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError(
            "Only version 2 of FSDP is supported: set fsdp_version: 2 in the accelerate configuration file."
        )
    return "fsdp"


def max_over_processes(value: int, device: torch.device) -> int:
    """The largest value of all processes. A collective operation: every process must call it."""
    if not is_distributed():
        return value
    shared = torch.tensor(value, device=device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)


def sum_over_processes(value: float, device: torch.device) -> float:
    """The sum of all processes' values, in float32. A collective operation: every process must call it."""
    if not is_distributed():
        return value
    shared = torch.tensor(value, device=device)
    dist.all_reduce(shared, dist.ReduceOp.SUM)
    return float(shared)


def unsharded_weight(weight: Tensor) -> Tensor:
    """A trained weight in float32, with all shards gathered. A collective operation where there are shards."""
    if sharding() == "deepspeed":
        from deepspeed.utils import safe_get_full_fp32_param

        deepspeed_weight: Tensor = safe_get_full_fp32_param(weight)
        return deepspeed_weight
    result: Tensor = unsharded(weight.detach())
    return result


def placed_like(value: Tensor, other: Tensor) -> Tensor:
    """A complete tensor, moved to the device of another one of its shape and sharded as that one is."""
    value = value.to(other.device)
    if not is_shard(other):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(other, DTensor)
    return distribute_tensor(value, other.device_mesh, other.placements, src_data_rank=None)
