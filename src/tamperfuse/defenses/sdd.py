"""SDD, Self-Degraded Defense (Chen et al., ACL 2025, arXiv 2507.21182), and its variant with a refusal prefix.

Supervised fine-tuning on (harmful instruction, irrelevant high-quality response), section 4. The paper argues that malicious
fine-tuning lowers the probability of the model's original answers; if these are well-written text, general ability should fall as
well. A study measures whether it does.

Different here, in the preset `paper` as well: the first four tokens of a response count eight times in the loss, and responses
are cut at the longest response of the study (`response_tokens`).
"""

from dataclasses import replace
from typing import Literal, TypeVar

from pydantic import Field

from tamperfuse.corpora.examples import PAPER_REFUSAL_PREFIX, Pair
from tamperfuse.defenses import anchored
from tamperfuse.defenses.base import DefenseData, DefenseResult, defense
from tamperfuse.models.chat import Chat, Sample
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.records.registry import Parameters

# Section 5.1, Llama2-7b; the paper trains on pairs alone. What others found is in the docstring of `preset` below.
PAPER: dict[str, float] = {"steps": 500, "learning_rate": 5e-7, "batch": 24, "benign_ratio": 0, "kl_weight": 0.0}
# For SmolLM2-135M. At learning rates that change so small a model within 40 steps, training on pairs alone makes all of its
# answers irrelevant, so its own behaviour on benign samples is distilled.
SMALL: dict[str, float] = {"steps": 90, "learning_rate": 1e-4, "batch": 16, "benign_ratio": 1, "kl_weight": 2.0}
PAPER_SIZE = 3_000_000_000  # parameters of the model from which the paper's values are used


class SddParameters(Parameters):
    """Parameters of `sdd`.

    Attributes:
        preset: source of the values that are not set: `paper` (Llama2-7b), `small` (SmolLM2-135M), or `auto`, which selects one
            by the number of the model's parameters. At 7B a re-implementation is reported to have found no effect at the paper's
            learning rate of 5e-7, and a partial one at 2e-5 (docs/paper.md): measure both.
        steps: optimizer steps.
        learning_rate: peak value of AdamW's; it falls linearly to 0.
        batch: pairs in a step.
        price: KL from the model as shipped on benign samples that are held back, in nats a token, at which the training ends; it
            also ends once no held-out prompt of the defender is executed any more. None to train for all steps.
        check_every: steps between two checks of both.
        benign_ratio: benign samples in a step for each pair, at least 0.
        kl_weight: weight of the KL divergence on the benign samples, against the cross-entropy on the pairs.
    """

    preset: Literal["auto", "paper", "small"] = "auto"
    steps: int | None = Field(None, ge=1)
    learning_rate: float | None = Field(None, gt=0, lt=1)
    batch: int | None = Field(None, ge=1)
    benign_ratio: int | None = Field(None, ge=0)
    kl_weight: float | None = Field(None, ge=0)
    price: float | None = Field(None, gt=0)
    check_every: int = Field(10, ge=1)


class SddRejectParameters(SddParameters):
    """Parameters of `sdd_reject`.

    Attributes:
        prefix: refusal before each response, followed by a blank line; the paper's by default. A pair that already has a
            refusal prefix is not changed.
    """

    prefix: str = Field(PAPER_REFUSAL_PREFIX, min_length=1)


S = TypeVar("S", bound=SddParameters)


def resolve(parameters: S, size: int) -> S:
    """Replace `auto` by a preset and fill in the preset's values.

    Args:
        parameters: as the user set them.
        size: number of the model's parameters.
    """
    preset = parameters.preset
    if preset == "auto":
        preset = "paper" if size >= PAPER_SIZE else "small"
    values = PAPER if preset == "paper" else SMALL
    resolved = type(parameters).model_validate(values | parameters.model_dump(exclude_none=True) | {"preset": preset})
    if resolved.price is not None and not anchored.needs_benign(resolved):
        raise UserError(
            f"SDD's preset {preset} trains without benign samples, on which `price` is measured: set `benign_ratio` and "
            "`kl_weight` above 0, or leave `price` out."
        )
    return resolved


@defense(
    "sdd",
    SddParameters,
    needs_pairs=True,
    needs_benign=anchored.needs_benign,
    needs_held_out=anchored.stops,
    budget=anchored.budget,
    resolve=resolve,
)
def sdd(loaded: LoadedModel, data: DefenseData, parameters: SddParameters, seed: int) -> DefenseResult:
    """Self-Degraded Defense: fine-tuning on the threat's prompts with irrelevant, well-written answers."""
    return _train(loaded, data, parameters, seed, prefix="")


@defense(
    "sdd_reject",
    SddRejectParameters,
    needs_pairs=True,
    needs_benign=anchored.needs_benign,
    needs_held_out=anchored.stops,
    budget=anchored.budget,
    resolve=resolve,
)
def sdd_reject(loaded: LoadedModel, data: DefenseData, parameters: SddRejectParameters, seed: int) -> DefenseResult:
    """Self-Degraded Defense with a fixed refusal before each irrelevant answer."""
    return _train(loaded, data, parameters, seed, prefix=f"{parameters.prefix.strip()}\n\n")


def _train(loaded: LoadedModel, data: DefenseData, parameters: SddParameters, seed: int, prefix: str) -> DefenseResult:
    size = loaded.model.num_parameters()
    resolved = resolve(parameters, size)
    pairs = [sample_of(loaded.chat, pair, prefix, data.response_limit) for pair in data.pairs]
    training = anchored.AnchoredTraining.model_validate(
        resolved.model_dump(include=set(anchored.AnchoredTraining.model_fields))
    )
    result = anchored.train(loaded, pairs, data, training, seed, "SDD")
    return replace(result, notes=(_describe(resolved, size), *result.notes))


def _describe(resolved: SddParameters, size: int) -> str:
    """The values that are used, and where those come from that are not set, in words."""
    parameters = resolved.model_dump()
    values = ", ".join(f"{name.replace('_', ' ')} {parameters[name]:g}" for name in PAPER)
    return (
        f"{values}; what is not set is that of SDD's preset {resolved.preset}: the model has {size / 1e6:,.0f} million "
        f"parameters, and the preset paper is the default from {PAPER_SIZE / 1e9:.0f} billion"
    )


def sample_of(chat: Chat, pair: Pair, prefix: str, limit: int) -> Sample:
    """The training sample of a pair. Earlier turns have no loss, and benign pairs get no refusal prefix."""
    opening = "" if pair.refusal_prefix or pair.kind == "replay" else prefix
    # The limit applies to the irrelevant response, not to the refusal before it.
    before = f"{pair.refusal_prefix}\n\n" if pair.refusal_prefix else opening
    limit += len(chat.response(before)) if before else 0
    return chat.continued(chat.messages(pair.prompt_messages), opening + pair.response, limit)
