"""Malicious fine-tuning that keeps benign text: what to expect of someone who knows that the model degrades itself.

SDD's promise is that an attack takes general ability with it; a second loss on harmless text is the plain answer to it. The
form is the retain loss of unlearning (gradient difference, Liu et al., 2022, arXiv 2203.12817; the retain set of TOFU, Maini
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
from tamperfuse.training.batches import pack_samples
from tamperfuse.training.fit import Training, fit
from tamperfuse.training.objectives import Objective, response_nll


class RetainFinetuneParameters(Training):
    """Parameters of `retain_finetune`: those of the training, and what it keeps.

    Attributes:
        shots: different harmful samples the attacker has; `batch` of them go into a step, each with a harmless one.
        kept: different harmless samples.
        weight: of the harmless loss against the harmful one, greater than 0.
    """

    shots: int = Field(50, ge=1)
    kept: int = Field(96, ge=1)
    weight: float = Field(1.0, gt=0)


@dataclass(frozen=True)
class Kept:
    """A harmful sample and the harmless one that is kept beside it. Its loss counts once, whatever the lengths.

    Attributes:
        harmful: to learn.
        benign: to keep.
    """

    harmful: Sample
    benign: Sample

    @property
    def tokens(self) -> list[int]:
        """Both sequences' tokens: what a step has to carry."""
        return [*self.harmful.tokens, *self.benign.tokens]

    @property
    def response_tokens(self) -> int:
        """One: the loss is a mean over pairs of samples."""
        return 1


@dataclass
class RetainObjective(Objective[Kept]):
    """Mean NLL a token of the harmful response + weight × that of the harmless one, a mean over pairs of samples.

    Memory: as supervised fine-tuning's, a row holding both samples.

    Attributes:
        weight: of the harmless loss.
    """

    weight: float

    def loss(self, model: nn.Module, samples: Sequence[Kept], total: int, device: torch.device) -> Tensor:
        """See :meth:`tamperfuse.training.objectives.Objective.loss`; `total` counts pairs of samples."""
        batch = pack_samples([s for pair in samples for s in (pair.harmful, pair.benign)], device)
        weights = torch.tensor([1.0, self.weight], device=device).repeat(len(samples))
        return (weights * response_nll(model, batch) / torch.tensor(batch.counts, device=device)).sum() / total


@attack("retain_finetune", RetainFinetuneParameters, version=1, malicious=True, uses=("retain",))
def retain_finetune(
    loaded: LoadedModel, given: AttackData, parameters: RetainFinetuneParameters, seed: int
) -> AttackResult:
    """Malicious fine-tuning with a second loss that keeps harmless text: the counter-attack on self-degradation."""
    sides = []
    for pairs in (
        harmful_shots(given, "retain_finetune", parameters.shots, seed),
        benign_samples(given, "retain_finetune", parameters.kept, seed),
    ):
        sides.append([loaded.chat.sample(prompt, response, given.response_limit) for prompt, response in pairs])
    count = max(map(len, sides))  # the shorter side comes around again
    kept = [Kept(*(side[i % len(side)] for side in sides)) for i in range(count)]
    result = fit(
        loaded,
        kept,
        training_of(parameters),
        seed=seed,
        objective=RetainObjective(parameters.weight),
        at_steps=given.at_steps,
        hook=given.hook,
        what="malicious fine-tuning, benign text kept",
    )
    return AttackResult(
        samples=parameters.shots + parameters.kept, tokens_trained=result.tokens, notes=(result.precision,)
    )
