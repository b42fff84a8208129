"""Benign fine-tuning: what an honest user does with published weights. A hardened model must learn as its twin does."""

from typing import Literal

from tamperfuse.attacks.base import AttackData, AttackResult, attack, train, training_budget
from tamperfuse.corpora.tasks import benign_task
from tamperfuse.models.load import LoadedModel
from tamperfuse.training.fit import Training


class BenignFinetuneParameters(Training):
    """Parameters of `benign_finetune`: those of the training, and the task.

    Attributes:
        task: sending customers' messages to the right desk, or writing dates in a house style.
    """

    task: Literal["routing", "dates"] = "routing"


@attack(
    "benign_finetune", BenignFinetuneParameters, malicious=False, budget=training_budget, task=lambda p: p.task, uses=()
)
def benign_finetune(
    loaded: LoadedModel, data: AttackData, parameters: BenignFinetuneParameters, seed: int
) -> AttackResult:
    """Honest fine-tuning on a harmless task made from templates, scored by exact match."""
    items, _ = benign_task(parameters.task, seed)
    pairs = [(item.prompt, item.response) for item in items]
    result = train(loaded, data, pairs, parameters, seed, f"benign fine-tuning, {parameters.task}")
    return AttackResult(samples=len(pairs), tokens_trained=result.tokens, notes=(result.precision,))
