"""Preference training: Direct Preference Optimization (Rafailov et al., 2023, arXiv 2305.18290, equation 7).

The loss is the one that trl calls `sigmoid`; a test compares the two. It is implemented here because trl has it only as part of
its trainer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.precision import compute_dtype, reduced_precision
from tamperfuse.records.batching import group_by_budget
from tamperfuse.training.batches import pack_samples
from tamperfuse.training.objectives import Objective, response_nll
from tamperfuse.training.rows import ROW_TOKENS


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt. Each preference has the same weight in the loss, whatever the length of its answers.

    Attributes:
        chosen: the preferred answer.
        rejected: the other answer.
        margin: log π₀(chosen) − log π₀(rejected) under the model before training, in nats.
    """

    chosen: Sample
    rejected: Sample
    margin: float

    @property
    def tokens(self) -> list[int]:
        """Tokens of both sequences."""
        return [*self.chosen.tokens, *self.rejected.tokens]

    @property
    def response_tokens(self) -> int:
        """1: the loss is a mean over preferences."""
        return 1


def preferences(loaded: LoadedModel, pairs: Sequence[tuple[Sample, Sample]]) -> list[Preference]:
    """Build preferences from (chosen, rejected) samples, with the margins of the model as it is now.

    One forward pass over all samples, in the device's fastest dtype. The margins replace DPO's reference model, so no second
    copy of the weights is needed during training.
    """
    dtype, _ = compute_dtype(loaded.model.device)
    margins = [float("nan")] * len(pairs)
    loaded.model.eval()
    with torch.no_grad(), reduced_precision(loaded.model, dtype):
        for row in group_by_budget(
            [len(chosen.tokens) + len(rejected.tokens) for chosen, rejected in pairs], ROW_TOKENS
        ):
            values = _margins(loaded.model, [pairs[i] for i in row], loaded.model.device).tolist()
            for index, value in zip(row, values, strict=True):
                margins[index] = value
    return [Preference(chosen, rejected, margin) for (chosen, rejected), margin in zip(pairs, margins, strict=True)]


@dataclass
class PreferenceObjective(Objective[Preference]):
    """−log σ(β (current margin − margin before training)), a mean over preferences.

    Memory: that of supervised fine-tuning, where a row holds both answers; no reference model.

    Attributes:
        beta: strength of the implicit KL penalty towards the model before training, greater than 0.
    """

    beta: float = 0.1

    def loss(self, model: nn.Module, samples: Sequence[Preference], total: int, device: torch.device) -> Tensor:
        """See :meth:`tamperfuse.training.objectives.Objective.loss`; `total` counts preferences."""
        margins = _margins(model, [(sample.chosen, sample.rejected) for sample in samples], device)
        gains = margins - torch.tensor([sample.margin for sample in samples], device=device)
        return -F.logsigmoid(self.beta * gains).sum() / total


def _margins(model: nn.Module, pairs: Sequence[tuple[Sample, Sample]], device: torch.device) -> Tensor:
    """The margin log π(chosen) − log π(rejected) of each pair, in nats: (pairs,)."""
    batch = pack_samples([sample for pair in pairs for sample in pair], device)
    nll = response_nll(model, batch)
    return nll[1::2] - nll[0::2]
