"""What an adaptive attacker varies: the parameters of an attack, and the values each may take.

    adaptive: {attack: harmful_finetune, steps: 12, search: {trials: 12, over: {learning_rate: [1e-5, 2e-3], shots: [10, 90]}}}

Two numbers are the ends of a range, both of them in it; anything else is a list of choices.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tamperfuse.attacks.base import AttackResult, AttackTraits
from tamperfuse.records.errors import UserError, unknown_name
from tamperfuse.records.registry import Component

Value = bool | int | float | str

# Where a study does not say what to search over: those of these that the attack has and the study does not set. The best
# learning rates of full and of LoRA training lie decades apart, so the range holds both.
DEFAULT_OVER: dict[str, tuple[Value, ...]] = {
    "learning_rate": (1e-5, 2e-3),
    "method": ("full", "lora"),
    "schedule": ("constant", "cosine"),
    "layer": (0.2, 1.0),
}
DECADE = 10.0  # a range of positive numbers whose ends lie so many times apart is searched on a log scale


class Search(BaseModel):
    """A search over an attack's parameters.

    Attributes:
        trials: settings that are tried, at least 1.
        over: by parameter, the two ends of a range of numbers, or the choices.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: int = Field(ge=1)
    over: dict[str, tuple[Value, ...]] = Field(default_factory=dict)


def is_range(values: tuple[Value, ...]) -> bool:
    """Whether the values are the ends of a range rather than choices."""
    return len(values) == 2 and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def parse_search(
    asked: Any, component: Component[AttackTraits, AttackResult], given: dict[str, Any], where: str
) -> Search:
    """Validate a search against the attack that it is over.

    Args:
        asked: as the study has it.
        component: the attack.
        given: the parameters that the study sets, already validated.
        where: the attack's place in the study, in words.

    Returns:
        The search, `over` filled in.

    Raises:
        UserError: no search (the key is named), trials below 1, a parameter that the attack lacks or that the study sets, a
            value that the attack refuses, a range whose ends are the wrong way round, an attack that is not malicious.
    """
    if not component.traits.malicious:
        raise UserError(
            f"{where}: {component.name} is not malicious, so there is nothing to search for: remove `search`."
        )
    if isinstance(asked, dict):
        for key in asked:
            if key not in Search.model_fields:
                raise unknown_name(f"key of a search ({where})", str(key), Search.model_fields)
    try:
        search = Search.model_validate(asked)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(["search", *map(str, first["loc"][:2])])
        raise UserError(f"{where}: {place} = {first['input']!r} cannot be used ({first['msg']}).") from error
    fields = component.parameters.model_fields
    over = search.over or {k: v for k, v in DEFAULT_OVER.items() if k in fields and k not in given}
    if not over:
        raise UserError(
            f"{where}: say what to search over, as `over: {{{next(iter(fields), 'parameter')}: [from, to]}}`."
        )
    for name in over:
        if name not in fields:
            raise unknown_name(f"parameter of {where} to search over", name, fields)
        if name in given:
            raise UserError(f"{where}: {name} is both set and searched over: remove one.")
    parsed = {name: _parse_values(name, values, component, given, where) for name, values in over.items()}
    return search.model_copy(update={"over": parsed})


def _parse_values(
    name: str,
    values: tuple[Value, ...],
    component: Component[AttackTraits, AttackResult],
    given: dict[str, Any],
    where: str,
) -> tuple[Value, ...]:
    """The values as the attack takes them: ends of a range of floats are floats."""
    parsed = tuple(getattr(component.parse({**given, name: value}, where), name) for value in values)
    if len(set(parsed)) < 2:
        raise UserError(f"{where}: a search over {name} needs two different values, not {list(values)}.")
    if is_range(parsed) and parsed[0] > parsed[1]:
        raise UserError(f"{where}: the range of {name} runs down from {values[0]} to {values[1]}: turn it round.")
    return parsed
