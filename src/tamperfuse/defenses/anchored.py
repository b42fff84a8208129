"""Training that the defenses share: new answers to the threat's prompts, beside distillation on benign samples.

refusal, sdd, …     supervised samples: cross-entropy                  ─┐
the benign set      distillation samples: KL to the model as shipped   ─┴▶ one loss
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from tamperfuse.defenses.base import DefenseData, DefenseResult
from tamperfuse.defenses.stopping import Stopping
from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.records.registry import Budget, Parameters
from tamperfuse.training.checkpoints import current_block
from tamperfuse.training.distillation import Anchored, AnchoredObjective, anchored
from tamperfuse.training.fit import Training, fit
from tamperfuse.training.objectives import Objective


class AnchoredTraining(Parameters):
    """Parameters of a training with distillation.

    Attributes:
        steps: optimizer steps.
        learning_rate: peak value of AdamW's; it falls linearly to 0.
        batch: supervised samples in a step.
        benign_ratio: benign samples in a step for each supervised sample, at least 0.
        price: KL from the model as shipped on benign samples that are held back, in nats a token, at which the training ends.
            With it `refusal`, `sdd` and `sdd_reject` also stop once the model executes none of the defender's held-out prompts.
            None to train for all steps.
        check_every: steps between two checks.
        kl_weight: weight of the KL divergence on the benign samples, against the cross-entropy on the supervised ones.
    """

    steps: int = Field(100, ge=1)
    learning_rate: float = Field(7e-5, gt=0, lt=1)
    batch: int = Field(8, ge=1)
    benign_ratio: int = Field(2, ge=0)
    price: float | None = Field(None, gt=0)
    check_every: int = Field(10, ge=1)
    kl_weight: float = Field(6.0, ge=0)

    @model_validator(mode="after")
    def _price_is_measured(self) -> Self:
        if self.price is not None and not needs_benign(self):
            raise ValueError(
                "`price` is measured on benign samples: set `benign_ratio` and `kl_weight` above 0, or leave it out"
            )
        return self


def needs_benign(parameters: Any) -> bool:
    """Whether a training with these parameters uses benign samples."""
    return bool(parameters.benign_ratio and parameters.kl_weight)


def stops(parameters: Any) -> bool:
    """Whether a training with these parameters measures held-out prompts to decide when it ends."""
    return parameters.price is not None


def budget(parameters: Any) -> Budget:
    """The training's steps, and the sequences in each."""
    return Budget(parameters.steps, parameters.batch * (1 + parameters.benign_ratio))


def answer_samples(loaded: LoadedModel, data: DefenseData, seed: int) -> list[Sample]:
    """The compliant answers of a defense's data, shuffled.

    Args:
        loaded: the model, whose chat template is used.
        data: of the defense.
        seed: of the order.

    Raises:
        UserError: there are none.
    """
    if not data.answers:
        raise UserError(
            "The defense simulates an attacker, and there are no compliant answers to the threat's defender prompts: add "
            "responses to the threat, or start from a model that answers it."
        )
    answers = random.Random(seed).sample(list(data.answers), len(data.answers))
    return [loaded.chat.sample(prompt, answer, data.response_limit) for prompt, answer in answers]


def train(
    loaded: LoadedModel,
    learn: Sequence[Sample],
    data: DefenseData,
    parameters: AnchoredTraining,
    seed: int,
    label: str,
    objective: Objective[Any] | None = None,
    extend: Callable[[list[Anchored]], Sequence[Anchored]] = lambda units: units,
) -> DefenseResult:
    """Train a model on samples, beside distillation on the benign set.

    Args:
        loaded: the model; changed in place.
        learn: supervised samples.
        data: the defense's data, whose benign samples are used.
        parameters: of the training.
        seed: decides the order of both kinds of samples.
        label: text of the progress bar.
        objective: the loss; by default cross-entropy on supervised samples, and distillation on benign ones.
        extend: adds to the units of supervised samples and benign samples whatever else the objective takes.
    """
    training = Training(
        steps=parameters.steps,
        batch=parameters.batch,
        learning_rate=parameters.learning_rate,
        schedule="linear",
    )
    if needs_benign(parameters) and not data.teacher:
        raise UserError(
            "The defense trains on benign samples, and none are left of the benign prompts: name more of them."
        )
    keep = list(data.teacher)
    random.Random(seed).shuffle(keep)
    units = extend(anchored(learn, keep, parameters.benign_ratio))
    if parameters.price and not data.held_back:
        raise UserError(
            "`price` is measured on held-back benign samples, and there are none: name more benign prompts."
        )
    block = current_block()
    stopping = Stopping(loaded, data, parameters.price or math.inf, block.folder, block.work)
    steps = range(0, parameters.steps + 1, parameters.check_every)
    result = fit(
        loaded,
        units,
        training,
        seed=seed,
        objective=objective or AnchoredObjective(parameters.kl_weight),
        at_steps=steps if parameters.price else (),
        hook=stopping,
        label=label,
    )
    return DefenseResult(result.tokens, (stopping.note(parameters.steps), result.precision))
