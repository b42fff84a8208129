"""The trap: an objective that works against an attacker that is simulated beside the weights.

A simulated attacker is a change δ of the weights θ. It follows an optimizer of its own, on the NLL of compliant answers at θ + δ,
and persists over the steps of the training; after a number of steps it starts again at δ = 0. Several are simulated side by side
(:mod:`tamperfuse.training.attackers`), and every step of the training meets one of them:

    θ ──────── gradient d of the loss: SDD pairs, KL to the model as shipped on benign samples ─────────┐
    │                                                                                                   ├─▶ optimizer step of θ
    └─ θ + δ ─ attacker's gradient ─▶ δ moves ─ gradients that raise the harmful and the benign NLL ────┘
                                     at θ + δ, each scaled to a multiple of ‖d‖ = the trap

After Theorem 2 of SDD (Chen et al., 2025, arXiv 2507.21182), by which malicious fine-tuning should lower general ability, and
TAR (Tamirisa et al., ICLR 2025, arXiv 2408.00761): an inner loop of attackers and an outer loss at the attacked weights, here to
first order, with attackers that persist; MUDMAN (Sondej et al., 2025, arXiv 2506.12484) has a persistent adversary as well.
That benign text should fail at attacked weights is the idea of SEAM (Wang et al., 2025, arXiv 2505.12186) and CTRAP (Yi et al.,
2025, arXiv 2505.16559).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.packed import packed_logits
from tamperfuse.models.precision import Masters
from tamperfuse.models.sharded import unsharded
from tamperfuse.records.batching import group_by_budget
from tamperfuse.training.answers import nll_of
from tamperfuse.training.attackers import Attack, Attackers, AttackerSettings
from tamperfuse.training.batches import pack_samples
from tamperfuse.training.cross_entropy import token_nll
from tamperfuse.training.distillation import AnchoredObjective, first_benign
from tamperfuse.training.distributed import sum_over_processes
from tamperfuse.training.objectives import Accumulate, Loss, response_nll
from tamperfuse.training.rows import ROW_TOKENS
from tamperfuse.training.trap_units import TrapUnit, attack_answer, harmful_answer
from tamperfuse.training.weights import Weights, gradients, inner, perturbed


@dataclass(kw_only=True)
class TrapObjective(AnchoredObjective):
    """The loss of :class:`~tamperfuse.training.distillation.AnchoredObjective` at θ, and the trap at θ + δ.

    With d the gradient of the loss at θ and g_i that of a part of the trap at θ + δ, θ is trained with

        d + scale · ‖d‖ · Σ_i w_i f_i g_i / ‖g_i‖        (i: harmful, benign; the sum without its component along d)

    A part raises the NLL of its text up to `cap`. The gradient of the benign part is that at θ + δ less that at θ, so that it
    vanishes with δ. f_i in [0, 1] is the distance of the NLL from `cap` in units of `fade`, at most 1: near it a part fades out.

    An attacker whose loss is above `cap` meets no trap.

    Memory, in float32 copies of the weights, with all of training and apart from activations: 5; 3 for each attacker that trains
    all weights; and one if there are attackers of kind `lora`, unless the model computes in bfloat16. Two less where the weights
    are trained with Adafactor.

    Time: forward and backward passes over 3 + `attack_steps` sequences a unit beside those at θ (1 + `attack_steps` without the
    benign part), and more for an attacker that retains. Works with several processes and with sharded weights; one micro-batch a
    step.

    Attributes:
        weight: of the KL divergence on the benign samples, at least 0; `supervised`: of the NLL of the supervised ones.
        simulated: which attackers there are.
        attack_steps: steps of the attacker in each step of the training that meets it, at least 1; each unit has as many
            samples for it.
        cap: NLL of a token, in nats, from which the trap does not raise it further; an attacker whose loss is above it is left
            alone.
        harmful: norm of the trap's harmful part, relative to ‖d‖; 0 for none.
        benign: likewise of its benign part.
        fade: distance from `cap`, in nats a token, within which a part becomes weaker; greater than 0.
        scale: factor of the trap, at least 0; a hook may change it. At 0 the attackers stand still as well.
        records: what a hook measured, JSON-able; saved with the state.
        last_loss: this process's share of the last step's loss at θ.
    """

    simulated: AttackerSettings = field(default_factory=AttackerSettings)
    attack_steps: int = 1
    cap: float = 10.0
    harmful: float = 1.5
    benign: float = 1.0
    fade: float = 1.0
    scale: float = field(default=1.0, init=False)
    records: list[dict[str, float]] = field(default_factory=list, init=False)
    last_loss: float = field(default=math.nan, init=False)

    def settings(self) -> dict[str, Any]:
        """See :meth:`tamperfuse.training.objectives.Objective.settings`."""
        trap = {name: value for name, value in super().settings().items() if name not in self._state()}
        return trap | asdict(self.simulated)

    def _state(self) -> dict[str, Any]:
        """What changes during training, apart from tensors: the fields that are no settings."""
        return {f.name: getattr(self, f.name) for f in fields(self) if not f.init}

    def begin(self, masters: Masters) -> None:
        """See :meth:`tamperfuse.training.objectives.Objective.begin`."""
        self.masters = masters
        self.parameters = [parameter for parameter, _ in masters.trainable()]
        self.attackers = Attackers(masters, self.simulated)

    @property
    def began(self) -> bool:
        """Whether training has begun, so that there are attackers."""
        return hasattr(self, "attackers")

    @property
    def attack(self) -> Attack:
        """The attacker that was met last."""
        return self.attackers.attack

    def backward(self, accumulate: Accumulate) -> Tensor:
        """See :meth:`tamperfuse.training.objectives.Objective.backward`; the loss to report is that at θ."""
        trap = None
        if self.scale > 0 and (self.harmful > 0 or self.benign > 0):
            self._attack(accumulate)
            if self.attack.loss < self.cap:
                trap = self._trap(accumulate)
        loss = self.accumulate_loss(accumulate)
        self.last_loss = float(loss)
        if trap:
            self._add(trap)
        return loss

    def _attack(self, accumulate: Accumulate) -> None:
        """The steps of the next attacker, each on other answers of the units."""
        self.attackers.meet()
        for index in range(self.attack_steps):
            self.attackers.start_again()
            used = partial(self._attacker_samples, index)
            attack = self.attack
            dtype = (
                None if attack.kind == "lora" else torch.float32
            )  # one with adapters converts the matrices that it needs
            gradient, loss = self._gradient(accumulate, partial(nll_of, used), used, dtype=dtype)
            attack.attacker.step(gradient)
            del gradient  # before the next one is computed
            attack.steps += 1
            attack.loss = loss / (2 if attack.kind == "retain" else 1)  # it has as many benign samples

    def _gradient(
        self,
        accumulate: Accumulate,
        loss: Loss[TrapUnit],
        used: Callable[[TrapUnit], Sequence[Sample]],
        difference: bool = False,
        dtype: torch.dtype | None = None,
    ) -> tuple[Weights, float]:
        """The gradient of a loss at θ + δ, less that at θ if `difference`, by default in the parameters' dtype; and the loss."""
        value = 0.0

        def run() -> None:
            nonlocal value
            with self.attack.attacker.applied():
                value = float(accumulate(loss, used))
            if difference:
                accumulate(lambda *arguments: -loss(*arguments), used)

        gradient = gradients(self.parameters, run, dtype)
        return gradient, sum_over_processes(value, self.parameters[0].device)

    def _attacker_samples(self, index: int, unit: TrapUnit) -> list[Sample]:
        """A unit's compliant answer for a step of the attacker; also a benign sample if the attacker retains.

        The samples take turns, without the first, which is the trap's, if there are others.
        """
        benign = unit.keep[1:] or unit.keep
        retained = [benign[index % len(benign)].sample] if self.attack.kind == "retain" and benign else []
        return [*attack_answer(index, unit), *retained]

    def _trap(self, accumulate: Accumulate) -> Weights | None:
        """Σ_i w_i f_i g_i / ‖g_i‖, in float32; None if there is nothing to raise."""
        parts: list[tuple[float, Callable[[TrapUnit], list[Sample]], bool]] = [
            (self.harmful, harmful_answer, False),
            (self.benign, first_benign, True),
        ]
        total: Weights | None = None
        for weight, used, difference in parts:
            if weight:
                gradient, fade = self._part(accumulate, used, difference)
                total = self._add_part(total, weight, gradient, fade)
                del gradient
        return total

    def _add_part(self, total: Weights | None, weight: float, gradient: Weights, fade: float) -> Weights | None:
        """Add a part to the sum, None for an empty one."""
        length = math.sqrt(inner(gradient, gradient))
        if not length or not fade:
            return total
        total = total or [torch.zeros_like(part, dtype=torch.float32) for part in gradient]
        for sum_of_parts, part in zip(total, gradient, strict=True):
            sum_of_parts.add_(part, alpha=weight * fade / length)
        return total

    def _part(
        self, accumulate: Accumulate, used: Callable[[TrapUnit], list[Sample]], difference: bool
    ) -> tuple[Weights, float]:
        """The gradient of the trap's loss on some sequences at θ + δ, less that at θ if `difference`; and f, from that loss."""
        gradient, loss = self._gradient(accumulate, partial(self._capped_loss, used), used, difference)
        return gradient, min(max((loss + self.cap) / self.fade, 0.0), 1.0)

    def _capped_loss(
        self,
        used: Callable[[TrapUnit], list[Sample]],
        model: nn.Module,
        units: Sequence[TrapUnit],
        total: int,
        device: torch.device,
    ) -> Tensor:
        """Minus the NLL, of each token at most `cap`: a mean over the tokens of each sample, and over units."""
        batch = pack_samples([sample for unit in units for sample in used(unit)], device)
        logits = packed_logits(model, batch.row, batch.layout, batch.positions)
        tokens = -token_nll(logits, batch.targets).clamp(max=self.cap)
        counts = torch.tensor(batch.counts)
        return (tokens / counts.repeat_interleave(counts).to(device)).sum() / total

    def _add(self, trap: Weights) -> None:
        """Add the trap, without its component along the gradient d at θ and in the scale of d, to d."""
        descent = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        square = inner(descent, descent)
        factor = self.scale * math.sqrt(square)
        share = inner(trap, descent) / square if square > 0 else 0.0
        for parameter, gradient, part in zip(self.parameters, descent, trap, strict=True):
            part.sub_(gradient, alpha=share)
            parameter.grad = gradient.add_(part.mul_(factor).to(gradient.dtype))

    @contextmanager
    def attacked(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model that a hook receives has the weights θ + δ.

        Memory: none, or two complete copies on every process if training is sharded and the model was not loaded in shards. A
        collective operation.
        """
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if parameters[0] is self.parameters[0]:
            with self.attack.attacker.applied():
                yield
        else:
            complete = [
                unsharded(delta).to(p.device) for delta, p in zip(self.attack.attacker.delta, parameters, strict=True)
            ]
            with perturbed(Masters([(parameter, parameter) for parameter in parameters]), complete):
                yield

    def state_dict(self) -> dict[str, Any]:
        """The attackers, and what hooks set and recorded."""
        return {"attackers": self.attackers.state_dict(), **self._state()}

    def recorded(self) -> dict[str, Any]:
        """See :meth:`tamperfuse.training.objectives.Objective.recorded`."""
        return {"records": self.records}

    def load_recorded(self, recorded: dict[str, Any]) -> None:
        """See :meth:`tamperfuse.training.objectives.Objective.load_recorded`."""
        self.records = recorded["records"]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`tamperfuse.training.objectives.Objective.load_state_dict`."""
        for name in self._state():
            setattr(self, name, state[name])
        self.attackers.load_state_dict(state["attackers"])


@torch.no_grad()
def mean_nll(loaded: LoadedModel, samples: Sequence[Sample]) -> float:
    """NLL of the responses, in nats a token, in the precision that the model computes in now; nan without samples."""
    total = 0.0
    for row in group_by_budget([len(sample.tokens) for sample in samples], ROW_TOKENS):
        batch = pack_samples([samples[i] for i in row], loaded.model.device)
        total += float(response_nll(loaded.model, batch).sum())
    return total / sum(sample.response_tokens for sample in samples) if samples else math.nan
