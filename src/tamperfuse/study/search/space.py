"""The search space of an adaptive attacker: which parameters of an attack it varies, and the values that each may take.

    adaptive: {attack: harmful_finetune, steps: 12, search: {trials: 12, over: {learning_rate: [1e-5, 2e-3], shots: [10, 90]}}}

Two numbers are the inclusive ends of a range; any other list is a list of choices. Without `over` a search varies the parameters
that the attack declares in `search_over`, except those that the study sets.
"""

from typing import Any

from pydantic import ConfigDict, Field, ValidationError

from tamperfuse.attacks.base import AttackResult, AttackTraits, SearchValue
from tamperfuse.records.errors import UserError, unknown_name
from tamperfuse.records.registry import Component, Strict

DECADE = 10.0  # a range of positive numbers with at least this ratio is searched on a logarithmic scale


class Search(Strict):
    """A search over an attack's parameters.

    Attributes:
        trials: number of settings to try, at least 1.
        over: by parameter, the two ends of a range of numbers, or the choices; by default what the attack declares
            (`tamperfuse list attacks NAME`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: int = Field(ge=1)
    over: dict[str, tuple[SearchValue, ...]] = Field(default_factory=dict)


def is_range(values: tuple[SearchValue, ...]) -> bool:
    """Whether the values are the ends of a range rather than choices."""
    return len(values) == 2 and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def parse_search(
    values: Any, component: Component[AttackTraits, AttackResult], parameters: dict[str, Any], where: str
) -> Search:
    """Validate the search of an attack.

    Args:
        values: the value of `search` in the study.
        component: the attack.
        parameters: the parameters that the study sets, already validated.
        where: the attack's place in the study, for messages.

    Returns:
        The search, with `over` filled in.

    Raises:
        UserError: the attack is not malicious; `values` is not a search (the key is named); trials is below 1; a parameter does
            not exist or is also set by the study; the attack refuses a value; the ends of a range are in the wrong order;
            there is nothing to search over.
    """
    if not component.traits.malicious:
        raise UserError(
            f"{where}: {component.name} is a control, not a malicious attack, and cannot be searched: remove `search`."
        )
    if isinstance(values, dict):
        for key in values:
            if key not in Search.model_fields:
                raise unknown_name(f"key of a search ({where})", str(key), Search.model_fields)
    try:
        search = Search.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(["search", *map(str, first["loc"][:2])])
        raise UserError(
            f"{where}: {place} = {first['input']!r} cannot be used ({first['msg']}): correct it there."
        ) from error
    fields = component.parameters.model_fields
    over = search.over or {k: v for k, v in component.traits.search_over.items() if k not in parameters}
    if not fields:
        raise UserError(f"{where}: {component.name} has no parameters to search over: remove `search`.")
    if not over:
        example = next((name for name in fields if name not in parameters), "parameter")
        raise UserError(f"{where}: the search varies no parameter: name some, as in `over: {{{example}: [from, to]}}`.")
    for name in over:
        if name not in fields:
            raise unknown_name(f"parameter of {where} to search over", name, fields)
        if name in parameters:
            raise UserError(f"{where}: {name} is both set and searched over: remove one.")
    parsed = {name: _parse_values(name, choices, component, parameters, where) for name, choices in over.items()}
    return search.model_copy(update={"over": parsed})


def _parse_values(
    name: str,
    values: tuple[SearchValue, ...],
    component: Component[AttackTraits, AttackResult],
    parameters: dict[str, Any],
    where: str,
) -> tuple[SearchValue, ...]:
    """The values as the attack's parameter model converts them: for example, ends of a range of floats become floats."""
    parsed = tuple(component.parse({**parameters, name: value}, where).model_dump()[name] for value in values)
    if len(set(parsed)) < 2:
        raise UserError(f"{where}: a search over {name} needs two different values, not {list(values)}.")
    if is_range(parsed) and parsed[0] > parsed[1]:
        raise UserError(f"{where}: the range of {name} runs down from {values[0]} to {values[1]}: swap its ends.")
    return parsed
