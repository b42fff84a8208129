"""Steps: what happens to one batch between drawing it and the optimizer. Supervised fine-tuning is the one everyone uses.

A defense or an attack with another objective brings its own step; the loop stays :func:`tamperfuse.training.fit.fit`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tamperfuse.models.chat import Sample
from tamperfuse.models.packed import packed_logits
from tamperfuse.models.precision import Masters
from tamperfuse.training.batches import PackedBatch, pack_samples
from tamperfuse.training.rows import Backward, backward_in_rows

# Logits whose gradient is formed at a time: on a CPU (True) what its cache holds, elsewhere enough to fill the device.
SLICE = {True: 2**20, False: 2**26}


class Objective(Protocol):
    """Turns samples into gradients."""

    def begin(self, masters: Masters) -> None:
        """Called once, before the first step.

        Args:
            masters: the model's weights, for steps that work on weights themselves.
        """
        ...

    def backward(
        self, model: nn.Module, samples: Sequence[Any], total: int, backward: Backward, device: torch.device
    ) -> Tensor:
        """Accumulate the gradient of one (micro-)batch.

        Args:
            model: the model, in training mode.
            samples: this process's share of the batch; of whatever kind the step trains on.
            total: what the whole batch counts, over all processes and micro-batches (response tokens, for samples): the
                loss's denominator.
            backward: runs a scalar's backward pass (accelerate scales it where it must).
            device: where to compute.

        Returns:
            The share of the batch's mean loss, detached (for samples: in nats a response token).
        """
        ...


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy summed over each sequence, whose gradient is formed during the forward pass, in slices.

    The plain one keeps two float32 copies of the logits; with 49,152 words they outweigh everything else of a small model.
    Here float32 exists for one slice at a time and the gradient replaces the logits in their own memory and dtype.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, sequence: Tensor, count: int) -> Tensor:
        """Logits (tokens, vocabulary), targets (tokens,), the sequence each token belongs to (tokens,) → (count,)."""
        gradient = logits.detach()
        losses = torch.zeros(count, device=logits.device)
        rows = max(1, SLICE[logits.device.type == "cpu"] // logits.shape[1])
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            scores, wanted, owner = gradient[part], targets[part, None], sequence[part]
            shares = torch.softmax(scores, -1, dtype=torch.float32)
            # −log p(target) by way of the likeliest token, whose share cannot underflow as the target's can.
            behind = scores.amax(-1).float() - scores.gather(1, wanted).flatten().float()
            losses.index_add_(0, owner, behind - shares.amax(-1).log())
            at_target = shares.gather(1, wanted) - 1.0
            scores.copy_(shares).scatter_(1, wanted, at_target.to(scores.dtype))
        ctx.save_for_backward(gradient, sequence)
        return losses

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Tensor, None, None, None]:
        """The kept gradient times the outer one, in place: it is used once."""
        gradient, sequence = ctx.saved_tensors
        return gradient.mul_(outer[0].to(gradient.dtype)[sequence, None]), None, None, None


def sequence_nll(logits: Tensor, targets: Tensor, counts: Sequence[int]) -> Tensor:
    """Sum over each sequence's tokens of −log p(target), in nats; consumes `logits` (their memory is reused).

    Args:
        logits: (tokens, vocabulary), any floating dtype; needed by nobody else, the backward pass of the operation that
            made them included (a linear layer's or a scaling's does not).
        targets: (tokens,), token ids.
        counts: tokens of each sequence, in order; their sum is `tokens`.

    Returns:
        (sequences,), float32.
    """
    sequence = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(logits.device)
    result: Tensor = _CrossEntropy.apply(logits, targets, sequence, len(counts))  # type: ignore[no-untyped-call]
    return result


def response_nll(model: nn.Module, batch: PackedBatch) -> Tensor:
    """−log p(response | prompt) of each sample of a batch, in nats: (samples,)."""
    return sequence_nll(packed_logits(model, batch.row, batch.layout, batch.keep), batch.targets, batch.counts)


@dataclass
class SupervisedObjective:
    """Cross-entropy on response tokens (SDD, section 4.2; the attacks of section 5 as well).

    Memory: the weights' gradients, and what :func:`tamperfuse.training.rows.backward_in_rows` takes, logits at response
    positions among it.
    """

    def begin(self, masters: Masters) -> None:
        """Nothing to prepare."""

    def backward(
        self, model: nn.Module, samples: Sequence[Sample], total: int, backward: Backward, device: torch.device
    ) -> Tensor:
        """See :class:`Objective`."""

        def loss_of(row: list[int]) -> Tensor:
            return response_nll(model, pack_samples([samples[i] for i in row], device)).sum() / total

        return backward_in_rows(model, [len(sample.tokens) for sample in samples], loss_of, backward, device)
