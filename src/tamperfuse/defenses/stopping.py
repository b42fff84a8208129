"""Early stopping of a defense: once its own prompts are no longer executed, or when the price exceeds what is allowed."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tamperfuse.defenses.base import DefenseData
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import content_hash, read_json, write_json
from tamperfuse.records.process import is_main
from tamperfuse.training.distillation import price_of

log = logging.getLogger("tamperfuse")

CHECKS = "checks.json"


@dataclass(frozen=True)
class TrainingCheck:
    """The state of a training after a step.

    Attributes:
        step: number of the step.
        executed: share of the defender's held-out prompts that are executed, in [0, 1]; None if none is held out.
        price: KL(as shipped ‖ model) on the benign samples that are held back, in nats a token.
    """

    step: int
    executed: float | None
    price: float

    def __str__(self) -> str:
        executed = "" if self.executed is None else f"executes {self.executed:.0%} of held-out prompts, "
        return f"step {self.step}: {executed}price {self.price:.3f} nats a token"


@dataclass
class Stopping:
    """A hook of :func:`tamperfuse.training.fit.fit` that ends a training.

    It ends when no held-out prompt of the defender is executed any more, at two checks in a row, or when the price exceeds what
    is allowed. A model that executed none from the start, as after another defense, is not stopped for that.

    Attributes:
        loaded: the model in training.
        data: the defense's data: its held-out prompts and benign samples.
        allowed: price, in nats a token.
        folder: where the checks are stored for a training that resumes; None to store nothing.
        work: what the training belongs to, JSON-able: stored checks of other work are not read.
        checks: what was measured, in the order of the steps.
    """

    loaded: LoadedModel
    data: DefenseData
    allowed: float
    folder: Path | None = None
    work: Mapping[str, Any] = field(default_factory=dict)
    checks: list[TrainingCheck] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Read the checks of an interrupted training."""
        path = self.folder / CHECKS if self.folder else None
        if path and path.exists():
            try:
                stored = read_json(path)
                if stored["of"] == content_hash(self.work):
                    self.checks = [TrainingCheck(**row) for row in stored["checks"]]
            except (TypeError, KeyError) as error:
                raise UserError(f"{path} is damaged: remove {path.parent} to start from the beginning.") from error

    def __call__(self, step: int) -> bool:
        """Measure the model after a step; returns whether the training ends."""
        executed = self.data.executed(self.loaded) if self.data.executed else None
        price = price_of(self.loaded, self.data.held_back, step)
        # A resumed training may repeat steps.
        self.checks = [check for check in self.checks if check.step < step] + [TrainingCheck(step, executed, price)]
        if self.folder and is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            checks = [asdict(check) for check in self.checks]
            write_json(self.folder / CHECKS, {"of": content_hash(self.work), "checks": checks})
        log.info("      %s", self.checks[-1])
        return bool(self.reason)

    @property
    def reason(self) -> str:
        """Why the training ends at the last check; "" if it goes on."""
        if self.checks and self.checks[-1].price > self.allowed:
            return f"the price exceeds {self.allowed:g} nats a token"
        if any(check.executed for check in self.checks) and all(check.executed == 0 for check in self.checks[-2:]):
            return "no held-out prompt is executed any more"
        return ""

    def note(self, steps: int) -> str:
        """The last check and why the training ended, in words.

        Args:
            steps: the largest number of steps.
        """
        if not self.checks:
            return f"{steps} steps, as set"
        return f"{self.checks[-1]}; stopped because {self.reason or f'all {steps} steps are done'}"
