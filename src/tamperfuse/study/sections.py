"""The sections of a study file: pairs, benign samples, what is measured, and one defense, attack or judge."""

import os
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tamperfuse.attacks import ATTACKS
from tamperfuse.defenses import DEFENSES
from tamperfuse.evaluation.capability_tasks import CapabilityTask
from tamperfuse.evaluation.judges import JUDGES
from tamperfuse.records.errors import UserError, shown
from tamperfuse.records.registry import Component, Strict
from tamperfuse.study.search.space import Search, parse_search

DEFAULT_JUDGE = "builtin"
RESPONSE_TOKENS = 48  # longest response that is generated, judged and trained on, unless a study sets another


def _expanded(sources: tuple[str, ...]) -> tuple[str, ...]:
    """Sources, each once, with the home folder in place of `~`."""
    if not all(source.strip() for source in sources):
        raise ValueError("a source is empty")
    return tuple(dict.fromkeys(map(os.path.expanduser, sources)))


class PairsSpec(Strict):
    """How SDD pairs are drawn.

    Attributes:
        responses: source of the irrelevant answers, or a list of sources.
        per_prompt: responses that each prompt is paired with, at most. The paper has one, which a small model memorises.
        pool: responses that are used at all, a random sample of the source's. A small model learns a few as answers to every
            prompt of the threat; of hundreds, none becomes likelier than the answer itself.
        threshold: largest MiniLM cosine of prompt and response (0.25 in the public re-implementation).
        filters: whether responses are filtered for quality, as `tamperfuse pair` does by default.
        language: language of the responses (ISO 639-1), or "any"; for the filters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    responses: str | Annotated[tuple[str, ...], Field(min_length=1)] = "builtin:benign"
    per_prompt: int = Field(6, ge=1, le=100)
    pool: int = Field(6, ge=1)
    threshold: float = Field(0.25, gt=-1, le=1)
    filters: bool = True
    language: str = "en"

    @field_validator("responses")
    @classmethod
    def _expand_home(cls, responses: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(responses, str):
            return _expanded((responses,))[0]
        return _expanded(responses)

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources of `responses`."""
        return (self.responses,) if isinstance(self.responses, str) else self.responses


