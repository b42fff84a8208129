"""Malicious fine-tuning in two phases: one on harmful samples, and one on benign samples before or after it.

A benign phase before may undo the hardening; a benign phase after may repair the capability that the attack destroyed. Qi et al.
(2024, arXiv 2412.07097) find that defenses that withstand one fine-tuning attack often fail against slight variations of it, and
recommend testing such variations.
"""

from typing import Literal

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


class RepairFinetuneParameters(Training):
    """Parameters of `repair_finetune`: those of the training, and of its two phases, each with its own schedule and warm-up.

    Attributes:
        steps: optimizer steps of both phases together, at least 2.
        shots: distinct harmful samples.
        order: whether the benign phase comes before or after the harmful one.
        repair: share of the steps in the benign phase, in (0, 1); each phase has at least one step.
        samples: distinct benign samples.
    """

    steps: int = Field(50, ge=2)
    shots: int = Field(50, ge=1)
    order: Literal["before", "after"] = "after"
    repair: float = Field(0.5, gt=0, lt=1)
    samples: int = Field(96, ge=1)


@attack(
    "repair_finetune",
    RepairFinetuneParameters,
    # The second phase writes resume states beside the weights that the first one ended with.
    budget=lambda p: Budget(p.steps, p.batch, p.shots, benign=p.samples, resume_copies=4),
    search_over=TRAINING_SEARCH,
)
def repair_finetune(
    loaded: LoadedModel, data: AttackData, parameters: RepairFinetuneParameters, seed: int
) -> AttackResult:
    """Malicious fine-tuning, with fine-tuning on benign samples before or after it."""
    benign_steps = min(max(1, round(parameters.repair * parameters.steps)), parameters.steps - 1)
    harmful_steps = parameters.steps - benign_steps
    harmful = (harmful_shots(data, "repair_finetune", parameters.shots, seed), harmful_steps, "malicious fine-tuning")
    benign = (benign_samples(data, "repair_finetune", parameters.samples, seed), benign_steps, "benign fine-tuning")
    first, second = (benign, harmful) if parameters.order == "before" else (harmful, benign)
    tokens, notes = 0, []
    for phase_data, (pairs, steps, label) in ((data, first), (data.after(first[1]), second)):
        result = train(loaded, phase_data, pairs, parameters, seed, label, steps=steps)
        tokens += result.tokens
        notes.append(f"{steps} steps of {label}")
    return AttackResult(
        samples=parameters.shots + parameters.samples, tokens_trained=tokens, notes=(*notes, result.precision)
    )
