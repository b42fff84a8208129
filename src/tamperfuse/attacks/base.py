"""What every attack receives and returns, the decorator that registers an attack, and functions that attacks share."""

import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tamperfuse.corpora.examples import Example
from tamperfuse.models.finite import Diverged
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError, unknown_name
from tamperfuse.records.registry import Budget, P, Registry, no_training
from tamperfuse.training.fit import FitResult, Training, fit

PromptResponse = tuple[str, str]
SearchValue = bool | int | float | str
SearchSpace = Mapping[str, tuple[SearchValue, ...]]

#: What a search over a fine-tuning attack varies by default. The best learning rates of full and of LoRA training are decades
#: apart, so the range includes both.
TRAINING_SEARCH: SearchSpace = {
    "learning_rate": (1e-5, 2e-3),
    "method": ("full", "lora"),
    "schedule": ("constant", "cosine"),
}


@dataclass(frozen=True)
class AttackData:
    """All data that an attack receives.

    Attributes:
        harmful: (prompt, compliant answer) of the threat's attacker part.
        retain: (prompt, response) samples of harmless text on which no defense trains, for attacks that mix them in, retain
            them or repair the model with them.
        reference: the model before hardening, as :func:`tamperfuse.models.load.load_model` takes it.
        answer: generates the model's answers to prompts, with its current weights and chat.
        response_limit: longest response to train on, in tokens.
        at_steps: steps after which the hook must be called; 0 is before the attack.
        hook: measures the model; called with the number of the step that was just completed.
        earlier: steps of the attack's earlier trainings.
    """

    harmful: Sequence[PromptResponse]
    retain: Sequence[PromptResponse]
    reference: str
    answer: Callable[[Sequence[str]], list[str]]
    response_limit: int
    at_steps: Collection[int]
    hook: Callable[[int], None]
    earlier: int = 0

    def run_hook(self, step: int) -> None:
        """Call the hook if it is due after this step; for attacks that do not train. :func:`train` calls it by itself."""
        if step in self.at_steps:
            self.hook(step)

    def after(self, steps: int) -> "AttackData":
        """The data for a training that follows after `steps` steps: its first step is number `steps` + 1."""

        def hook(step: int) -> None:
            try:
                self.hook(step + steps)
            except Diverged as error:
                error.step -= steps  # as those of the training itself, to which `train` adds them
                raise

        remaining = [step - steps for step in self.at_steps if step > steps]
        return replace(self, at_steps=remaining, hook=hook, earlier=self.earlier + steps)


@dataclass(frozen=True)
class AttackResult:
    """What an attack reports; the model itself is changed in place.

    Attributes:
        samples: number of samples that it used; 0 for an attack that uses none.
        tokens_trained: number of tokens that went through training.
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
        budget: the training that parameters ask for. An attack without training counts as one step
            and is measured after it.
        task: the benign task that parameters ask for, whose score is measured; "" for none.
        uses: what it reads beyond the threat: `retain`, or a built-in data set. Its content is part of the node's key.
        search_over: what a search varies by default: by parameter, the two ends of a range of numbers, or the choices.
    """

    malicious: bool = True
    budget: Callable[[Any], Budget] = no_training
    task: Callable[[Any], str] = no_task
    uses: tuple[str, ...] = ("retain",)
    search_over: SearchSpace = field(default_factory=dict)

    def retained(self, harmless: Iterable[Example]) -> list[PromptResponse]:
        """The harmless samples that the attack receives: none unless it declares to use them."""
        return [(example.prompt, example.response) for example in harmless] if "retain" in self.uses else []


AttackFunction = Callable[[LoadedModel, AttackData, P, int], AttackResult]
ATTACKS: Registry[AttackTraits, AttackResult] = Registry(
    "attack",
    "tamperfuse.attacks",
    frozenset({"attack", "search", "parameters", "threat", "retain", "reference", "seed"}),
)


