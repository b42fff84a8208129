"""What every defense takes and gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tamperfuse.corpora.examples import Pair
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.registry import Parameters, Registry


@dataclass(frozen=True)
class DefenseData:
    """All that a defense is handed.

    Attributes:
        prompts: the threat's defender part, and nothing else of the threat.
        pairs: harmful prompts with irrelevant responses, and the turns before them if there are any; empty unless the
            defense asks for pairs.
        benign: (prompt, response) to replay.
        response_limit: response tokens trained on at most.
    """

    prompts: Sequence[str]
    pairs: Sequence[Pair]
    benign: Sequence[tuple[str, str]]
    response_limit: int


@dataclass(frozen=True)
class DefenseResult:
    """What a defense reports.

    Attributes:
        tokens_trained: tokens that went through training.
        notes: what it chose by itself and why, for the terminal and the node's record.
    """

    tokens_trained: int
    notes: tuple[str, ...] = ()


Defend = Callable[[LoadedModel, DefenseData, Parameters, int], DefenseResult]
DEFENSES: Registry[Callable[..., DefenseResult]] = Registry("defense", "tamperfuse.defenses")
defense = DEFENSES.register
