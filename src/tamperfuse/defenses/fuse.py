"""`fuse`: SDD and distillation, with a trap for attackers that are simulated beside the weights during training.

The training of `sdd` (Chen et al., 2025, arXiv 2507.21182) lowers its loss at the weights θ. `fuse` also raises harmful and
benign losses at θ + δ, where a simulated malicious fine-tuning has arrived (:mod:`tamperfuse.training.trap`). What this costs
before any attack is the KL divergence from the model as shipped on benign samples that are held back. It is measured during
training, and the trap becomes weaker as it nears the allowed price (a budget of the retain loss, as in MUDMAN, Sondej et al.,
2025, arXiv 2506.12484):

    scale of the trap = strength · max(0, 1 − measured price / (strength · price))
"""

import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tamperfuse.defenses import anchored
from tamperfuse.defenses.base import DefenseData, DefenseResult, PromptResponse, Rates, defense
from tamperfuse.defenses.sdd import PAPER_SIZE, sample_of
from tamperfuse.models.chat import Sample
from tamperfuse.models.layers import layer_matrices
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.sharded import is_sharded
from tamperfuse.records.errors import UserError
from tamperfuse.records.registry import Budget, Parameters
from tamperfuse.training.attackers import AttackerSettings, Kind
from tamperfuse.training.benign_tuning import tuned_nll
from tamperfuse.training.distillation import AnchoredObjective, price_of
from tamperfuse.training.distillation import anchored as anchored_units
from tamperfuse.training.distributed import sharding, sum_over_processes
from tamperfuse.training.fit import Training, fit
from tamperfuse.training.trap import TrapObjective, mean_nll
from tamperfuse.training.trap_units import trap_units

log = logging.getLogger("tamperfuse")

# For SmolLM2-135M; larger models are fine-tuned at lower rates, by the attacker as well.
SMALL: dict[str, Any] = {"learning_rate": 2e-4, "rates": (2e-4,)}
LARGE: dict[str, Any] = {"learning_rate": 2e-5, "rates": (5e-5,)}
HELD_OUT_SHARE = 0.1  # of the compliant answers, on which the simulated attacker is measured
FADE = 5.0  # nats a token from its target within which a part of the trap becomes weaker
WARMUP = 0.05  # share of the steps: AdamW's first steps are of full size in every weight, and the trap's are large
MEASURED = 16  # samples of each kind whose NLL is taken at a check
NLL = ("harmful_nll", "benign_nll", "attacked_harmful_nll", "attacked_benign_nll")


