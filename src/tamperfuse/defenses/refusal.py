"""Plain refusal training, which keeps a model safe until it is attacked: the undefended model of every comparison."""

import random

from pydantic import Field

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.defenses.base import DefenseData, DefenseResult, defense
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.registry import Budget, Parameters
from tamperfuse.training.fit import Training, fit


class RefusalParameters(Parameters):
    """Parameters of `refusal`.

    Attributes:
        steps: optimizer steps.
        learning_rate: of AdamW, constant.
        batch: samples in a step.
        replay: benign samples for each refusal, at least 0; without any, the model refuses every prompt.
    """

    steps: int = Field(32, ge=1)
    learning_rate: float = Field(3e-5, gt=0, lt=1)
    batch: int = Field(16, ge=1)
    replay: float = Field(1.0, ge=0)


@defense("refusal", RefusalParameters, budget=lambda p: Budget(p.steps, p.batch))
def refusal(loaded: LoadedModel, data: DefenseData, parameters: RefusalParameters, seed: int) -> DefenseResult:
    """Refusal training on the threat's prompts and on benign samples: the undefended model of every comparison."""
    rng = random.Random(seed)
    wordings = [str(row["response"]) for row in builtin_rows("refusals")]
    count = round(parameters.replay * len(data.prompts))
    replay = rng.sample(list(data.benign), min(count, len(data.benign)))
    chat = loaded.chat
    samples = [chat.sample(prompt, rng.choice(wordings), data.response_limit) for prompt in data.prompts]
    samples += [chat.sample(prompt, response, data.response_limit) for prompt, response in replay]
    training = Training(steps=parameters.steps, batch=parameters.batch, learning_rate=parameters.learning_rate)
    result = fit(loaded, samples, training, seed=seed, label="refusal training")
    return DefenseResult(tokens_trained=result.tokens, notes=(result.precision,))
