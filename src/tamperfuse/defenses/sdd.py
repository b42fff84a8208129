"""SDD, Self-Degraded Defense (Chen et al., ACL 2025, arXiv 2507.21182), and its variant with a refusal prefix.

Supervised fine-tuning on (harmful instruction, irrelevant high-quality response), section 4. The paper's argument is that
an attacker who pushes the model's own answers down then pushes good prose down. Whether a model holds is for the study to say.
"""

import random
from typing import Literal

from pydantic import Field

from tamperfuse.corpora.examples import Pair
from tamperfuse.defenses.base import DefenseData, DefenseResult, defense
from tamperfuse.models.chat import Chat, Sample
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.registry import Parameters
from tamperfuse.training.fit import Training, fit

# Section 5.1, Llama2-7b; the paper trains on pairs alone.
PAPER = {"steps": 500, "learning_rate": 5e-7, "batch": 24, "replay": 0.0}
# For SmolLM2-135M: at rates that change so small a model in 40 steps, pairs alone teach it to answer *every* prompt beside
# the point, so a few benign samples are replayed. It is a cliff: of 160 forbidden and 128 harmless prompts of the demo it
# executes 0 and 14 with .1 replayed a pair, 4 and 57 with .12, 5 and 67 with .15 (seed 0; the undefended model: 6 and 68).
SMALL = {"steps": 44, "learning_rate": 6e-5, "batch": 16, "replay": 0.1}
PAPER_SIZE = 3_000_000_000  # parameters from which the paper's values are taken


class SddParameters(Parameters):
    """Parameters of `sdd`.

    Attributes:
        preset: where unset values come from: the paper's (7B), ones for small models, or by parameter count.
        steps: optimizer steps.
        learning_rate: of AdamW, constant.
        batch: samples a step.
        replay: benign samples for every pair, at least 0.
    """

    preset: Literal["auto", "paper", "small"] = "auto"
    steps: int | None = Field(None, ge=1)
    learning_rate: float | None = Field(None, gt=0, lt=1)
    batch: int | None = Field(None, ge=1)
    replay: float | None = Field(None, ge=0)


class SddRejectParameters(SddParameters):
    """Parameters of `sdd_reject`.

    Attributes:
        prefix: the refusal that opens every response; pairs that were made with one keep theirs.
    """

    prefix: str = Field("I'm sorry, but I can't help with that request. ", min_length=1)


def resolve(parameters: SddParameters, size: int) -> tuple[Training, float, str]:
    """Fill in what the user left open.

    Args:
        parameters: as given.
        size: parameters of the model.

    Returns:
        The training, the share of replay, and a sentence that says where the values come from.
    """
    preset = parameters.preset
    reason = "as asked"
    if preset == "auto":
        preset = "paper" if size >= PAPER_SIZE else "small"
        reason = f"the model has {size / 1e6:,.0f} million parameters; the paper's values start at {PAPER_SIZE / 1e9:.0f} billion"
    values = PAPER if preset == "paper" else SMALL
    given = {name: value for name in values if (value := getattr(parameters, name)) is not None}
    merged = {**values, **given}
    chosen = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in merged.items())
    replay = float(merged.pop("replay"))
    return Training.model_validate(merged), replay, f"preset {preset} ({chosen}): {reason}"


@defense("sdd", SddParameters, version=1, needs_pairs=True)
def sdd(loaded: LoadedModel, given: DefenseData, parameters: SddParameters, seed: int) -> DefenseResult:
    """Self-Degraded Defense: fine-tuning on the threat's prompts with irrelevant, well-written answers."""
    return _train(loaded, given, parameters, seed, prefix="")


@defense("sdd_reject", SddRejectParameters, version=1, needs_pairs=True)
def sdd_reject(loaded: LoadedModel, given: DefenseData, parameters: SddRejectParameters, seed: int) -> DefenseResult:
    """Self-Degraded Defense with a fixed refusal before each irrelevant answer."""
    return _train(loaded, given, parameters, seed, prefix=parameters.prefix)


def _train(loaded: LoadedModel, given: DefenseData, parameters: SddParameters, seed: int, prefix: str) -> DefenseResult:
    training, share, reason = resolve(parameters, loaded.model.num_parameters())
    wanted = min(round(share * len(given.pairs)), len(given.benign))
    replay = random.Random(seed).sample(list(given.benign), wanted)
    samples = [_sample(loaded.chat, pair, prefix, given.response_limit) for pair in given.pairs]
    samples += [loaded.chat.sample(prompt, response, given.response_limit) for prompt, response in replay]
    result = fit(loaded, samples, training, seed=seed, what="SDD")
    return DefenseResult(tokens_trained=result.tokens, notes=(reason, result.precision))


def _sample(chat: Chat, pair: Pair, prefix: str, limit: int) -> Sample:
    """A pair as it is trained on: earlier turns are read, not learned. Benign replay is never refused."""
    opening = "" if pair.refusal_prefix or pair.kind == "replay" else prefix
    return chat.continued(chat.messages(pair.prompt_messages), opening + pair.response, limit)