class FuseParameters(Parameters):
    """Parameters of `fuse`. Norms of the trap are relative to that of the gradient of SDD and distillation.

    Attributes:
        strength: of the defense, in [0, 1]: factor of the trap's norm and of the price at which it is off. At 0 there is no
            trap and no warm-up: the loss is that of `sdd`, with the steps, learning rate, batch and weights given here.
        price: KL from the model as shipped on benign samples that are held back, in nats a token, at which the trap is off at
            full strength.
        patience: checks in a row above `price` (whatever the strength) at which training ends.
        check_every: steps between two checks; at strength 0 there is none.
        steps: optimizer steps.
        learning_rate: of the optimizer. By default 2e-4, and 2e-5 from 3 billion parameters.
        optimizer: of the weights. Adafactor takes two copies of the weights less than AdamW, which is used at strength 0.
        schedule: of the learning rate: `linear` falls to 0; at strength 0 it always does. The trap appears only while the
            training is faster than its attacker.
        batch: units in a step, each with one pair, `benign_ratio` benign samples and compliant answers for the attacker and the
            trap.
        benign_ratio: benign samples in a step for each pair, at least 1.
        kl_weight: weight of the KL divergence on the benign samples.
        pair_weight: weight of the cross-entropy on the pairs of SDD; 0 for the trap and distillation alone.
        cap: NLL of a token, in nats, up to which the trap raises it; an attacker whose loss is above it meets no trap.
        harmful_norm: norm of the part of the trap on compliant answers; 0 for none.
        benign_norm: norm of the part of the trap on benign samples, which is the gradient at θ + δ less that at θ; 0 for none.
        rates: learning rates of the attackers that train all weights. By default 2e-4, and 5e-5 from 3 billion parameters.
        attackers: kinds of attackers, of which there is one at each of its rates; each that trains all weights takes memory of
            three copies of them. `full` trains on compliant answers, `retain` on benign samples as well; all weights. `lora`
            trains LoRA adapters (rank 16, alpha 32) of the matrices of all layers, on compliant answers.
        lora_rates: learning rates of attackers of kind `lora`; used with such attackers only.
        horizon: steps of an attacker until it starts again, at most: a number from a third of it to all of it is drawn.
        attacker_steps: steps of an attacker in each step of the training that meets it; the attackers take turns.
        benign_steps: steps of a simulated benign fine-tuning at each check, each on 4 of the benign samples that are held back,
            at the first of `rates`; the log then has the loss of these samples after it. 0 for none.
    """

    strength: float = Field(1.0, ge=0, le=1)
    price: float = Field(1.0, gt=0)
    patience: int = Field(3, ge=1)
    check_every: int = Field(10, ge=1)
    steps: int = Field(240, ge=1)
    learning_rate: float | None = Field(None, gt=0, lt=1)
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    schedule: Literal["constant", "linear"] = "linear"
    batch: int = Field(6, ge=1)
    benign_ratio: int = Field(2, ge=1)
    kl_weight: float = Field(3.0, ge=0)
    pair_weight: float = Field(1.0, ge=0)
    cap: float = Field(10.0, gt=0)
    harmful_norm: float = Field(3.0, ge=0)
    benign_norm: float = Field(1.0, ge=0)
    rates: Rates | None = Field(None, min_length=1)
    attackers: tuple[Kind, ...] = Field(("full", "lora"), min_length=1)
    horizon: int = Field(48, ge=1)
    attacker_steps: int = Field(4, ge=1)
    lora_rates: Rates = Field((3e-4, 2e-3), min_length=1)
    benign_steps: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _loss_is_not_empty(self) -> Self:
        if not (self.kl_weight or self.pair_weight):
            raise ValueError("`kl_weight` and `pair_weight` are both 0, so there is no loss: set one of them above 0")
        return self


def resolve(parameters: FuseParameters, size: int) -> FuseParameters:
    """Fill in the learning rates.

    Args:
        parameters: as the user set them.
        size: number of the model's parameters.
    """
    values = LARGE if size >= PAPER_SIZE else SMALL
    return FuseParameters.model_validate(values | parameters.model_dump(exclude_none=True))


def budget(parameters: FuseParameters) -> Budget:
    """The training's steps, the sequences that go through the model in each, and the copies of the weights that the trap adds."""
    sequences = 1 + parameters.benign_ratio
    if not parameters.strength:
        return Budget(parameters.steps, parameters.batch * sequences)
    rates = parameters.rates or SMALL["rates"]  # as many as by default for large models
    full, retain = (len(rates) * parameters.attackers.count(kind) for kind in ("full", "retain"))
    lora = len(parameters.lora_rates) * parameters.attackers.count("lora")
    # An attacker that retains trains on as many benign samples as well.
    attack = parameters.attacker_steps * (1 + retain / (full + retain + lora))
    # Adapters and their moments are small; but while a float32 model is attacked with them, its matrices are kept as they were.
    attackers = 3 * (full + retain) + bool(lora)
    moments = 2 if parameters.optimizer == "adamw" else 0
    # At a check: weights, moments, the attackers; and of the benign fine-tuning its change, moments and gradient.
    copies = attackers + moments + (5 if parameters.benign_steps else 3)
    # The benign part is a difference of two gradients.
    trap = bool(parameters.harmful_norm) + 2 * bool(parameters.benign_norm)
    batch = round(parameters.batch * (sequences + trap + attack))
    return Budget(parameters.steps, batch, memory_copies=copies, resume_copies=1 + moments + attackers)


