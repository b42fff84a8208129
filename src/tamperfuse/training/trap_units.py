"""Units with compliant answers for a simulated attacker and for what works against it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tamperfuse.models.chat import Sample
from tamperfuse.training.distillation import Anchored


@dataclass(frozen=True)
class TrapUnit(Anchored):
    """A unit of a batch. The first of the distillation samples is also the trap's, the others a retaining attacker's.

    Attributes:
        attack: compliant answers that the simulated attacker trains on, one for each of its steps in a step of the training, at
            most.
        harmful: a compliant answer whose NLL is raised at the attacked weights.
    """

    attack: tuple[Sample, ...]
    harmful: Sample

    @property
    def tokens(self) -> list[int]:
        """Tokens of all sequences."""
        return [*super().tokens, *(token for sample in (*self.attack, self.harmful) for token in sample.tokens)]


def attack_answer(index: int, unit: TrapUnit) -> list[Sample]:
    """The compliant answer of a unit for a step of the simulated attacker."""
    return [unit.attack[index]]


def harmful_answer(unit: TrapUnit) -> list[Sample]:
    """The compliant answer of a unit whose NLL is raised."""
    return [unit.harmful]


def trap_units(units: Sequence[Anchored], answers: Sequence[Sample], steps: int) -> list[TrapUnit]:
    """Add compliant answers to units; as many units, in the same order.

    Args:
        units: with supervised and distillation samples.
        answers: compliant answers, at least one; repeated if there are fewer than the units need. The last ones are left out
            while their number has a common factor with `steps` + 1.
        steps: the attacker's steps in a step of the training at most, at least 1.
    """
    count, usable = steps + 1, len(answers)
    while math.gcd(count, usable) > 1:  # a common factor would give every answer the same role in all rounds
        usable -= 1
    drawn = [[answers[(i * count + j) % usable] for j in range(count)] for i in range(len(units))]
    return [TrapUnit(unit.learn, unit.keep, tuple(d[:-1]), d[-1]) for unit, d in zip(units, drawn, strict=True)]
