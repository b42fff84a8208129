"""Cross-entropy and other losses of single tokens with a small memory footprint.

:func:`torch.nn.functional.cross_entropy` on bfloat16 logits needs two copies of them in float32; with a vocabulary of 49,152
tokens they are larger than all other activations of a small model. :func:`sliced_loss` forms the gradient during the forward
pass, a slice of the tokens at a time, and stores it in the memory of the logits. For the cross-entropy it is one of the kernels
that `TAMPERFUSE_CPU_KERNELS` switches off (:mod:`tamperfuse.models.cpu`), although it runs on every device.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tamperfuse.models.cpu import enabled

# Logits that are processed at a time: on a CPU (True) as many as fit into its cache, elsewhere enough to fill the device.
SLICE = {True: 2**20, False: 2**26}

#: Called with the logits of some tokens (rows, vocabulary) and with their place among all tokens. Returns the losses (rows,),
#: float32, and replaces each row of logits by the gradient of its loss.
SliceLoss = Callable[[Tensor, slice], Tensor]


def slice_rows(logits: Tensor) -> int:
    """Tokens in a slice of logits (tokens, vocabulary), at least 1."""
    return max(1, SLICE[logits.device.type == "cpu"] // logits.shape[1])


def sliced_loss(logits: Tensor, loss: SliceLoss) -> Tensor:
    """A loss of each token, each a function of its own logits. The content of `logits` is overwritten.

    Args:
        logits: (tokens, vocabulary), any floating dtype. Nothing else may use them afterwards, including the backward pass of
            the operation that produced them (that of a linear layer or a scaling does not).
        loss: computes the losses and the gradient of some tokens.

    Returns:
        (tokens,), float32. Its backward pass may run once.
    """
    result: Tensor = _SlicedLoss.apply(logits, loss)  # type: ignore[no-untyped-call]
    return result


class _SlicedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, loss: SliceLoss) -> Tensor:
        """Logits (tokens, vocabulary) → (tokens,)."""
        gradient = logits.detach()
        losses = torch.zeros(len(logits), device=logits.device)
        rows = slice_rows(logits)
        for start in range(0, len(logits), rows):
            part = slice(start, start + rows)
            losses[part] = loss(gradient[part], part)
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Tensor, None]:
        """The stored gradient times the outer one, in place: it is used once."""
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(outer[0].to(gradient.dtype)[:, None]), None


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """−log p(target) of each token, in nats: (tokens,), float32.

    Args:
        logits: (tokens, vocabulary), overwritten as by :func:`sliced_loss`.
        targets: (tokens,), token ids.
    """
    if not enabled("cross_entropy"):
        return F.cross_entropy(logits.float(), targets, reduction="none")

    def nll(scores: Tensor, part: slice) -> Tensor:
        target = targets[part, None]
        probabilities = torch.softmax(scores, -1, dtype=torch.float32)
        # Computed from the most likely token, whose probability cannot underflow as the target's can.
        below_best = scores.amax(-1).float() - scores.gather(1, target).flatten().float()
        losses = below_best - probabilities.amax(-1).log()
        at_target = probabilities.gather(1, target) - 1.0
        scores.copy_(probabilities).scatter_(1, target, at_target.to(scores.dtype))
        return losses

    return sliced_loss(logits, nll)


def sequence_nll(logits: Tensor, targets: Tensor, counts: Sequence[int]) -> Tensor:
    """Sum of −log p(target) over each sequence's tokens, in nats: (sequences,), float32.

    Args:
        logits: (tokens, vocabulary), overwritten as by :func:`sliced_loss`.
        targets: (tokens,), token ids.
        counts: tokens of each sequence, in order; their sum is `tokens`.
    """
    losses = token_nll(logits, targets)
    sequence = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(logits.device)
    return losses.new_zeros(len(counts)).index_add(0, sequence, losses)


def token_kl_uniform(logits: Tensor) -> Tensor:
    """KL(model ‖ uniform) = log(vocabulary) − entropy at each token, in nats, at least 0: (tokens,), float32.

    With model probabilities q and entropy H, its gradient is ∂/∂z_j = q_j (log q_j + H).

    Args:
        logits: (tokens, vocabulary), overwritten as by :func:`sliced_loss`.
    """

    def divergence(scores: Tensor, _: slice) -> Tensor:
        log_q = torch.log_softmax(scores, -1, dtype=torch.float32)
        q = log_q.exp()
        entropy = -(q * log_q).sum(-1)
        scores.copy_(q * (log_q + entropy[:, None]))
        return math.log(scores.shape[1]) - entropy

    return sliced_loss(logits, divergence)