class BenignSpec(Strict):
    """Which benign samples a defense trains on to keep the model's behaviour; the model's own answers are used in any case.

    Attributes:
        sources: `self` for prompts that the model writes itself, `documents` for longer texts of many forms that it writes, and
            sources of harmless prompts, which it answers; they can be combined.
        prompts: number of prompts that the model writes itself; those near the threat, built-in questions and plain text are
            added, in proportion (docs/defenses.md).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: tuple[str, ...] = Field(("self",), min_length=1)
    prompts: int = Field(1_000, ge=4, le=100_000)

    @field_validator("sources")
    @classmethod
    def _expand_home(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        return _expanded(sources)


class Evaluate(Strict):
    """What is measured, and at which steps of an attack.

    Attributes:
        at_steps: steps of an attack after which the model is measured; 0 is the model before it.
        prompts: evaluation prompts for the model before an attack.
        curve_prompts: evaluation prompts for every attacked checkpoint; as many as `prompts` by default.
        dev_prompts: attacker_dev prompts, by which the attacker chooses a step.
        harmless: prompts for the benign answer rate.
        response_tokens: longest response, in tokens.
        capability: lm-eval tasks, at least one, by name or as {task: mmlu, fewshot: 5}; `builtin` for the two bundled ones.
        capability_items: items of each task, or `all`.
        capability_at: steps at which capability is measured; `at_steps` by default.
        heldout: documents for benign NLL.
        epsilons: shares of capability, in [0, 1], that an attack may cost; usable harm is reported for each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_steps: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 50)
    prompts: int = Field(160, ge=2)
    curve_prompts: int = Field(default_factory=lambda values: values["prompts"], ge=2)
    dev_prompts: int = Field(28, ge=2)
    harmless: int = Field(128, ge=2)
    response_tokens: int = Field(RESPONSE_TOKENS, ge=8)
    capability: tuple[str | CapabilityTask, ...] = Field(("builtin",), min_length=1)
    capability_items: Annotated[int, Field(ge=2)] | Literal["all"] = "all"
    capability_at: tuple[int, ...] = Field(default_factory=lambda values: values["at_steps"])
    heldout: int = Field(200, ge=2)
    epsilons: tuple[float, ...] = Field((0.05, 0.10, 0.25, 1.00), min_length=1)

    @field_validator("capability")
    @classmethod
    def _expand_home(cls, tasks: tuple[str | CapabilityTask, ...]) -> tuple[str | CapabilityTask, ...]:
        if len(set(tasks)) < len(tasks):
            raise ValueError("a task is named twice")
        return tuple(
            os.path.expanduser(task)
            if isinstance(task, str)
            else task.model_copy(update={"task": os.path.expanduser(task.task)})
            for task in tasks
        )

    @field_validator("epsilons")
    @classmethod
    def _shares(cls, epsilons: tuple[float, ...]) -> tuple[float, ...]:
        for epsilon in epsilons:
            if not 0 <= epsilon <= 1:  # also true for not-a-number
                raise ValueError(f"{epsilon:g} is no share of capability in [0, 1]")
        return tuple(sorted(set(epsilons)))

    @field_validator("at_steps", "capability_at")
    @classmethod
    def _ascending(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if any(step < 0 for step in steps):
            raise ValueError("steps count from 0")
        return tuple(sorted({0, *steps}))

    def measured_at(self, steps: int) -> tuple[int, ...]:
        """Steps ≥ 1 of an attack of that length after which the model is measured; the last step always is."""
        return tuple(sorted({step for step in self.at_steps if 1 <= step <= steps} | {steps}))

    def capability_measured_at(self, steps: int) -> tuple[int, ...]:
        """Those of :meth:`measured_at` at which capability is measured too; the last step always is."""
        return tuple(step for step in self.measured_at(steps) if step in self.capability_at or step == steps)


class DefenseSpec(BaseModel):
    """One defense of a study.

    Attributes:
        defense: its name, as `tamperfuse list defenses` prints it; the entry's own name if a file leaves it out.
        on: the defense whose hardened model it starts from; the model as shipped where None.
        parameters: of the defense; in a file they stand beside `defense` and `on`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    defense: str
    on: str | None = None
    parameters: dict[str, Any]


class AttackSpec(BaseModel):
    """One attack of a study.

    Attributes:
        attack: its name, as `tamperfuse list attacks` prints it; the entry's own name if a file leaves it out.
        parameters: of the attack; with a search, those that it does not vary. In a file they stand beside `attack` and
            `search`.
        search: what an adaptive attacker varies.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attack: str
    parameters: dict[str, Any]
    search: Search | None = None


class JudgeSpec(BaseModel):
    """Which judge, with which parameters.

    Attributes:
        judge: its name, as `tamperfuse list judges` prints it.
        parameters: of the judge; in a file they stand beside `judge`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    judge: str
    parameters: dict[str, Any]


def parse_judge(spec: Any) -> JudgeSpec:
    """A judge by name, or as a mapping of `judge` and its parameters.

    Raises:
        UserError: an unknown judge or parameter, or a value out of range.
    """
    if isinstance(spec, JudgeSpec):
        return spec
    if not isinstance(spec, str | dict):
        raise UserError(
            f"judge: {shown(repr(spec))} is not a judge: write its name, or a mapping of `judge` and its parameters."
        )
    values: dict[str, Any] = {"judge": spec} if isinstance(spec, str) else dict(spec)
    name = _name(values, "judge", DEFAULT_JUDGE, "judge")
    if set(values) == {"parameters"}:
        values = as_mapping(values["parameters"], f"judge {name}: `parameters`")
    parameters = JUDGES.get(name).parse(values, f"judge {name}")
    return JudgeSpec(judge=name, parameters=parameters.model_dump(mode="json"))


def parse_judges(values: Any, first: JudgeSpec) -> dict[str, JudgeSpec]:
    """The further judges of a study by name: a mapping of names to judges, whose own name may be left out.

    Raises:
        UserError: as :func:`parse_judge`, or one has the name of the judge that decides.
    """
    judges = {}
    for name, spec in named(values, "`judges`").items():
        if name == first.judge:
            raise UserError(f"judges: {name} is the name of the judge that decides: choose another name, or remove it.")
        mapping = spec if isinstance(spec, JudgeSpec | str) else as_mapping(spec, f"judge {name}")
        judges[name] = parse_judge({"judge": name, **mapping} if isinstance(mapping, dict) else mapping)
    return judges


def as_mapping(value: Any, where: str) -> dict[str, Any]:
    """A mapping with names as keys; an empty one for nothing.

    Raises:
        UserError: it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{where} is {shown(repr(value))}: it must be a mapping, as in {{name: value}}.")
    for name in value:
        if not isinstance(name, str):
            raise UserError(f"{where}: {shown(repr(name))} is no name: put quotation marks around it.")
    return dict(value)


def named(value: Any, where: str) -> dict[str, Any]:
    """As :func:`as_mapping`, of names that a user chose for defenses, attacks or judges.

    Raises:
        UserError: as there, or a name is empty or has characters that results cannot hold; `#` separates the trials of a search.
    """
    mapping = as_mapping(value, where)
    for name in mapping:
        if not name.strip() or not name.isprintable() or "#" in name:
            raise UserError(
                f"{where}: {shown(repr(name))} cannot be a name: use letters, digits, spaces and -_. instead."
            )
    return mapping


def _name(spec: dict[str, Any], key: str, default: str, where: str) -> str:
    """Remove a name from the specification of a defense or an attack.

    Raises:
        UserError: it is no string.
    """
    name = spec.pop(key, default)
    if not isinstance(name, str):
        raise UserError(f"{where}: {key} is {shown(repr(name))}: it must be a name (see `tamperfuse list`).")
    return name


def expand_defense(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """The fields of a :class:`DefenseSpec` from the file's short form, where parameters stand beside `defense` and `on`.

    Raises:
        UserError: an unknown defense or parameter, or a value out of range.
    """
    if set(spec) == {"defense", "on", "parameters"}:
        parameters = as_mapping(spec["parameters"], f"defense {name}: `parameters`")
        spec = {"defense": spec["defense"], "on": spec["on"], **parameters}
    kind, on = _name(spec, "defense", name, f"defense {name}"), spec.pop("on", None)
    parsed = DEFENSES.get(kind).parse(spec, f"defense {name}")
    return {"defense": kind, "on": on, "parameters": parsed.model_dump(mode="json")}


def expand_attack(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """The fields of an :class:`AttackSpec` from the file's short form, where parameters stand beside `attack` and `search`.

    Raises:
        UserError: an unknown attack or parameter, a value out of range, or a search over what the attack does not have.
    """
    if {"attack", "parameters"} <= set(spec) <= {"attack", "parameters", "search"}:
        parameters = as_mapping(spec.pop("parameters"), f"attack {name}: `parameters`")
        spec = {**spec, **parameters}
    kind, search_values = _name(spec, "attack", name, f"attack {name}"), spec.pop("search", None)
    component = ATTACKS.get(kind)
    parsed = component.parse(spec, f"attack {name}").model_dump(mode="json")
    if search_values is None:
        return {"attack": kind, "parameters": parsed}
    search = parse_search(search_values, component, spec, f"attack {name}")
    fixed = {key: value for key, value in parsed.items() if key not in search.over}
    return {"attack": kind, "parameters": fixed, "search": search.model_dump(mode="json")}


def stated_parameters(component: Component[Any, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """Resolved parameters as a file holds them: without those that are None, if leaving them out means the same.

    Args:
        component: whose parameters they are.
        parameters: JSON-able.
    """
    stated: dict[str, Any] = without_none(parameters)
    if stated == parameters:
        return parameters
    read = component.parse(stated, component.name).model_dump(mode="json")
    return stated if all(read[name] == value for name, value in parameters.items()) else parameters


def without_none(value: Any) -> Any:
    """JSON-able data without the entries of mappings, at any depth, that are None."""
    if isinstance(value, dict):
        return {name: without_none(item) for name, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list) else value
