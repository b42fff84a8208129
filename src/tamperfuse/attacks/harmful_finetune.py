"""Malicious fine-tuning: supervised training on the threat's prompts with compliant answers.

The attack of the SDD paper's section 5.2 (10, 50 and 100 shots) and of Qi et al. (2024, arXiv 2310.03693), section 4.2.
"""

from pydantic import Field

from tamperfuse.attacks.base import TRAINING_SEARCH, AttackData, AttackResult, attack, harmful_shots, train
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.registry import Budget
from tamperfuse.training.fit import Training


class HarmfulFinetuneParameters(Training):
    """Parameters of `harmful_finetune`: those of the training, and the attacker's samples.

    Attributes:
        shots: distinct harmful samples.
    """

    shots: int = Field(50, ge=1)


@attack(
    "harmful_finetune",
    HarmfulFinetuneParameters,
    budget=lambda p: Budget(p.steps, p.batch, p.shots),
    uses=(),
    search_over=TRAINING_SEARCH,
)
def harmful_finetune(
    loaded: LoadedModel, data: AttackData, parameters: HarmfulFinetuneParameters, seed: int
) -> AttackResult:
    """Malicious fine-tuning on compliant answers: of all weights, some of them, or a LoRA adapter."""
    shots = harmful_shots(data, "harmful_finetune", parameters.shots, seed)
    result = train(loaded, data, shots, parameters, seed, "malicious fine-tuning")
    return AttackResult(samples=len(shots), tokens_trained=result.tokens, notes=(result.precision,))
