"""Malicious fine-tuning with a retain loss on benign text: an attack adapted to self-degrading defenses.

Under SDD an attack is meant to destroy general ability; a second loss on benign text counteracts that. It has the form of the
retain loss of unlearning (gradient difference, Liu et al., 2022, arXiv 2203.12817; the retain set of TOFU, Maini et al., 2024,
arXiv 2401.06121), here added to the loss on harmful samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from tamperfuse.attacks.base import (
    TRAINING_SEARCH,
    AttackData,
    AttackResult,
    attack,
    benign_samples,
    harmful_shots,
    training_of,
)
from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.registry import Budget
from tamperfuse.training.batches import pack_samples
from tamperfuse.training.fit import Training, fit
from tamperfuse.training.objectives import Objective, response_nll


class RetainFinetuneParameters(Training):
    """Parameters of `retain_finetune`: those of the training, and of the retain loss.

    Attributes:
        shots: distinct harmful samples; a step trains on `batch` of them and on as many benign samples.
        retained: distinct benign samples.
        weight: weight of the loss on benign samples, relative to that on harmful ones; greater than 0.
    """

    shots: int = Field(50, ge=1)
    retained: int = Field(96, ge=1)
    weight: float = Field(1.0, gt=0)


@dataclass(frozen=True)
class RetainPair:
    """A harmful and a benign sample, whose weighted losses are added.

    Attributes:
        harmful: with weight 1.
        benign: with the weight of the retain loss.
    """

    harmful: Sample
    benign: Sample

    @property
    def tokens(self) -> list[int]:
        """The tokens of both sequences."""
        return [*self.harmful.tokens, *self.benign.tokens]

    @property
    def response_tokens(self) -> int:
        """One: the loss is a mean over pairs of samples, whatever their lengths."""
        return 1


@dataclass
class RetainObjective(Objective[RetainPair]):
    """Mean over pairs of: NLL per token of the harmful response + weight × NLL per token of the benign one.

    Memory: as for supervised fine-tuning; both samples of a pair are in one row.

    Attributes:
        weight: of the loss on benign samples.
    """

    weight: float

    def loss(self, model: nn.Module, samples: Sequence[RetainPair], total: int, device: torch.device) -> Tensor:
        """See :meth:`tamperfuse.training.objectives.Objective.loss`; `total` counts pairs of samples."""
        batch = pack_samples([s for pair in samples for s in (pair.harmful, pair.benign)], device)
        weights = torch.tensor([1.0, self.weight], device=device).repeat(len(samples))
        return (weights * response_nll(model, batch) / torch.tensor(batch.counts, device=device)).sum() / total


@attack(
    "retain_finetune",
    RetainFinetuneParameters,
    budget=lambda p: Budget(p.steps, 2 * p.batch, p.shots, benign=p.retained),
    search_over=TRAINING_SEARCH,
)
def retain_finetune(
    loaded: LoadedModel, data: AttackData, parameters: RetainFinetuneParameters, seed: int
) -> AttackResult:
    """Malicious fine-tuning with a retain loss on benign samples, against self-degradation."""
    sides = []
    for pairs in (
        harmful_shots(data, "retain_finetune", parameters.shots, seed),
        benign_samples(data, "retain_finetune", parameters.retained, seed),
    ):
        sides.append([loaded.chat.sample(prompt, response, data.response_limit) for prompt, response in pairs])
    count = max(map(len, sides))  # the shorter side is repeated
    samples = [RetainPair(*(side[i % len(side)] for side in sides)) for i in range(count)]
    result = fit(
        loaded,
        samples,
        training_of(parameters),
        seed=seed,
        objective=RetainObjective(parameters.weight),
        at_steps=data.at_steps,
        hook=data.hook,
        label="malicious fine-tuning with a retain loss",
    )
    return AttackResult(
        samples=parameters.shots + parameters.retained, tokens_trained=result.tokens, notes=(result.precision,)
    )
