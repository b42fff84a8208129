"""Models in shards: under FSDP2 each process holds a part of every weight, from loading to saving.

transformers creates the model without memory, applies `fully_shard` to each transformer block, and reads from the safetensors
files only the rows of each weight that belong to this process (`from_pretrained(distributed_config=…)`):

    weight (rows, columns)      process 0: first half of the rows     process 1: the second half          float32
    forward, backward pass      each block in turn is gathered on every process in the compute dtype, and freed again

So all processes must run the same forward passes in the same order, also to measure. Between them, weights are DTensors:
elementwise operations and sums work on them, and `full_tensor` gathers one.
"""

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from tamperfuse.records.errors import UserError
from tamperfuse.records.files import content_hash
from tamperfuse.records.process import is_main


def is_shard(tensor: Tensor) -> bool:
    """Whether a tensor is distributed over processes (a DTensor)."""
    return hasattr(tensor, "device_mesh")


def is_sharded(model: nn.Module) -> bool:
    """Whether a model, or the model inside an adapter, was loaded in shards."""
    return any(map(is_shard, islice(model.parameters(), 1)))


def local_shard(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, without gradient; the whole tensor if it is not distributed."""
    part: Any = tensor.detach()  # a DTensor's methods are not a Tensor's
    shard: Tensor = part.to_local() if is_shard(part) else part
    return shard


def unsharded(tensor: Tensor) -> Tensor:
    """A tensor with all shards gathered. A collective operation where there are shards."""
    complete: Tensor = getattr(tensor, "full_tensor", lambda: tensor)()
    return complete


def is_distributed() -> bool:
    """Whether several processes are connected."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_objects(value: Any) -> list[Any]:
    """The value of each process, by rank; small picklable objects. A collective operation: every process must call it."""
    if not is_distributed():
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def check_on_every_process(check: Callable[[], None]) -> None:
    """Run a check whose outcome can differ between processes. A collective operation: every process must call it.

    Raises:
        UserError: that of the first process on which the check failed; on every process, so that none waits for another.
    """
    problem = ""
    try:
        check()
    except UserError as error:
        problem = str(error)
    if problems := list(filter(None, gather_objects(problem))):
        raise UserError(problems[0])


def check_same_on_every_process(value: Any, what: str) -> None:
    """Check that all processes have the same value. A collective operation: every process must call it.

    Args:
        value: small and picklable.
        what: the value is, in the plural, for the message.

    Raises:
        UserError: they have not; on every process.
    """
    if any(other != value for other in gather_objects(value)):
        raise UserError(
            f"The processes hold different {what}: give each the same model and the same files, on machines of one kind."
        )


def check_same_texts(model: nn.Module, texts: Any) -> None:
    """Check, if a model is sharded, that every process runs it on the same texts; otherwise they would wait for each other.

    Args:
        model: the model. If it is sharded, every process must call this.
        texts: token ids, JSON-able.

    Raises:
        UserError: they do not; on every process.
    """
    if is_sharded(model):
        check_same_on_every_process(content_hash(texts), "texts")


def measured_by_main_process(model: nn.Module, values: Any) -> Any:
    """What the main process measured of a sharded model, on every process: what they do next must not depend on rounding.

    Args:
        model: the model; what this process measured of one that is not sharded stays as it is.
        values: picklable.
    """
    return gather_objects(values)[0] if is_sharded(model) else values


def model_class(model: nn.Module) -> type:
    """A model's class as its module defines it: `fully_shard` puts one with the prefix FSDP before it."""
    return next(base for base in type(model).__mro__ if not base.__name__.startswith("FSDP"))


def on_main_process(value: Any) -> Any:
    """A nested structure of tensors with all shards gathered, one tensor after the other, in the main process's main memory.

    On the other processes None takes the place of each sharded tensor. A collective operation where there are shards.
    """
    if isinstance(value, Tensor):
        if not is_shard(value):
            return value
        complete = unsharded(value)
        return complete.cpu() if is_main() else None
    if isinstance(value, dict):
        return {key: on_main_process(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_main_process(item) for item in value)
    return value


def that_of_main_process(tensor: Tensor) -> None:
    """Replace a tensor's values by those that it has on the main process. A collective operation: every process must call it."""
    dist.broadcast(tensor, 0)
