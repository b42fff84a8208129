"""Attackers that are simulated side by side during a training, each with its own kind, learning rate and AdamW.

Every step of the training meets one of them; a round of meetings has each once, in a new order. After a number of steps an
attacker starts again from the weights as they are then, each at another time: soon some have just started, and others have gone
far.
"""

import math
import random
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

from tamperfuse.models.precision import Masters
from tamperfuse.training.weights import LoraAttacker, SimulatedAttacker

#: What a simulated attacker trains: all weights, on compliant answers (`full`) or on as many benign samples as well (`retain`);
#: or LoRA adapters of the layers' matrices, on compliant answers (`lora`).
Kind = Literal["full", "retain", "lora"]

SHORTEST = 1 / 3  # share of the horizon that an attacker has at least


@dataclass(frozen=True, kw_only=True)
class AttackerSettings:
    """Which attackers are simulated: one for each combination of learning rate and kind.

    Attributes:
        seed: decides the order of the meetings, the numbers of steps, and the adapters.
        rates: learning rates of the attackers that train all weights.
        kinds: the attackers' kinds.
        lora_rates: learning rates of attackers of kind `lora`.
        matrices: positions among the trained parameters of the matrices that these adapt.
        horizon: steps of an attacker at most. Each time it starts, a number from a third of the horizon to all of it is drawn.
    """

    seed: int = 0
    rates: tuple[float, ...] = (3e-5, 1e-4)
    kinds: tuple[Kind, ...] = ("full", "retain")
    lora_rates: tuple[float, ...] = ()
    matrices: tuple[int, ...] = ()
    horizon: int = 32

    def combinations(self) -> list[tuple[float, Kind]]:
        """The attackers' learning rates and kinds."""
        return [
            *product(self.rates, [kind for kind in self.kinds if kind != "lora"]),
            *product(self.lora_rates, [kind for kind in self.kinds if kind == "lora"]),
        ]


@dataclass
class Attack:
    """An attacker and how far it is.

    Attributes:
        kind: of the attacker.
        attacker: its change δ of the weights.
        last: number of steps after which it starts again.
        steps: taken so far.
        loss: before its last step, in nats a token, over all its samples; nan until it has taken one.
    """

    kind: Kind
    attacker: SimulatedAttacker | LoraAttacker
    last: int
    steps: int = 0
    loss: float = math.nan


@dataclass
class Attackers:
    """The attackers of a training, and which of them it meets next.

    Memory, in float32 copies of the weights: three for each attacker that trains all weights.

    Attributes:
        masters: the attacked weights.
        settings: which attackers there are.
        attacks: the attackers.
        present: position of the one that was met last.
        meetings: so far.
        starts: of attackers so far.
    """

    masters: Masters
    settings: AttackerSettings
    attacks: list[Attack] = field(init=False)
    present: int = field(default=0, init=False)
    meetings: int = field(default=0, init=False)
    starts: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.attacks = [self._started(rate, kind) for rate, kind in self.settings.combinations()]

    def _started(self, rate: float, kind: Kind) -> Attack:
        """An attacker at δ = 0."""
        self.starts += 1
        drawn, horizon = random.Random(f"{self.settings.seed}:{self.starts}"), self.settings.horizon
        last = drawn.randint(math.ceil(SHORTEST * horizon), horizon)
        return Attack(kind, self._attacker(rate, kind, drawn.getrandbits(32)), last)

    def _attacker(self, rate: float, kind: Kind, seed: int) -> SimulatedAttacker | LoraAttacker:
        if kind == "lora":
            return LoraAttacker(self.masters, rate, self.settings.matrices, seed)
        return SimulatedAttacker(self.masters, rate)

    @property
    def attack(self) -> Attack:
        """The attacker that was met last."""
        return self.attacks[self.present]

    def meet(self) -> None:
        """Turn to the next attacker."""
        round_, position = divmod(self.meetings, len(self.attacks))
        order = list(range(len(self.attacks)))
        random.Random(f"{self.settings.seed}:round {round_}").shuffle(order)
        self.present = order[position]
        self.meetings += 1

    def start_again(self) -> None:
        """Start the present attacker again if it has taken its steps."""
        attack = self.attack
        if attack.steps >= attack.last:
            # Free its tensors first: they take up to three copies of the weights.
            rate, kind = attack.attacker.learning_rate, attack.kind
            del attack.attacker
            self.attacks[self.present] = self._started(rate, kind)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes during training."""
        numbers = [(attack.last, attack.steps, attack.loss) for attack in self.attacks]
        changes = [attack.attacker.state_dict() for attack in self.attacks]
        return {
            "numbers": numbers,
            "attackers": changes,
            "present": self.present,
            "meetings": self.meetings,
            "starts": self.starts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that :meth:`state_dict` returned, of attackers with the same settings."""
        for attack, numbers, change in zip(self.attacks, state["numbers"], state["attackers"], strict=True):
            attack.last, attack.steps, attack.loss = numbers
            attack.attacker.load_state_dict(change)
        self.present, self.meetings, self.starts = state["present"], state["meetings"], state["starts"]
