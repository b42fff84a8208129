"""The undefended rival: plain refusal training, which makes a model safe until it is attacked."""

import random

from pydantic import Field

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.defenses.base import DefenseData, DefenseResult, defense
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.registry import Parameters
from tamperfuse.training.fit import Training, fit


class RefusalParameters(Parameters):
    """Parameters of `refusal`.

    Attributes:
        steps: optimizer steps.
        learning_rate: of AdamW, constant.
        batch: samples a step.
        replay: benign samples for every refusal, at least 0; they keep the model from declining everything.
    """

    steps: int = Field(32, ge=1)
    learning_rate: float = Field(3e-5, gt=0, lt=1)
    batch: int = Field(16, ge=1)
    replay: float = Field(1.0, ge=0)


@defense("refusal", RefusalParameters, version=1, needs_pairs=False)
def refusal(loaded: LoadedModel, given: DefenseData, parameters: RefusalParameters, seed: int) -> DefenseResult:
    """The undefended rival: fine-tuning on refusals of the threat's prompts, with benign replay."""
    rng = random.Random(seed)
    wordings = [str(row["response"]) for row in builtin_rows("refusals")]
    wanted = round(parameters.replay * len(given.prompts))
    replay = rng.sample(list(given.benign), min(wanted, len(given.benign)))
    chat = loaded.chat
    samples = [chat.sample(prompt, rng.choice(wordings), given.response_limit) for prompt in given.prompts]
    samples += [chat.sample(prompt, response, given.response_limit) for prompt, response in replay]
    training = Training(steps=parameters.steps, batch=parameters.batch, learning_rate=parameters.learning_rate)
    result = fit(loaded, samples, training, seed=seed, what="refusal training")
    return DefenseResult(tokens_trained=result.tokens, notes=(result.precision,))