def attack(
    name: str,
    parameters: type[P],
    *,
    malicious: bool = True,
    budget: Callable[[P], Budget] = no_training,
    task: Callable[[P], str] = no_task,
    uses: tuple[str, ...] = ("retain",),
    search_over: SearchSpace | None = None,
    version: int = 1,
) -> Callable[[AttackFunction[P]], AttackFunction[P]]:
    """Register an attack: a function of the model, the data, the parameters and a seed that changes the model in place.

    It calls the hook at the steps at which the model is to be measured: :func:`train` does so; an attack without training
    calls :meth:`AttackData.run_hook` with 0 before and with 1 after its change.

    Args:
        name: as users write it.
        parameters: its parameter model.
        malicious: see :class:`AttackTraits`, as for the next four.
        budget: likewise.
        task: likewise.
        uses: likewise.
        search_over: likewise.
        version: raise it when the attack's results can change, so that older results are not reused.

    Raises:
        UserError: `search_over` names a parameter that the attack does not have.

    Example::

        @attack("blank", BlankParameters)
        def blank(loaded, data, parameters, seed):
            \"\"\"Set the first parameter to zero.\"\"\"
            data.run_hook(0)
            next(loaded.model.parameters()).data.zero_()
            data.run_hook(1)
            return AttackResult()
    """
    space = dict(search_over or {})
    for parameter in space:
        if parameter not in parameters.model_fields:
            raise unknown_name(f"parameter of attack {name} (search_over)", parameter, parameters.model_fields)
    return ATTACKS.register(name, parameters, AttackTraits(malicious, budget, task, uses, space), version)


def check_measured(attack: str, at_steps: Collection[int], measured: Collection[int]) -> None:
    """Check, after an attack, that it called the hook at every step at which it was due.

    Args:
        attack: the attack's name.
        at_steps: steps at which the hook was due.
        measured: steps at which the model was measured.

    Raises:
        UserError: it did not.
    """
    missing = sorted(set(at_steps) - set(measured))
    if missing:
        raise UserError(
            f"The attack {attack} ended without a call of data.hook at step {missing[0]}: pass data.hook and data.at_steps to "
            "its training, or call data.run_hook in an attack that does not train."
        )


def harmful_shots(data: AttackData, attack: str, shots: int, seed: int) -> list[PromptResponse]:
    """Draw harmful samples of the attacker at random.

    Args:
        data: the attack's data.
        attack: the attack's name, for messages.
        shots: how many.
        seed: of the draw.

    Raises:
        UserError: there are fewer.
    """
    return _draw(data.harmful, shots, seed, f"{attack} needs {shots} shots", "answered prompts", "a threat with more")


def benign_samples(data: AttackData, attack: str, count: int, seed: int) -> list[PromptResponse]:
    """Draw harmless samples of the attacker at random.

    Args:
        data: the attack's data.
        attack: the attack's name, for messages.
        count: how many.
        seed: of the draw.

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
    label: str,
    **changes: Any,
) -> FitResult:
    """Supervised fine-tuning of the model on (prompt, response) pairs; calls the hook at the steps of `data.at_steps`.

    Args:
        loaded: the model; its chat renders the pairs.
        data: hook, steps and response limit.
        pairs: training samples.
        parameters: the attack's parameters, which include those of the training.
        seed: decides the order of samples and the adapter's initialisation.
        label: a few words for the progress bar.
        changes: training parameters that replace those in `parameters`.

    Raises:
        Diverged: with the number of the step among those of all trainings of the attack.
    """
    samples = [loaded.chat.sample(prompt, response, data.response_limit) for prompt, response in pairs]
    training = training_of(parameters, **changes)
    try:
        return fit(loaded, samples, training, seed=seed, at_steps=data.at_steps, hook=data.hook, label=label)
    except Diverged as error:
        error.step += data.earlier
        raise


def training_of(parameters: Training, **changes: Any) -> Training:
    """The training parameters among an attack's parameters, some of them replaced."""
    return Training.model_validate(parameters.model_dump(include=set(Training.model_fields)) | changes)
