"""When a defense stops by itself: once its own prompts are no longer executed, or when the allowed price is spent."""

import logging
from dataclasses import dataclass, field

from tamperfuse.defenses.base import DefenseData
from tamperfuse.models.load import LoadedModel
from tamperfuse.training.distillation import divergence

log = logging.getLogger("tamperfuse")


@dataclass(frozen=True)
class TrainingCheck:
    """The state of a training after a step.

    Attributes:
        step: number of the step.
        executed: share of the defender's held-out prompts that are executed, in [0, 1].
        price: KL(as shipped ‖ model) on the benign samples that are held back, in nats a token.
    """

    step: int
    executed: float
    price: float

    def __str__(self) -> str:
        return (
            f"step {self.step}: executes {self.executed:.0%} of held-out prompts, price {self.price:.3f} nats a token"
        )


@dataclass
class Stopping:
    """A hook of :func:`tamperfuse.training.fit.fit` that ends a training.

    It ends when no held-out prompt of the defender is executed any more, at two checks in a row, or when the price exceeds what
    is allowed.

    Attributes:
        loaded: the model in training.
        data: the defense's data: its held-out prompts and benign samples.
        allowed: price, in nats a token.
        checks: what was measured, in the order of the steps.
    """

    loaded: LoadedModel
    data: DefenseData
    allowed: float
    checks: list[TrainingCheck] = field(default_factory=list)

    def __call__(self, step: int) -> bool:
        """Measure the model after a step; returns whether the training ends."""
        executed = self.data.executed(self.loaded) if self.data.executed else 1.0
        tokens = sum(teacher.sample.response_tokens for teacher in self.data.held_back)
        price = sum(divergence(self.loaded, self.data.held_back, label="price")) / max(tokens, 1)
        self.checks.append(TrainingCheck(step, executed, price))
        log.info("      %s", self.checks[-1])
        return bool(self.reason)

    @property
    def reason(self) -> str:
        """Why the training ends at the last check; "" if it goes on."""
        if self.checks and self.checks[-1].price > self.allowed:
            return f"the allowed price of {self.allowed:g} nats a token is spent"
        if len(self.checks) >= 2 and not any(check.executed for check in self.checks[-2:]):
            return "no held-out prompt is executed any more"
        return ""

    def note(self, steps: int) -> str:
        """What the training came to, in words.

        Args:
            steps: the largest number of steps.
        """
        if not self.checks:
            return f"{steps} steps, as set"
        return f"{self.checks[-1]}; stopped because {self.reason or f'all {steps} steps are done'}"
