"""Cross-entropy summed over each sequence, and the divergence from the uniform distribution, with a small memory footprint.

:func:`torch.nn.functional.cross_entropy` on bfloat16 logits needs two copies of them in float32; with a vocabulary of 49,152
tokens they are larger than all other activations of a small model. :class:`_SlicedCrossEntropy` forms the gradient during the
forward pass, a slice of the tokens at a time, and stores it in the memory of the logits. It is one of the kernels that
`TAMPERFUSE_CPU_KERNELS` switches off (:mod:`tamperfuse.models.cpu`), although it runs on every device.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tamperfuse.models.cpu import enabled

# Logits whose gradient is formed at a time: on a CPU (True) as many as fit into its cache, elsewhere enough to fill the device.
SLICE = {True: 2**20, False: 2**26}


def sequence_nll(logits: Tensor, targets: Tensor, counts: Sequence[int]) -> Tensor:
    """Sum of −log p(target) over each sequence's tokens, in nats. The content of `logits` is overwritten.

    Args:
        logits: (tokens, vocabulary), any floating dtype. Nothing else may use them afterwards, including the backward pass of
            the operation that produced them (that of a linear layer or a scaling does not).
        targets: (tokens,), token ids.
        counts: tokens of each sequence, in order; their sum is `tokens`.

    Returns:
        (sequences,), float32.
    """
    sequence = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(logits.device)
    if not enabled("cross_entropy"):
        losses = F.cross_entropy(logits.float(), targets, reduction="none")
        return losses.new_zeros(len(counts)).index_add(0, sequence, losses)
    result: Tensor = _SlicedCrossEntropy.apply(logits, targets, sequence, len(counts))  # type: ignore[no-untyped-call]
    return result


class _SlicedCrossEntropy(torch.autograd.Function):
    """Cross-entropy whose gradient is formed during the forward pass and replaces the logits in their memory and dtype."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, sequence: Tensor, count: int) -> Tensor:
        """Logits (tokens, vocabulary), targets (tokens,), index of each token's sequence (tokens,) → (count,)."""
        gradient = logits.detach()
        losses = torch.zeros(count, device=logits.device)
        rows = max(1, SLICE[logits.device.type == "cpu"] // logits.shape[1])
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            scores, target, index = gradient[part], targets[part, None], sequence[part]
            probabilities = torch.softmax(scores, -1, dtype=torch.float32)
            # −log p(target), computed from the most likely token, whose probability cannot underflow as the target's can.
            below_best = scores.amax(-1).float() - scores.gather(1, target).flatten().float()
            losses.index_add_(0, index, below_best - probabilities.amax(-1).log())
            at_target = probabilities.gather(1, target) - 1.0
            scores.copy_(probabilities).scatter_(1, target, at_target.to(scores.dtype))
        ctx.save_for_backward(gradient, sequence)
        return losses

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Tensor, None, None, None]:
        """The stored gradient times the outer one, in place: it is used once."""
        gradient, sequence = ctx.saved_tensors
        return gradient.mul_(outer[0].to(gradient.dtype)[sequence, None]), None, None, None


def token_kl_uniform(logits: Tensor) -> Tensor:
    """KL(model ‖ uniform) = log(vocabulary) − entropy at each token, in nats, at least 0.

    The content of `logits` is overwritten, as in :func:`sequence_nll`.

    Args:
        logits: (tokens, vocabulary), any floating dtype.

    Returns:
        (tokens,), float32.
    """
    result: Tensor = _SlicedUniform.apply(logits)  # type: ignore[no-untyped-call]
    return result


class _SlicedUniform(torch.autograd.Function):
    """The divergence with its gradient, formed a slice of the tokens at a time in the memory of the logits.

    With model probabilities q and entropy H over V tokens: ∂/∂z_j = q_j (log q_j + H).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        """Logits (tokens, vocabulary) → (tokens,)."""
        gradient, words = logits.detach(), logits.shape[1]
        divergence = torch.zeros(len(logits), device=logits.device)
        rows = max(1, SLICE[logits.device.type == "cpu"] // words)
        for start in range(0, len(logits), rows):
            part = slice(start, start + rows)
            log_q = torch.log_softmax(gradient[part], -1, dtype=torch.float32)
            q = log_q.exp()
            entropy = -(q * log_q).sum(-1)
            divergence[part] = math.log(words) - entropy
            gradient[part] = (q * (log_q + entropy[:, None])).to(gradient.dtype)
        ctx.save_for_backward(gradient)
        return divergence

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Tensor:
        """The stored gradient times the outer one, in place: it is used once."""
        (gradient,) = ctx.saved_tensors
        scaled: Tensor = gradient.mul_(outer[0].to(gradient.dtype)[:, None])
        return scaled
