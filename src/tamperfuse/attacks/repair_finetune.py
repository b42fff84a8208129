"""Malicious fine-tuning with a repair: harmless text is trained before the harmful samples, or after them.

Before, it may take a hardened model out of the region that its defense shaped; after, it may mend what the attack broke.
Qi et al. (2024, arXiv 2412.07097) find that defenses which hold against one way of fine-tuning fall to slight changes of it,
and urge to test such changes.
"""

from typing import Literal

from pydantic import Field

from tamperfuse.attacks.base import AttackData, AttackResult, attack, benign_samples, harmful_shots, train
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.registry import Budget
from tamperfuse.training.fit import Training


class RepairFinetuneParameters(Training):
    """Parameters of `repair_finetune`: those of the training, and of its two phases. Schedule and warm-up begin anew in each.

    Attributes:
        steps: of both phases together, at least 2.
        shots: different harmful samples the attacker has.
        order: whether harmless text is trained before the harmful samples or after them.
        repair: share of the steps that train harmless text, in (0, 1); each phase has at least one step.
        samples: different harmless samples.
    """

    steps: int = Field(50, ge=2)
    shots: int = Field(50, ge=1)
    order: Literal["before", "after"] = "after"
    repair: float = Field(0.5, gt=0, lt=1)
    samples: int = Field(96, ge=1)


@attack("repair_finetune", RepairFinetuneParameters, budget=lambda p: Budget(p.steps, p.batch, p.shots))
def repair_finetune(
    loaded: LoadedModel, data: AttackData, parameters: RepairFinetuneParameters, seed: int
) -> AttackResult:
    """Malicious fine-tuning with benign recovery before it, or after it of what broke."""
    repairing = min(max(1, round(parameters.repair * parameters.steps)), parameters.steps - 1)
    harm = (harmful_shots(data, "repair_finetune", parameters.shots, seed), parameters.steps - repairing, "malicious")
    mend = (benign_samples(data, "repair_finetune", parameters.samples, seed), repairing, "repairing")
    first, second = (mend, harm) if parameters.order == "before" else (harm, mend)
    tokens, notes = 0, []
    for phase, (pairs, steps, what) in ((data, first), (data.after(first[1]), second)):
        result = train(loaded, phase, pairs, parameters, seed, f"{what} fine-tuning", steps=steps)
        tokens += result.tokens
        notes.append(f"{steps} steps {what}")
    return AttackResult(
        samples=parameters.shots + parameters.samples, tokens_trained=tokens, notes=(*notes, result.precision)
    )
