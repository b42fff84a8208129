"""Preference training: Direct Preference Optimization (Rafailov et al., 2023, arXiv 2305.18290, equation 7).

The loss is the one that trl calls `sigmoid` (a test holds the two against each other); trl keeps it inside its trainer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.precision import Masters, compute_dtype, reduced_precision
from tamperfuse.records.batching import budgeted
from tamperfuse.training.batches import pack_samples
from tamperfuse.training.objectives import response_nll
from tamperfuse.training.rows import ROW_TOKENS, Backward, backward_in_rows


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt. Trains like a sample; its loss counts once, whatever its length.

    Attributes:
        chosen: the answer to prefer.
        rejected: the answer to prefer it over.
        margin: log π₀(chosen) − log π₀(rejected) of the model before training, in nats.
    """

    chosen: Sample
    rejected: Sample
    margin: float

    @property
    def tokens(self) -> list[int]:
        """Both sequences' tokens: what a step has to carry."""
        return [*self.chosen.tokens, *self.rejected.tokens]

    @property
    def response_tokens(self) -> int:
        """One: the loss is a mean over preferences."""
        return 1


def preferences(loaded: LoadedModel, pairs: Sequence[tuple[Sample, Sample]]) -> list[Preference]:
    """Preferences of (chosen, rejected) samples, against the model as it is now.

    One forward pass over all of them, in the device's best dtype; no second copy of the weights is kept for reference.
    """
    dtype, _ = compute_dtype(loaded.model.device)
    found: list[Preference] = []
    loaded.model.eval()
    with torch.no_grad(), reduced_precision(loaded.model, dtype):
        margins = [float("nan")] * len(pairs)
        for group in budgeted([len(a.tokens) + len(b.tokens) for a, b in pairs], ROW_TOKENS):
            values = _margins(loaded.model, [pairs[i] for i in group], loaded.model.device).tolist()
            for index, value in zip(group, values, strict=True):
                margins[index] = value
        found = [Preference(a, b, margin) for (a, b), margin in zip(pairs, margins, strict=True)]
    return found


@dataclass
class PreferenceObjective:
    """−log σ(β (margin now − margin before)), a mean over preferences.

    Memory: as supervised fine-tuning's, a row holding both answers; no reference model.

    Attributes:
        beta: how strongly the model is held to where it began; greater is tighter.
    """

    beta: float = 0.1

    def begin(self, masters: Masters) -> None:
        """Nothing to prepare."""

    def backward(
        self, model: nn.Module, samples: Sequence[Preference], total: int, backward: Backward, device: torch.device
    ) -> Tensor:
        """See :class:`tamperfuse.training.objectives.Objective`; `total` counts preferences."""

        def loss_of(row: list[int]) -> Tensor:
            chosen = [samples[i] for i in row]
            now = _margins(model, [(p.chosen, p.rejected) for p in chosen], device)
            gained = now - torch.tensor([p.margin for p in chosen], device=device)
            return -F.logsigmoid(self.beta * gained).sum() / total

        return backward_in_rows(model, [len(sample.tokens) for sample in samples], loss_of, backward, device)


def _margins(model: nn.Module, pairs: Sequence[tuple[Sample, Sample]], device: torch.device) -> Tensor:
    """How much likelier the chosen answer is, log π(chosen) − log π(rejected) in nats: (pairs,)."""
    batch = pack_samples([sample for pair in pairs for sample in pair], device)
    nll = response_nll(model, batch)
    return nll[1::2] - nll[0::2]
