"""Malicious fine-tuning: supervised training on the threat's prompts with compliant answers.

The attack of the SDD paper's section 5.2 (10, 50 and 100 shots) and of Qi et al. (2024, arXiv 2310.03693).
"""

import random

from pydantic import Field

from tamperfuse.attacks.base import AttackData, Attacked, attack
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.training.fit import Training, fit


class HarmfulFinetuneParameters(Training):
    """Parameters of `harmful_finetune`: those of the training, and the attacker's samples.

    Attributes:
        shots: different samples the attacker has.
    """

    shots: int = Field(100, ge=1)


@attack("harmful_finetune", HarmfulFinetuneParameters, version=1, malicious=True)
def harmful_finetune(
    loaded: LoadedModel, given: AttackData, parameters: HarmfulFinetuneParameters, seed: int
) -> Attacked:
    """Malicious fine-tuning on a number of compliant answers, of all weights or a LoRA adapter."""
    if parameters.shots > len(given.harmful):
        raise UserError(
            f"harmful_finetune asks for {parameters.shots} shots; the attacker has {len(given.harmful)} answered prompts: "
            "lower shots, or name a threat with more."
        )
    chosen = random.Random(seed).sample(list(given.harmful), parameters.shots)
    samples = [loaded.chat.sample(prompt, response, given.response_limit) for prompt, response in chosen]
    training = Training.model_validate(parameters.model_dump(exclude={"shots"}))
    result = fit(
        loaded, samples, training, seed=seed, at_steps=given.at_steps, hook=given.hook, what="malicious fine-tuning"
    )
    return Attacked(samples=parameters.shots, tokens_trained=result.tokens, notes=(result.precision,))