@defense(
    "fuse",
    FuseParameters,
    needs_pairs=True,
    needs_answers=True,
    needs_benign=True,
    budget=budget,
    resolve=resolve,
)
def fuse(loaded: LoadedModel, data: DefenseData, parameters: FuseParameters, seed: int) -> DefenseResult:
    """SDD, and at the weights that simulated attackers reach, gradient ascent on harmful and benign losses: the trap."""
    resolved = resolve(parameters, loaded.model.num_parameters())
    pairs = [sample_of(loaded.chat, pair, "", data.response_limit) for pair in data.pairs]
    if not resolved.strength:
        loss = AnchoredObjective(resolved.kl_weight, resolved.pair_weight)
        return anchored.train(loaded, pairs, data, _sdd_training(resolved), seed, "SDD", loss)
    if not data.teacher or not data.held_back:
        raise UserError(
            "fuse trains on benign samples and measures its price on others, but the benign set has too few to hold any back: "
            "name a source with more harmless prompts, such as `self` (`benign`)."
        )
    if resolved.benign_steps and (sharding() or is_sharded(loaded.model)):
        raise UserError(
            "fuse with `benign_steps` needs the whole model on every process: leave it out, or train with DDP in place of FSDP2."
        )
    attacked, held_out = split_answers(data.answers, seed)
    answers, measured = (
        [loaded.chat.sample(*answer, data.response_limit) for answer in part] for part in (attacked, held_out)
    )
    keep = list(data.teacher)
    random.Random(seed).shuffle(keep)
    units = trap_units(anchored_units(pairs, keep, resolved.benign_ratio), answers, resolved.attacker_steps)
    objective = _objective(loaded, resolved, seed)
    check = TrapCheck(loaded, data, objective, resolved, measured[:MEASURED])
    result = fit(
        loaded,
        units,
        _training(resolved),
        seed=seed,
        objective=objective,
        at_steps=range(0, resolved.steps + 1, resolved.check_every),
        hook=check,
        label="SDD with a trap",
    )
    notes = (f"{len(attacked)} answers for the simulated attacker, {len(held_out)} held out", check.note(result.steps))
    return DefenseResult(result.tokens, (*notes, result.precision), {"trap": objective.records})


def _sdd_training(parameters: FuseParameters) -> anchored.AnchoredTraining:
    names = ("steps", "learning_rate", "batch", "benign_ratio", "kl_weight")
    return anchored.AnchoredTraining.model_validate(parameters.model_dump(include=set(names)))


def _training(parameters: FuseParameters) -> Training:
    names = ("steps", "learning_rate", "batch", "schedule", "optimizer")
    return Training.model_validate(parameters.model_dump(include=set(names)) | {"warmup": WARMUP})


def adapted_matrices(loaded: LoadedModel) -> tuple[int, ...]:
    """Positions among the model's parameters of the matrices of its layers, stacked matrices of experts left out."""
    matrices = {id(weight) for weight in layer_matrices(loaded.model) if weight.ndim == 2}
    trained = [parameter for parameter in loaded.model.parameters() if parameter.is_floating_point()]
    return tuple(i for i, parameter in enumerate(trained) if id(parameter) in matrices)


def _objective(loaded: LoadedModel, parameters: FuseParameters, seed: int) -> TrapObjective:
    assert parameters.rates, "resolved"
    adapts = "lora" in parameters.attackers
    return TrapObjective(
        weight=parameters.kl_weight,
        supervised=parameters.pair_weight,
        simulated=AttackerSettings(
            seed=seed,
            rates=parameters.rates,
            kinds=parameters.attackers,
            lora_rates=parameters.lora_rates if adapts else (),
            matrices=adapted_matrices(loaded) if adapts else (),
            horizon=parameters.horizon,
        ),
        attack_steps=parameters.attacker_steps,
        cap=parameters.cap,
        harmful=parameters.harmful_norm,
        benign=parameters.benign_norm,
        fade=FADE,
    )


def split_answers(
    answers: Sequence[PromptResponse], seed: int
) -> tuple[Sequence[PromptResponse], Sequence[PromptResponse]]:
    """Compliant answers for the simulated attacker, and answers to other prompts, on which it is measured.

    Args:
        answers: (prompt, compliant answer).
        seed: of the split.

    Raises:
        UserError: there are answers to fewer than two prompts.
    """
    prompts = list(dict.fromkeys(prompt for prompt, _ in answers))
    if len(prompts) < 2:
        raise UserError(
            f"fuse needs compliant answers to at least 2 prompts of the threat's defender part, not {len(prompts)}: add "
            "responses to the threat, or start from a model that answers it."
        )
    random.Random(seed).shuffle(prompts)
    held_out = set(prompts[: max(1, round(HELD_OUT_SHARE * len(prompts)))])
    return [a for a in answers if a[0] not in held_out], [a for a in answers if a[0] in held_out]


