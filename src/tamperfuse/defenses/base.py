"""What every defense receives and returns, and the decorator that registers a defense."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from tamperfuse.corpora.examples import Pair
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.registry import Budget, P, Registry, no_training
from tamperfuse.training.distillation import TeacherSample

PromptResponse = tuple[str, str]

#: Learning rates of simulated attackers.
Rates = tuple[Annotated[float, Field(gt=0, lt=1)], ...]


@dataclass(frozen=True)
class DefenseData:
    """All data that a defense receives. A defense never sees the other parts of the threat.

    Attributes:
        prompts: the threat's defender part.
        benign: benign prompts with the answers of the model as shipped, to retain the model's other abilities; empty unless the
            defense declares `needs_benign`, as are the next two.
        teacher: benign samples, those of `benign` among them, with the predictions of the model as shipped, for training.
        held_back: likewise, but not for training: on them a defense measures how far the model has moved.
        response_limit: longest response to train on, in tokens.
        pairs: harmful prompts with irrelevant responses (SDD pairs), some of them with earlier turns; empty unless the defense
            declares `needs_pairs`.
        answers: (prompt, compliant answer) for defender prompts: the answers in the threat, or those that the model gave
            before hardening; prompts without a compliant answer are left out. Empty unless the defense declares
            `needs_answers`.
        executed: measures which share of other defender prompts, which are not in `prompts` or `pairs`, a model executes, in
            [0, 1], by those criteria of the built-in judge that need no reference model; None unless the defense declares
            `needs_held_out`.
        reference: the model before any hardening, as :func:`tamperfuse.models.load.load_model` takes it.
    """

    prompts: Sequence[str]
    benign: Sequence[PromptResponse]
    response_limit: int
    pairs: Sequence[Pair] = ()
    answers: Sequence[PromptResponse] = ()
    teacher: Sequence[TeacherSample] = ()
    held_back: Sequence[TeacherSample] = ()
    executed: Callable[[LoadedModel], float] | None = None
    reference: str = ""


@dataclass(frozen=True)
class DefenseResult:
    """What a defense reports; the model itself is changed in place.

    Attributes:
        tokens_trained: number of tokens that went through training.
        notes: choices that the defense made by itself, with the reason, for the terminal and the node's record.
        facts: what it measured, JSON-able, for the node's record.
    """

    tokens_trained: int = 0
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DefenseTraits:
    """What a defense declares.

    Attributes:
        needs_pairs: whether it trains on SDD pairs.
        needs_answers: whether it needs compliant answers to the defender prompts, for example to simulate an attacker.
        needs_benign: whether it uses the benign set, by its resolved parameters. The set takes minutes to make.
        needs_held_out: whether it calls `data.executed`, by its resolved parameters: one in ten of the threat's defender prompts
            is then held out. The benign set is made as well, and the judge's thresholds with it.
        budget: the training that parameters ask for, for estimates; called with resolved parameters.
        resolve: fills in the values of a preset; called with the parameters and the number of the model's parameters. The
            resolved parameters are part of the node's key, and the function receives them.
    """

    needs_pairs: bool = False
    needs_answers: bool = False
    needs_benign: Callable[[Any], bool] = lambda parameters: False
    needs_held_out: Callable[[Any], bool] = lambda parameters: False
    budget: Callable[[Any], Budget] = no_training
    resolve: Callable[[Any, int], Any] = lambda parameters, size: parameters


DefenseFunction = Callable[[LoadedModel, DefenseData, P, int], DefenseResult]
DEFENSES: Registry[DefenseTraits, DefenseResult] = Registry(
    "defense", "tamperfuse.defenses", frozenset({"defense", "on", "parameters", "threat", "pairs", "benign", "seed"})
)


def defense(
    name: str,
    parameters: type[P],
    *,
    needs_pairs: bool = False,
    needs_answers: bool = False,
    needs_benign: bool | Callable[[P], bool] = False,
    needs_held_out: bool | Callable[[P], bool] = False,
    budget: Callable[[P], Budget] = no_training,
    resolve: Callable[[P, int], P] = lambda parameters, size: parameters,
    version: int = 1,
) -> Callable[[DefenseFunction[P]], DefenseFunction[P]]:
    """Register a defense: a function of the model, the data, the parameters and a seed that changes the model in place.

    Args:
        name: as users write it.
        parameters: its parameter model.
        needs_pairs: see :class:`DefenseTraits`, as for the next five.
        needs_answers: likewise.
        needs_benign: likewise; true or false where it does not depend on the parameters.
        needs_held_out: likewise.
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
    return DEFENSES.register(
        name,
        parameters,
        DefenseTraits(
            needs_pairs, needs_answers, _by_parameters(needs_benign), _by_parameters(needs_held_out), budget, resolve
        ),
        version,
    )


def _by_parameters(need: bool | Callable[[Any], bool]) -> Callable[[Any], bool]:
    """What a defense needs, as a function of its parameters."""
    if not isinstance(need, bool):
        return need
    return lambda parameters: bool(need)
