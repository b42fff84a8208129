"""Units with a compliant answer besides supervised and distillation samples, for objectives that work against such answers."""

from collections.abc import Sequence
from dataclasses import dataclass

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


def token_nll(model: nn.Module, samples: Sequence[Sample], device: torch.device) -> Tensor:
    """−log p(response | prompt) of each sample, in nats a response token: (samples,)."""
    batch = pack_samples(samples, device)
    return response_nll(model, batch) / torch.tensor(batch.counts, device=device)


def answer_loss(model: nn.Module, units: Sequence[AnsweredUnit], total: int, device: torch.device) -> Tensor:
    """The loss of malicious fine-tuning: the mean NLL a token of the compliant answers, a mean over units.

    Its signature is that of :meth:`tamperfuse.training.objectives.Objective.loss`.
    """
    return token_nll(model, [unit.answer for unit in units], device).sum() / total
