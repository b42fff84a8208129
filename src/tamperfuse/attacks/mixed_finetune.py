"""Poisoned fine-tuning: a few harmful samples among benign ones, as a fine-tuning service might receive them.

The harmful share ("poison ratio") is that of Vaccine (Huang et al., 2024, arXiv 2402.01109) and Lisa (Huang et al., 2024,
arXiv 2405.18641).
"""

from pydantic import Field

from tamperfuse.attacks.base import (
    TRAINING_SEARCH,
    AttackData,
    AttackResult,
    attack,
    benign_samples,
    harmful_shots,
    train,
)
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.registry import Budget
from tamperfuse.training.fit import Training


class MixedFinetuneParameters(Training):
    """Parameters of `mixed_finetune`: those of the training, and the mixture.

    Attributes:
        samples: number of samples, harmful and benign together, at least 2.
        share: share of harmful samples, in (0, 1]; at least one sample is harmful, and if the share is below 1, at least one is
            benign.
    """

    samples: int = Field(100, ge=2)
    share: float = Field(0.1, gt=0, le=1)


@attack(
    "mixed_finetune",
    MixedFinetuneParameters,
    budget=lambda p: Budget(p.steps, p.batch, _harmful(p), benign=p.samples - _harmful(p)),
    search_over=TRAINING_SEARCH,
)
def mixed_finetune(
    loaded: LoadedModel, data: AttackData, parameters: MixedFinetuneParameters, seed: int
) -> AttackResult:
    """Poisoned fine-tuning: benign samples, a share of them replaced by compliant answers to the threat."""
    harmful = _harmful(parameters)
    pairs = harmful_shots(data, "mixed_finetune", harmful, seed)
    pairs += benign_samples(data, "mixed_finetune", parameters.samples - harmful, seed)
    result = train(loaded, data, pairs, parameters, seed, "poisoned fine-tuning")
    notes = (f"{harmful} of {parameters.samples} samples are harmful", result.precision)
    return AttackResult(samples=parameters.samples, tokens_trained=result.tokens, notes=notes)


def _harmful(parameters: MixedFinetuneParameters) -> int:
    """Number of harmful samples."""
    most = parameters.samples if parameters.share == 1 else parameters.samples - 1
    return min(max(1, round(parameters.share * parameters.samples)), most)
