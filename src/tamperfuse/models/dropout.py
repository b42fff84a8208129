"""Training without dropout."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PretrainedConfig

# Names under which modules and configurations hold probabilities of dropout and of skipping layers, and the noise of routers in
# training. The `router_jitter_noise` of PhiMoE is none of them: it is a threshold, in evaluation as well.
_RANDOM = re.compile("drop|^(input_)?jitter_noise$")


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Within the block a model computes in training mode what it computes in evaluation mode.

    The exception is a model that draws its experts in training (PhiMoE).

    Defenses and preference training subtract losses and gradients of the same batch from each other, which under dropout would
    be differences of masks; packed attention has no dropout in any case.

    Args:
        model: with or without dropout; its probabilities are restored at the end.
    """
    changed = [(owner, name, vars(owner)[name]) for owner, name in _probabilities(model)]
    for owner, name, _ in changed:
        setattr(owner, name, 0.0)
    try:
        yield
    finally:
        for owner, name, value in changed:
            setattr(owner, name, value)


def _probabilities(model: nn.Module) -> Iterator[tuple[Any, str]]:
    """Where a model holds a probability above 0: a dropout module, an attribute of another module, or a configuration."""
    configs: dict[int, PretrainedConfig] = {}
    for module in model.modules():
        if isinstance(module, _DropoutNd) and module.p:
            yield module, "p"
        for name, value in vars(module).items():
            if isinstance(value, PretrainedConfig):
                configs[id(value)] = value
            elif _is_probability(name, value):
                yield module, name
    for config in configs.values():
        yield from ((config, name) for name, value in vars(config).items() if _is_probability(name, value))


def _is_probability(name: str, value: Any) -> bool:
    return isinstance(value, float) and value > 0 and bool(_RANDOM.search(name))
