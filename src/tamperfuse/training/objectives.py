"""Objectives: what is computed on one micro-batch between drawing it and the optimizer step.

:class:`SupervisedObjective` is the default of :func:`tamperfuse.training.fit.fit`. A defense or an attack with another loss
subclasses :class:`Objective` and passes an instance to `fit`; the training loop stays the same:

    micro-batch ──split──▶ rows ──loss──▶ one scalar a row ──autograd──▶ parameter.grad ──▶ clipping, optimizer step

Most objectives define `loss` alone. One that works on weights, for example by taking a second gradient at perturbed weights
(see :mod:`tamperfuse.training.weights`), also overrides `backward`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from tamperfuse.models.chat import Sample
from tamperfuse.models.packed import packed_logits
from tamperfuse.models.precision import Masters
from tamperfuse.training.batches import PackedBatch, pack_samples
from tamperfuse.training.cross_entropy import sequence_nll
from tamperfuse.training.parameters import Trainable
from tamperfuse.training.rows import Backward, backward_in_rows

S = TypeVar("S", bound=Trainable)
S_contra = TypeVar("S_contra", bound=Trainable, contravariant=True)


class Loss(Protocol[S_contra]):
    """Signature of :meth:`Objective.loss`."""

    def __call__(self, model: nn.Module, samples: Sequence[S_contra], total: int, device: torch.device, /) -> Tensor:
        """See :meth:`Objective.loss`."""
        ...


class Accumulate(Protocol):
    """Accumulates the gradient of a loss over the micro-batch, at the model's current weights."""

    def __call__(self, loss: Loss[Any], used: Callable[[Any], Sequence[Sample]] | None = None, /) -> Tensor:
        """Run the forward and backward passes, and return the loss, detached.

        Args:
            loss: the loss.
            used: the sequences of a sample that this loss runs through the model, by which rows are split; None for all.
        """
        ...


class Objective(ABC, Generic[S]):
    """A training objective.

    All methods are called from the thread that called `fit`, one at a time. `loss` is called for one row of the micro-batch
    after the other (:mod:`tamperfuse.training.rows`), and the training loop differentiates what it returns. It must not
    change `parameter.grad`, for example by a backward pass of its own, since the gradients of all rows are added up there;
    `backward` may.
    """

    def begin(self, masters: Masters) -> None:
        """Prepare; called once, before the first step and after the model was distributed over processes.

        Args:
            masters: the model's weights, for objectives that perturb them.
        """

    def settings(self) -> dict[str, Any]:
        """The objective's settings: its attributes before :meth:`begin` that are numbers, strings, booleans, or lists of them.

        A training is resumed only with equal settings. An objective whose loss depends on other attributes overrides this
        method; the values must be JSON-able.
        """
        return {name: value for name, value in vars(self).items() if _is_plain(value)}

    @abstractmethod
    def loss(self, model: nn.Module, samples: Sequence[S], total: int, device: torch.device) -> Tensor:
        """What these samples contribute to the loss of the whole batch.

        Args:
            model: the model, in training mode; with several processes possibly wrapped (DDP, FSDP).
            samples: some samples of the micro-batch, at least one.
            total: sum of `response_tokens` over the whole batch (all processes and micro-batches): the loss's denominator.
            device: where to compute.

        Returns:
            A scalar that requires a gradient. Summed over all samples of the batch, it is the loss (for
            :class:`SupervisedObjective`: mean NLL, in nats a response token).
        """

    def backward(self, accumulate: Accumulate) -> Tensor:
        """Set the gradient of one micro-batch; by default that of `loss`.

        Args:
            accumulate: runs the forward and backward passes of all samples of the micro-batch for a loss, at the model's
                current weights, and adds the gradients to `parameter.grad`. May be called several times and with several
                losses; with several processes, equally often on each.

        Returns:
            The loss to report, detached.
        """
        return accumulate(self.loss)

    def state_dict(self) -> dict[str, Any]:
        """What the objective carries from step to step, for checkpoints: tensors and plain Python values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that :meth:`state_dict` returned; called after `begin`."""

    def recorded(self) -> dict[str, Any]:
        """What hooks recorded with the objective, JSON-able: unlike the state, it is kept when the training has ended."""
        return {}

    def load_recorded(self, recorded: dict[str, Any]) -> None:
        """Take what :meth:`recorded` returned, for a training that had ended."""


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def accumulate_gradient(
    objective: Objective[S],
    model: nn.Module,
    samples: Sequence[S],
    total: int,
    device: torch.device,
    backward: Backward = torch.autograd.backward,
) -> Tensor:
    """Run an objective on one micro-batch: its gradient is added to `parameter.grad`.

    Args:
        objective: the objective.
        model: the model.
        samples: the micro-batch: this process's share of the batch.
        total: sum of `response_tokens` over the whole batch.
        device: of the model.
        backward: runs the backward pass of a scalar; with several processes it must be accelerate's.

    Returns:
        The share of the batch's loss, detached.
    """

    def accumulate(loss: Loss[S], used: Callable[[S], Sequence[Sample]] | None = None, /) -> Tensor:
        def row_loss(row: list[int]) -> Tensor:
            return loss(model, [samples[i] for i in row], total, device)

        lengths = [
            sum(len(sequence.tokens) for sequence in used(sample)) if used else len(sample.tokens) for sample in samples
        ]
        return backward_in_rows(lengths, row_loss, backward, device)

    return objective.backward(accumulate)


def response_nll(model: nn.Module, batch: PackedBatch) -> Tensor:
    """−log p(response | prompt) of each sample of a batch, in nats: (samples,)."""
    return sequence_nll(packed_logits(model, batch.row, batch.layout, batch.positions), batch.targets, batch.counts)


class SupervisedObjective(Objective[Sample]):
    """Cross-entropy on response tokens (SDD, Chen et al., 2025, arXiv 2507.21182, section 4.2).

    Memory: the gradients of the trained weights, and what :func:`tamperfuse.training.rows.backward_in_rows` needs, including
    the logits of one row's response tokens.
    """

    def loss(self, model: nn.Module, samples: Sequence[Sample], total: int, device: torch.device) -> Tensor:
        """See :meth:`Objective.loss`."""
        return response_nll(model, pack_samples(samples, device)).sum() / total
