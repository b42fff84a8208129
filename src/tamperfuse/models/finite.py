"""Whether a model's numbers are finite.

A training can diverge: its loss, then its weights become NaN. Such a model repeats one token. No judge counts that as an executed
request, so measuring it would make it look resistant.
"""

import torch
from torch import nn

from tamperfuse.models.checks import listed, weights_not_finite
from tamperfuse.models.packed import pack, packed_logits
from tamperfuse.records.errors import UserError

PROBE_TOKENS = 16  # length of the sequence whose logits are computed


class Diverged(UserError):
    """A change of a model, such as a training, made its loss, weights or logits NaN or infinite.

    Attributes:
        step: of the training or attack, at which this was noticed.
    """

    def __init__(self, message: str, step: int = 0) -> None:
        super().__init__(message)
        self.step = step


def diverged(label: str, step: int, problem: str) -> Diverged:
    """The error of a training that diverged.

    Args:
        label: name of the training, for people.
        step: at which this was noticed.
        problem: what is not finite, in words.
    """
    return Diverged(
        f"{label}: the training diverged at step {step} ({problem}): lower `learning_rate` or, for adapters, `lora_alpha`, or "
        "clip gradients with `clip`.",
        step,
    )


def not_finite(model: nn.Module) -> str:
    """What of a model is NaN or infinite, in words: weights, or the logits of a short sequence; "" if nothing is.

    Weights can be finite and so large that activations are not. Logits of minus infinity are no error: with them a model excludes
    tokens.
    """
    names = weights_not_finite(model)
    if names:
        return f"weights are not finite, in {listed(names)}"
    logits = _probe_logits(model)
    return "logits are not finite" if bool((logits.isnan() | logits.isposinf()).any()) else ""


@torch.no_grad()
def _probe_logits(model: nn.Module) -> torch.Tensor:
    """Logits, (tokens, vocabulary), of the sequence of the first token ids."""
    device = next(model.parameters()).device
    size = min(PROBE_TOKENS, int(model.config.get_text_config().vocab_size))  # type: ignore[union-attr, operator]
    row, layout = pack([range(size)], 0, device)
    training = model.training
    model.eval()
    try:
        return packed_logits(model, row, layout, torch.arange(size, device=device))
    finally:
        model.train(training)
