"""The optimizers that a training can name, and their state."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Adafactor

from tamperfuse.training.distributed import like
from tamperfuse.training.parameters import Training


def make_optimizer(training: Training, weights: Sequence[Tensor], eight_bit: bool = False) -> torch.optim.Optimizer:
    """The optimizer that `training` names, over float32 weights; AdamW with moments of 8 bits where memory asks for it."""
    if training.optimizer == "adamw" and eight_bit:
        from bitsandbytes.optim import AdamW8bit

        small: torch.optim.Optimizer = AdamW8bit(weights, lr=training.learning_rate, weight_decay=0.0)
        return small
    if training.optimizer == "adamw":
        return torch.optim.AdamW(weights, lr=training.learning_rate, weight_decay=0.0, fused=True)
    if training.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=training.learning_rate, momentum=0.9)
    # Not torch's own, which knows only steps relative to a parameter's size.
    adafactor: torch.optim.Optimizer = Adafactor(
        weights, lr=training.learning_rate, scale_parameter=False, relative_step=False
    )
    return adafactor


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give an optimizer the state that its `state_dict` had, whole tensors in it; each process takes its shards."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    held = {
        index: {name: _placed(value, weights[index]) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": held})


def _placed(value: Any, weight: Tensor) -> Any:
    return like(value, weight) if isinstance(value, Tensor) and value.shape == weight.shape else value
