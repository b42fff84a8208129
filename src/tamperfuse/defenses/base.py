"""What every defense receives and returns, and the decorator that registers a defense."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tamperfuse.corpora.examples import Pair
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.registry import Budget, P, Registry, no_training

PromptResponse = tuple[str, str]


@dataclass(frozen=True)
class DefenseData:
    """All data that a defense receives. A defense never sees the other parts of the threat.

    Attributes:
        prompts: the threat's defender part.
        benign: benign (prompt, response) samples, to retain the model's other abilities.
        response_limit: longest response to train on, in tokens.
        pairs: harmful prompts with irrelevant responses (SDD pairs), some of them with earlier turns; empty unless the defense
            declares `needs_pairs`.
        answers: (prompt, compliant answer) for defender prompts: the answers in the threat, or those that the model gave
            before hardening; prompts without a compliant answer are left out. Empty unless the defense declares
            `needs_answers`.
    """

    prompts: Sequence[str]
    benign: Sequence[PromptResponse]
    response_limit: int
    pairs: Sequence[Pair] = ()
    answers: Sequence[PromptResponse] = ()


@dataclass(frozen=True)
class DefenseResult:
    """What a defense reports; the model itself is changed in place.

    Attributes:
        tokens_trained: number of tokens that went through training.
        notes: choices that the defense made by itself, with the reason, for the terminal and the node's record.
    """

    tokens_trained: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DefenseTraits:
    """What a defense declares.

    Attributes:
        needs_pairs: whether it trains on SDD pairs.
        needs_answers: whether it needs compliant answers to the defender prompts, for example to simulate an attacker.
        budget: the training that parameters ask for, for estimates; called with resolved parameters.
        resolve: fills in the values of a preset; called with the parameters and the number of the model's parameters. The
            resolved parameters are part of the node's key, and the function receives them.
    """

    needs_pairs: bool = False
    needs_answers: bool = False
    budget: Callable[[Any], Budget] = no_training
    resolve: Callable[[Any, int], Any] = lambda parameters, size: parameters


DefenseFunction = Callable[[LoadedModel, DefenseData, P, int], DefenseResult]
DEFENSES: Registry[DefenseTraits, DefenseResult] = Registry("defense", "tamperfuse.defenses")


def defense(
    name: str,
    parameters: type[P],
    *,
    needs_pairs: bool = False,
    needs_answers: bool = False,
    budget: Callable[[P], Budget] = no_training,
    resolve: Callable[[P, int], P] = lambda parameters, size: parameters,
    version: int = 1,
) -> Callable[[DefenseFunction[P]], DefenseFunction[P]]:
    """Register a defense: a function of the model, the data, the parameters and a seed that changes the model in place.

    Args:
        name: as users write it.
        parameters: its parameter model.
        needs_pairs: see :class:`DefenseTraits`, as for the next three.
        needs_answers: likewise.
        budget: likewise.
        resolve: likewise.
        version: raise it when the defense's results can change, so that older results are not reused.

    Example::

        @defense("shrink", ShrinkParameters)
        def shrink(loaded, data, parameters, seed):
            \"\"\"Scale all weights down.\"\"\"
            ...
            return DefenseResult()
    """
    return DEFENSES.register(name, parameters, DefenseTraits(needs_pairs, needs_answers, budget, resolve), version)
