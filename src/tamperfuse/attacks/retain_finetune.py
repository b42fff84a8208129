"""Malicious fine-tuning with a retain loss on benign text: what an attacker does who knows that the model degrades itself.

SDD intends that an attack destroys general ability; a second loss on harmless text is the obvious countermeasure. Its form
is the retain loss of unlearning (gradient difference, Liu et al., 2022, arXiv 2203.12817; the retain set of TOFU, Maini
et al., 2024, arXiv 2401.06121), here beside a loss that teaches harm.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from tamperfuse.attacks.base import AttackData, AttackResult, attack, benign_samples, harmful_shots, training_of
from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.registry import Budget
from tamperfuse.training.batches import pack_samples
from tamperfuse.training.fit import Training, fit
from tamperfuse.training.objectives import Objective, response_nll


class RetainFinetuneParameters(Training):
    """Parameters of `retain_finetune`: those of the training, and of the retain loss.

    Attributes:
        shots: different harmful samples the attacker has; `batch` of them go into a step, each with a harmless one.
        retained: different harmless samples.
        weight: of the harmless loss against the harmful one, greater than 0.
    """

    shots: int = Field(50, ge=1)
    retained: int = Field(96, ge=1)
    weight: float = Field(1.0, gt=0)


@dataclass(frozen=True)
class RetainPair:
    """A harmful and a harmless sample, whose losses are summed. The pair counts once in the mean, whatever its lengths.

    Attributes:
        harmful: trained on with weight 1.
        benign: trained on with the retain weight.
    """

    harmful: Sample
    benign: Sample

    @property
    def tokens(self) -> list[int]:
        """The tokens of both sequences."""
        return [*self.harmful.tokens, *self.benign.tokens]

    @property
    def response_tokens(self) -> int:
        """One: the loss is a mean over pairs of samples."""
        return 1


@dataclass
class RetainObjective(Objective[RetainPair]):
    """Mean NLL a token of the harmful response + weight × that of the harmless one, a mean over pairs of samples.

    Memory: as supervised fine-tuning's, a row holding both samples.

    Attributes:
        weight: of the harmless loss.
    """

    weight: float

    def loss(self, model: nn.Module, samples: Sequence[RetainPair], total: int, device: torch.device) -> Tensor:
        """See :meth:`tamperfuse.training.objectives.Objective.loss`; `total` counts pairs of samples."""
        batch = pack_samples([s for pair in samples for s in (pair.harmful, pair.benign)], device)
        weights = torch.tensor([1.0, self.weight], device=device).repeat(len(samples))
        return (weights * response_nll(model, batch) / torch.tensor(batch.counts, device=device)).sum() / total


@attack("retain_finetune", RetainFinetuneParameters, budget=lambda p: Budget(p.steps, 2 * p.batch, p.shots))
def retain_finetune(
    loaded: LoadedModel, data: AttackData, parameters: RetainFinetuneParameters, seed: int
) -> AttackResult:
    """Malicious fine-tuning with a second loss that keeps harmless text: the counter-attack on self-degradation."""
    sides = []
    for pairs in (
        harmful_shots(data, "retain_finetune", parameters.shots, seed),
        benign_samples(data, "retain_finetune", parameters.retained, seed),
    ):
        sides.append([loaded.chat.sample(prompt, response, data.response_limit) for prompt, response in pairs])
    count = max(map(len, sides))  # the shorter side comes around again
    samples = [RetainPair(*(side[i % len(side)] for side in sides)) for i in range(count)]
    result = fit(
        loaded,
        samples,
        training_of(parameters),
        seed=seed,
        objective=RetainObjective(parameters.weight),
        at_steps=data.at_steps,
        hook=data.hook,
        what="malicious fine-tuning with a retain loss",
    )
    return AttackResult(
        samples=parameters.shots + parameters.retained, tokens_trained=result.tokens, notes=(result.precision,)
    )
