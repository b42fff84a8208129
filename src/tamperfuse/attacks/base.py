"""What every attack receives and returns, the decorator that registers one, and what fine-tuning attacks share."""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.records.registry import Budget, P, Registry, no_training
from tamperfuse.training.fit import FitResult, Training, fit

PromptResponse = tuple[str, str]


@dataclass(frozen=True)
class AttackData:
    """All data that an attack receives.

    Attributes:
        harmful: (prompt, compliant answer) of the threat's attacker part.
        retain: (prompt, response) of harmless text that no defense trains on, for attacks that mix it in, keep it or repair
            with it.
        reference: name of the model before hardening, as :func:`load_model` takes it.
        answer: generates the model's answers to prompts, with its weights as they are at that moment.
        response_limit: longest response to train on, in tokens.
        at_steps: steps after which the hook is due; 0 is before the attack.
        hook: called with the number of a step, the weights as that step left them. It measures the model.
    """

    harmful: Sequence[PromptResponse]
    retain: Sequence[PromptResponse]
    reference: str
    answer: Callable[[Sequence[str]], list[str]]
    response_limit: int
    at_steps: Collection[int]
    hook: Callable[[int], None]

    def run_hook(self, step: int) -> None:
        """Run the hook if it is due after this step; for attacks that do not train. Training runs it by itself."""
        if step in self.at_steps:
            self.hook(step)

    def after(self, steps: int) -> "AttackData":
        """The data for a training that continues after `steps` steps: its own steps count on from there."""
        hook = self.hook
        remaining = [step - steps for step in self.at_steps if step > steps]
        return replace(self, at_steps=remaining, hook=lambda step: hook(step + steps))


@dataclass(frozen=True)
class AttackResult:
    """What an attack reports; the model itself is changed in place.

    Attributes:
        samples: training samples that it used; 0 without training.
        tokens_trained: tokens that went through training.
        notes: choices that the attack made by itself, with the reason, for the terminal and the node's record.
    """

    samples: int = 0
    tokens_trained: int = 0
    notes: tuple[str, ...] = ()


def no_task(parameters: Any) -> str:
    """The benign task of an attack that trains none."""
    return ""


@dataclass(frozen=True)
class AttackTraits:
    """What an attack declares.

    Attributes:
        malicious: whether it tries to make the model execute the threat; others are controls, such as benign fine-tuning.
        budget: the training that parameters ask for. An attack without training is measured once, as its step 1.
        task: the benign task that parameters ask for, whose score is measured; "" for none.
        uses: what it reads beyond the threat: `retain`, or a built-in data set. Its content is part of the node's key.
    """

    malicious: bool = True
    budget: Callable[[Any], Budget] = no_training
    task: Callable[[Any], str] = no_task
    uses: tuple[str, ...] = ("retain",)


AttackFunction = Callable[[LoadedModel, AttackData, P, int], AttackResult]
ATTACKS: Registry[AttackTraits, AttackResult] = Registry("attack", "tamperfuse.attacks")


def attack(
    name: str,
    parameters: type[P],
    *,
    malicious: bool = True,
    budget: Callable[[P], Budget] = no_training,
    task: Callable[[P], str] = no_task,
    uses: tuple[str, ...] = ("retain",),
    version: int = 1,
) -> Callable[[AttackFunction[P]], AttackFunction[P]]:
    """Register an attack: a function of the model, the data, the parameters and a seed that changes the model in place.

    It calls the hook at the steps at which the model is to be measured: :func:`train` does so; an attack without training
    calls :meth:`AttackData.run_hook` with 0 before and with 1 after its change.

    Args:
        name: as users write it.
        parameters: its parameter model.
        malicious: see :class:`AttackTraits`, as for the next three.
        budget: likewise.
        task: likewise.
        uses: likewise.
        version: raise it when the attack's results can change, so that older results are not reused.
    """
    return ATTACKS.register(name, parameters, AttackTraits(malicious, budget, task, uses), version)


def harmful_shots(data: AttackData, attack: str, shots: int, seed: int) -> list[PromptResponse]:
    """Draw some of the attacker's harmful samples at random.

    Raises:
        UserError: there are fewer.
    """
    return _draw(data.harmful, shots, seed, f"{attack} needs {shots} shots", "answered prompts", "a threat with more")


def benign_samples(data: AttackData, attack: str, count: int, seed: int) -> list[PromptResponse]:
    """Draw some of the attacker's harmless samples at random.

    Raises:
        UserError: there are fewer.
    """
    need = f"{attack} needs {count} harmless samples"
    return _draw(data.retain, count, seed, need, "in `retain`", "a `retain` source with more")


def _draw(
    pool: Sequence[PromptResponse], count: int, seed: int, need: str, kind: str, remedy: str
) -> list[PromptResponse]:
    if count > len(pool):
        raise UserError(f"{need}; the attacker has {len(pool)} {kind}: lower the number, or name {remedy}.")
    return random.Random(seed).sample(list(pool), count)


def training_budget(parameters: Training) -> Budget:
    """The budget of an attack whose parameters are those of a training."""
    return Budget(parameters.steps, parameters.batch)


def train(
    loaded: LoadedModel,
    data: AttackData,
    pairs: Sequence[PromptResponse],
    parameters: Training,
    seed: int,
    what: str,
    **changes: Any,
) -> FitResult:
    """Supervised fine-tuning of the model on (prompt, response) pairs, the hook called at its steps.

    Args:
        loaded: the model; its chat template renders the pairs.
        data: at which steps the hook is due, and how long responses may be.
        pairs: training samples.
        parameters: an attack's, which include those of the training.
        seed: decides the order of samples and the adapter's initialisation.
        what: a few words for the progress bar.
        changes: values of the training that replace the parameters' values.
    """
    samples = [loaded.chat.sample(prompt, response, data.response_limit) for prompt, response in pairs]
    training = training_of(parameters, **changes)
    return fit(loaded, samples, training, seed=seed, at_steps=data.at_steps, hook=data.hook, what=what)


def training_of(parameters: Training, **changes: Any) -> Training:
    """The training among an attack's parameters, with some of its values replaced."""
    return Training.model_validate(parameters.model_dump(include=set(Training.model_fields)) | changes)
