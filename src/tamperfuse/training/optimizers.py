"""The optimizers of :attr:`tamperfuse.training.parameters.Training.optimizer`, and loading their state."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Adafactor

from tamperfuse.training.distributed import placed_like
from tamperfuse.training.parameters import Training


def make_optimizer(training: Training, weights: Sequence[Tensor], eight_bit: bool = False) -> torch.optim.Optimizer:
    """Create the optimizer that `training` names.

    Args:
        training: training parameters.
        weights: what to optimize, in float32.
        eight_bit: whether AdamW keeps its moments in 8 bits (bitsandbytes); ignored for other optimizers.
    """
    if training.optimizer == "adamw" and eight_bit:
        from bitsandbytes.optim import AdamW8bit

        adamw: torch.optim.Optimizer = AdamW8bit(weights, lr=training.learning_rate, weight_decay=0.0)
        return adamw
    if training.optimizer == "adamw":
        return torch.optim.AdamW(weights, lr=training.learning_rate, weight_decay=0.0, fused=True)
    if training.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=training.learning_rate, momentum=0.9)
    # Not torch's Adafactor, which always scales steps by the size of the parameter.
    adafactor: torch.optim.Optimizer = Adafactor(
        weights, lr=training.learning_rate, scale_parameter=False, relative_step=False
    )
    return adafactor


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state that an optimizer's `state_dict` returned, with unsharded tensors; each process takes its shards of them."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    placed = {
        index: {name: _placed(value, weights[index]) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": placed})


def _placed(value: Any, weight: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.clone()  # a tensor of a checkpoint's file would keep that file on disk
    return placed_like(value, weight) if value.shape == weight.shape else value
