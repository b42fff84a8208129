"""What every attack takes and gives.

Traits of an attack, beside `malicious`: `uses` names what it reads beyond the threat ("retain", or a built-in data set), so
that a study knows what its result depends on. Who names nothing is taken to use `retain`.
"""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.records.registry import Registry
from tamperfuse.training.fit import FitResult, Training, fit

Pair = tuple[str, str]


@dataclass(frozen=True)
class AttackData:
    """All that an attack is handed.

    Attributes:
        harmful: (prompt, compliant answer) of the threat's attacker part.
        retain: (prompt, response) of harmless text that no defense trains on: what the attacker mixes in, keeps or repairs.
        reference: name of the model before hardening, as :func:`load_model` takes it.
        answer: the model's own answers to prompts, as its weights are at that moment.
        response_limit: response tokens trained on at most.
        at_steps: after which steps the hook wants to look at the model; 0 is before the attack.
        hook: called with the step's number while the weights are as that step left them.
    """

    harmful: Sequence[Pair]
    retain: Sequence[Pair]
    reference: str
    answer: Callable[[Sequence[str]], list[str]]
    response_limit: int
    at_steps: Collection[int]
    hook: Callable[[int], None]

    def look(self, step: int) -> None:
        """Run the hook if it wants to see this step; for attacks, or parts of them, that do not train."""
        if step in self.at_steps:
            self.hook(step)

    def after(self, steps: int) -> "AttackData":
        """The same once `steps` steps are over: what trains next counts on from there, and its step 0 is not looked at."""
        hook = self.hook
        wanted = [step - steps for step in self.at_steps if step > steps]
        return replace(self, at_steps=wanted, hook=lambda step: hook(step + steps))


@dataclass(frozen=True)
class AttackResult:
    """What an attack reports.

    Attributes:
        samples: training samples it drew on; 0 for attacks without any.
        tokens_trained: tokens that went through training.
        notes: what it chose by itself and why.
    """

    samples: int
    tokens_trained: int
    notes: tuple[str, ...] = ()


ATTACKS: Registry[Callable[..., AttackResult]] = Registry("attack", "tamperfuse.attacks")
attack = ATTACKS.register


def harmful_shots(given: AttackData, attack: str, shots: int, seed: int) -> list[Pair]:
    """So many of the attacker's harmful samples, drawn at random.

    Raises:
        UserError: it has not so many.
    """
    return _draw(
        given.harmful, shots, seed, f"{attack} asks for {shots} shots", "answered prompts", "a threat with more"
    )


def benign_samples(given: AttackData, attack: str, count: int, seed: int) -> list[Pair]:
    """So many of the attacker's harmless samples, drawn at random.

    Raises:
        UserError: it has not so many.
    """
    asked = f"{attack} asks for {count} harmless samples"
    return _draw(given.retain, count, seed, asked, "in `retain`", "a `retain` source with more")


def _draw(pool: Sequence[Pair], count: int, seed: int, asked: str, having: str, more: str) -> list[Pair]:
    if count > len(pool):
        raise UserError(f"{asked}; the attacker has {len(pool)} {having}: lower the number, or name {more}.")
    return random.Random(seed).sample(list(pool), count)


def train(
    loaded: LoadedModel,
    given: AttackData,
    pairs: Sequence[Pair],
    parameters: Training,
    seed: int,
    what: str,
    **changes: Any,
) -> FitResult:
    """Supervised fine-tuning of the model on (prompt, response) pairs, the hook called at its steps.

    Args:
        loaded: the model; its chat says how the pairs are rendered.
        given: at which steps to look, and how long responses may be.
        pairs: what to train on.
        parameters: an attack's, whose training is used.
        seed: decides order and adapter.
        what: a few words for the progress bar.
        changes: values of the training that take the place of the parameters'.
    """
    samples = [loaded.chat.sample(prompt, response, given.response_limit) for prompt, response in pairs]
    training = training_of(parameters, **changes)
    return fit(loaded, samples, training, seed=seed, at_steps=given.at_steps, hook=given.hook, what=what)


def training_of(parameters: Training, **changes: Any) -> Training:
    """The training among an attack's parameters, some of its values changed."""
    return Training.model_validate({name: getattr(parameters, name) for name in Training.model_fields} | changes)
