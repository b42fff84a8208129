"""A defense with an objective of its own: gradient ascent on compliant answers, gradient descent on benign text.

Large language model unlearning (Yao et al., 2023, arXiv 2310.10683) makes harmful answers less likely by gradient ascent, and
keeps other abilities with a loss on benign text (gradient difference: Liu et al., 2022, arXiv 2203.12817). Without a bound,
ascent destroys the model; here it stops for each answer whose NLL has reached a ceiling.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from tamperfuse.plugins import (
    Budget,
    DefenseData,
    DefenseResult,
    LoadedModel,
    Objective,
    Parameters,
    Sample,
    Training,
    defense,
    fit,
    pack_samples,
    response_nll,
)


class GradientAscentParameters(Parameters):
    """Parameters of `gradient_ascent`.

    Attributes:
        steps: optimizer steps.
        batch: samples in a step.
        learning_rate: of AdamW, constant.
        ceiling: mean NLL, in nats per token, from which an answer is unlikely enough and has no gradient; greater than 0.
        benign_ratio: benign samples for each compliant answer, at least 0.
    """

    steps: int = Field(32, ge=1)
    batch: int = Field(16, ge=1)
    learning_rate: float = Field(2e-5, gt=0, lt=1)
    ceiling: float = Field(6.0, gt=0)
    benign_ratio: float = Field(2.0, ge=0)


@dataclass(frozen=True)
class SignedSample:
    """A sample that is to become less likely or more likely.

    Attributes:
        sample: prompt and response.
        forget: whether the response is to become less likely.
    """

    sample: Sample
    forget: bool

    @property
    def tokens(self) -> list[int]:
        """All tokens of the sample."""
        return self.sample.tokens

    @property
    def response_tokens(self) -> int:
        """One: the loss is a mean over samples."""
        return 1


@dataclass
class AscentObjective(Objective[SignedSample]):
    """Mean over samples of the NLL per token; for samples to forget, minus the NLL per token up to a ceiling.

    Attributes:
        ceiling: in nats per token.
    """

    ceiling: float

    def loss(self, model: nn.Module, samples: Sequence[SignedSample], total: int, device: torch.device) -> Tensor:
        """See :meth:`tamperfuse.training.objectives.Objective.loss`; `total` is the number of samples in the batch."""
        batch = pack_samples([signed.sample for signed in samples], device)
        nll = response_nll(model, batch) / torch.tensor(batch.counts, device=device)
        forget = torch.tensor([signed.forget for signed in samples], device=device)
        return torch.where(forget, -nll.clamp(max=self.ceiling), nll).sum() / total


@defense(
    "gradient_ascent",
    GradientAscentParameters,
    needs_answers=True,
    needs_benign=lambda p: p.benign_ratio > 0,
    budget=lambda p: Budget(p.steps, p.batch),
)
def gradient_ascent(
    loaded: LoadedModel, data: DefenseData, parameters: GradientAscentParameters, seed: int
) -> DefenseResult:
    """Gradient ascent on compliant answers to the threat, with gradient descent on benign samples."""
    count = min(round(parameters.benign_ratio * len(data.answers)), len(data.benign))
    benign = random.Random(seed).sample(list(data.benign), count)
    samples = [
        SignedSample(loaded.chat.sample(prompt, response, data.response_limit), forget)
        for pairs, forget in ((data.answers, True), (benign, False))
        for prompt, response in pairs
    ]
    training = Training(steps=parameters.steps, batch=parameters.batch, learning_rate=parameters.learning_rate)
    objective = AscentObjective(parameters.ceiling)
    result = fit(loaded, samples, training, seed=seed, objective=objective, label="gradient ascent")
    notes = (f"{len(data.answers)} answers to forget, {count} benign samples", result.precision)
    return DefenseResult(tokens_trained=result.tokens, notes=notes)
