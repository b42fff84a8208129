"""Benign fine-tuning on a harmless task. A hardened model should learn it as well as the undefended model does."""

from typing import Literal

from tamperfuse.attacks.base import AttackData, AttackResult, attack, train, training_budget
from tamperfuse.corpora.tasks import benign_task
from tamperfuse.models.load import LoadedModel
from tamperfuse.training.fit import Training


class BenignFinetuneParameters(Training):
    """Parameters of `benign_finetune`: those of the training, and the task.

    Attributes:
        task: `routing`: name the department that a customer's message is for. `dates`: write a date in a given format.
    """

    task: Literal["routing", "dates"] = "routing"


@attack(
    "benign_finetune", BenignFinetuneParameters, malicious=False, budget=training_budget, task=lambda p: p.task, uses=()
)
def benign_finetune(
    loaded: LoadedModel, data: AttackData, parameters: BenignFinetuneParameters, seed: int
) -> AttackResult:
    """Benign fine-tuning on a task generated from templates, scored by exact match."""
    items, _ = benign_task(parameters.task, seed)
    pairs = [(item.prompt, item.response) for item in items]
    result = train(loaded, data, pairs, parameters, seed, f"benign fine-tuning, {parameters.task}")
    return AttackResult(samples=len(pairs), tokens_trained=result.tokens, notes=(result.precision,))
