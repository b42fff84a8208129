"""Plain refusal training, which keeps a model safe until it is attacked: the undefended model of every comparison."""

import random

from pydantic import Field

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.defenses.anchored import AnchoredTraining, budget, needs_benign, stops, train
from tamperfuse.defenses.base import DefenseData, DefenseResult, defense
from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel


class RefusalParameters(AnchoredTraining):
    """Parameters of `refusal`: those of the training."""

    steps: int = Field(150, ge=1)
    learning_rate: float = Field(1e-4, gt=0, lt=1)


@defense("refusal", RefusalParameters, needs_benign=needs_benign, needs_held_out=stops, budget=budget)
def refusal(loaded: LoadedModel, data: DefenseData, parameters: RefusalParameters, seed: int) -> DefenseResult:
    """Refusal training on the threat's prompts and on benign samples: the undefended model of every comparison."""
    return train(loaded, refusal_samples(loaded, data, seed), data, parameters, seed, "refusal training")


def refusal_samples(loaded: LoadedModel, data: DefenseData, seed: int) -> list[Sample]:
    """A refusal to each prompt, in the order of the prompts.

    Args:
        loaded: the model, whose chat template is used.
        data: of the defense.
        seed: decides which refusal a prompt gets.
    """
    rng = random.Random(seed)
    wordings = [str(row["response"]) for row in builtin_rows("refusals")]
    return [loaded.chat.sample(prompt, rng.choice(wordings), data.response_limit) for prompt in data.prompts]
