"""What a new defense, attack or judge needs, in one import.

    from tamperfuse.plugins import DefenseData, DefenseResult, Parameters, defense

    class ShrinkParameters(Parameters):
        factor: float = 0.9

    @defense("shrink", ShrinkParameters)
    def shrink(loaded, data, parameters, seed):
        \"\"\"Scales the output layer.\"\"\"
        loaded.model.get_output_embeddings().weight.data.mul_(parameters.factor)
        return DefenseResult()

The functions of :mod:`tamperfuse` itself are verbs: `tamperfuse.attack(model, "merge")` runs an attack. The decorators of this
module register components: `@attack("merge", MergeParameters)`. CONTRIBUTING.md has a recipe for each kind.
"""

from tamperfuse.attacks.base import (
    TRAINING_SEARCH,
    AttackData,
    AttackResult,
    attack,
    benign_samples,
    harmful_shots,
    train,
    training_budget,
)
from tamperfuse.corpora.examples import Pair
from tamperfuse.defenses.base import DefenseData, DefenseResult, defense
from tamperfuse.evaluation.judges.base import Answer, JudgeData, Verdict, judge
from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.records.registry import Budget, Parameters
from tamperfuse.training.batches import pack_samples
from tamperfuse.training.fit import FitResult, Training, fit
from tamperfuse.training.objectives import Objective, SupervisedObjective, response_nll

__all__ = [
    "TRAINING_SEARCH",
    "Answer",
    "AttackData",
    "AttackResult",
    "Budget",
    "DefenseData",
    "DefenseResult",
    "FitResult",
    "JudgeData",
    "LoadedModel",
    "Objective",
    "Pair",
    "Parameters",
    "Sample",
    "SupervisedObjective",
    "Training",
    "UserError",
    "Verdict",
    "attack",
    "benign_samples",
    "defense",
    "fit",
    "harmful_shots",
    "judge",
    "pack_samples",
    "response_nll",
    "train",
    "training_budget",
]