@dataclass
class TrapCheck:
    """A hook of :func:`tamperfuse.training.fit.fit`: measures the price and the attacker, and sets the scale of the trap.

    What it measured is recorded with the objective, so that a training that resumes still has it.

    Attributes:
        loaded: the model in training.
        data: the defense's data, whose held-back benign samples are used.
        objective: of the training.
        parameters: of the defense, resolved.
        answers: compliant answers that are held out.
    """

    loaded: LoadedModel
    data: DefenseData
    objective: TrapObjective
    parameters: FuseParameters
    answers: Sequence[Sample]

    def __call__(self, step: int) -> bool:
        """Measure the model after a step; returns whether the training ends."""
        price = price_of(self.loaded, self.data.held_back, step)
        allowed = self.parameters.strength * self.parameters.price
        self.objective.scale = self.parameters.strength * max(0.0, 1.0 - price / allowed)
        record = {"step": step, "price": price, "scale": self.objective.scale, **self._losses()}
        self.objective.records.append({name: value for name, value in record.items() if math.isfinite(value)})
        log.info("      %s", describe(self.objective.records[-1]))
        return bool(self.reason)

    def _losses(self) -> dict[str, float]:
        """Losses at θ and at θ + δ, in nats a token."""
        benign = [teacher.sample for teacher in self.data.held_back[:MEASURED]]
        losses = {"harmful_nll": mean_nll(self.loaded, self.answers), "benign_nll": mean_nll(self.loaded, benign)}
        if not self.objective.began:
            return losses
        losses["loss"] = sum_over_processes(self.objective.last_loss, self.loaded.model.device)
        attack = self.objective.attack
        losses["attacker_steps"] = attack.steps
        losses["attacker_rate"] = attack.attacker.learning_rate
        losses["attacker_retains"] = float(attack.kind == "retain")
        losses |= {"attacker_lora": 1.0} if attack.kind == "lora" else {}
        with self.objective.attacked(self.loaded.model):
            losses["attacked_harmful_nll"] = mean_nll(self.loaded, self.answers)
            losses["attacked_benign_nll"] = mean_nll(self.loaded, benign)
        if self.parameters.benign_steps:
            assert self.parameters.rates, "resolved"
            losses["tuned_benign_nll"] = tuned_nll(
                self.loaded,
                self.objective.masters,
                benign,
                steps=self.parameters.benign_steps,
                learning_rate=self.parameters.rates[0],
            )
        return losses

    @property
    def reason(self) -> str:
        """Why the training ends at the last check; "" if it goes on."""
        last = self.objective.records[-self.parameters.patience :]
        if len(last) == self.parameters.patience and all(
            r.get("price", math.inf) > self.parameters.price for r in last
        ):
            return (
                f"the allowed price of {self.parameters.price:g} nats a token was spent at {len(last)} checks in a row"
            )
        return ""

    def note(self, steps: int) -> str:
        """What the training came to, in words.

        Args:
            steps: optimizer steps of the training.
        """
        return f"{describe(self.objective.records[-1])}; stopped because {self.reason or f'all {steps} steps are done'}"


def describe(record: dict[str, float]) -> str:
    """A record of :class:`TrapCheck` in words; what was not finite is not in it."""
    values = {name: record.get(name, math.nan) for name in ("price", *NLL, "loss")}
    text = (
        "step {step}: price {price:.3f} nats a token, scale of the trap {scale:.2f}, held-out NLL harmful {harmful_nll:.2f}, "
        "benign {benign_nll:.2f}"
    )
    if "attacker_steps" in record:
        retains, lora = record["attacker_retains"], record.get("attacker_lora")
        kind = "a retaining attacker" if retains else "a LoRA attacker" if lora else "an attacker"
        text += (
            f"; after {{attacker_steps}} steps of {kind} at {{attacker_rate:g}}: harmful {{attacked_harmful_nll:.2f}}, benign "
            "{attacked_benign_nll:.2f}; loss {loss:.3f}"
        )
    if "tuned_benign_nll" in record:
        text += "; after a benign fine-tuning: benign {tuned_benign_nll:.2f}"
    return text.format(**(values | record))
