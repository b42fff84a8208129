"""Poisoned fine-tuning: a few harmful samples among harmless ones, as a fine-tuning service might be handed them.

The harmful share ("poison ratio") is that of Vaccine (Huang et al., 2024, arXiv 2402.01109) and Lisa (Huang et al., 2024,
arXiv 2405.18641).
"""

from pydantic import Field

from tamperfuse.attacks.base import AttackData, AttackResult, attack, benign_samples, harmful_shots, train
from tamperfuse.models.load import LoadedModel
from tamperfuse.training.fit import Training


class MixedFinetuneParameters(Training):
    """Parameters of `mixed_finetune`: those of the training, and the mixture.

    Attributes:
        samples: of both kinds together, at least 2.
        share: of them that are harmful, in (0, 1]; at least one is, and below 1 at least one is not.
    """

    samples: int = Field(100, ge=2)
    share: float = Field(0.1, gt=0, le=1)


@attack("mixed_finetune", MixedFinetuneParameters, version=1, malicious=True, uses=("retain",))
def mixed_finetune(
    loaded: LoadedModel, given: AttackData, parameters: MixedFinetuneParameters, seed: int
) -> AttackResult:
    """Poisoned fine-tuning: a share of compliant answers among harmless samples."""
    most = parameters.samples if parameters.share == 1 else parameters.samples - 1
    harmful = min(max(1, round(parameters.share * parameters.samples)), most)
    pairs = harmful_shots(given, "mixed_finetune", harmful, seed)
    pairs += benign_samples(given, "mixed_finetune", parameters.samples - harmful, seed)
    result = train(loaded, given, pairs, parameters, seed, "poisoned fine-tuning")
    notes = (f"{harmful} of {parameters.samples} samples are harmful", result.precision)
    return AttackResult(samples=parameters.samples, tokens_trained=result.tokens, notes=notes)
