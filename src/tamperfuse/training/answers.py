"""Units with a compliant answer besides supervised and distillation samples, for objectives that work against such answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tamperfuse.models.chat import Sample
from tamperfuse.training.batches import pack_samples
from tamperfuse.training.distillation import Anchored
from tamperfuse.training.objectives import response_nll


@dataclass(frozen=True)
class AnsweredUnit(Anchored):
    """A unit of a batch.

    Attributes:
        answer: a compliant answer to a prompt of the threat.
    """

    answer: Sample

    @property
    def tokens(self) -> list[int]:
        """Tokens of all sequences."""
        return [*super().tokens, *self.answer.tokens]


def answered(units: Sequence[Anchored], answers: Sequence[Sample]) -> list[AnsweredUnit]:
    """Add a compliant answer to each unit; as many units, in the same order.

    Args:
        units: with supervised and distillation samples.
        answers: compliant answers, at least one; repeated if there are fewer than units.
    """
    return [AnsweredUnit(unit.learn, unit.keep, answers[i % len(answers)]) for i, unit in enumerate(units)]


def answer_of(unit: AnsweredUnit) -> list[Sample]:
    """The compliant answer of a unit, for losses on it alone."""
    return [unit.answer]


def token_nll(model: nn.Module, samples: Sequence[Sample], device: torch.device) -> Tensor:
    """−log p(response | prompt) of each sample, in nats a response token: (samples,)."""
    batch = pack_samples(samples, device)
    return response_nll(model, batch) / torch.tensor(batch.counts, device=device)


def nll_of(
    used: Callable[[Any], Sequence[Sample]], model: nn.Module, units: Sequence[Any], total: int, device: torch.device
) -> Tensor:
    """The loss of fine-tuning on some of a unit's sequences: their mean NLL a token, summed over a unit's, a mean over units.

    With its first argument given, its signature is that of :meth:`tamperfuse.training.objectives.Objective.loss`.

    Args:
        used: those sequences of a unit.
        model: see there; so are the others.
        units: at least one.
        total: units in the whole batch.
        device: where to compute.
    """
    return token_nll(model, [sample for unit in units for sample in used(unit)], device).sum() / total


#: The loss of malicious fine-tuning on units with a compliant answer.
answer_loss = partial(nll_of, answer_of)
