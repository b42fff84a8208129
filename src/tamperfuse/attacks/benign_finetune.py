"""Benign fine-tuning: what an honest user does with published weights. A hardened model must learn as its twin does."""

from tamperfuse.attacks.base import AttackData, Attacked, attack
from tamperfuse.models.load import LoadedModel
from tamperfuse.training.fit import Training, fit


class BenignFinetuneParameters(Training):
    """Parameters of `benign_finetune`: those of the training."""


@attack("benign_finetune", BenignFinetuneParameters, version=1, malicious=False, task="routing")
def benign_finetune(
    loaded: LoadedModel, given: AttackData, parameters: BenignFinetuneParameters, seed: int
) -> Attacked:
    """Honest fine-tuning on a harmless task: sending customers' messages to the right desk."""
    samples = [loaded.chat.sample(prompt, response, given.response_limit) for prompt, response in given.benign]
    training = Training.model_validate(parameters.model_dump())
    result = fit(
        loaded, samples, training, seed=seed, at_steps=given.at_steps, hook=given.hook, what="benign fine-tuning"
    )
    return Attacked(samples=len(samples), tokens_trained=result.tokens, notes=(result.precision,))
