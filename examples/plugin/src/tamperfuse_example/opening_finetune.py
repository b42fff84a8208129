"""An attack: fine-tuning on the first tokens of compliant answers only.

Safety training changes mostly the first tokens of an answer, and so does fine-tuning that undoes it (Qi et al., 2025, arXiv
2406.05946, sections 2 and 4). An attacker who trains on these tokens alone needs only the openings of compliant answers.
"""

from dataclasses import replace

from pydantic import Field

from tamperfuse.plugins import (
    TRAINING_SEARCH,
    AttackData,
    AttackResult,
    Budget,
    LoadedModel,
    Training,
    attack,
    harmful_shots,
    train,
)


class OpeningFinetuneParameters(Training):
    """Parameters of `opening_finetune`: those of the training, and the attacker's samples.

    Attributes:
        shots: distinct harmful samples.
        tokens: length of the openings, in tokens.
    """

    shots: int = Field(50, ge=1)
    tokens: int = Field(5, ge=1)


@attack(
    "opening_finetune",
    OpeningFinetuneParameters,
    budget=lambda p: Budget(p.steps, p.batch, p.shots),
    uses=(),
    search_over=TRAINING_SEARCH,
)
def opening_finetune(
    loaded: LoadedModel, data: AttackData, parameters: OpeningFinetuneParameters, seed: int
) -> AttackResult:
    """Malicious fine-tuning on the openings of compliant answers."""
    shots = harmful_shots(data, "opening_finetune", parameters.shots, seed)
    openings = replace(data, response_limit=min(parameters.tokens, data.response_limit))
    result = train(loaded, openings, shots, parameters, seed, "fine-tuning on openings")
    return AttackResult(samples=len(shots), tokens_trained=result.tokens, notes=(result.precision,))
