"""What every attack takes and gives."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from tamperfuse.records.registry import Registry

Pair = tuple[str, str]


@dataclass(frozen=True)
class AttackData:
    """All that an attack is handed.

    Attributes:
        harmful: (prompt, compliant answer) of the threat's attacker part.
        benign: (prompt, response) of a harmless task; for benign fine-tuning.
        response_limit: response tokens trained on at most.
        at_steps: after which steps the hook wants to look at the model.
        hook: called with the step's number while the weights are as that step left them.
    """

    harmful: Sequence[Pair]
    benign: Sequence[Pair]
    response_limit: int
    at_steps: Collection[int]
    hook: Callable[[int], None]


@dataclass(frozen=True)
class Attacked:
    """What an attack reports.

    Attributes:
        samples: training samples it drew on.
        tokens_trained: tokens that went through training.
        notes: what it chose by itself and why.
    """

    samples: int
    tokens_trained: int
    notes: tuple[str, ...] = ()


ATTACKS: Registry[Callable[..., Attacked]] = Registry("attack", "tamperfuse.attacks")
attack = ATTACKS.register
