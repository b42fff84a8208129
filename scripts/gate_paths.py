"""Generate the tables of docs/gate.md: every path of summary.json that a policy can name, from the models that define the file.

python scripts/gate_paths.py                 prints the tables
python scripts/gate_paths.py docs/gate.md    replaces the tables in the page
"""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel

from pages import replace_tables, table
from tamperfuse.records.errors import UserError
from tamperfuse.records.field_docs import attribute_docs
from tamperfuse.records.summary import AttackCost, DefenseSummary, Measure, ShippedSummary
from tamperfuse.report.gate_paths import COMPUTED, COST_PARTS

#: What stands for the key of a mapping, by the mapping's field.
KEYS = {
    "after_attack": "ATTACK",
    "after_control": "CONTROL",
    "usable_harm": "SHARE",
    "attack_cost": "ATTACK",
    "benign_finetune": "TASK",
}


def documented_paths(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, str]]:
    """(path, meaning) of all measures of a part of summary.json; keys of mappings stand in capitals."""
    meanings = attributes(model)
    for name, field in model.model_fields.items():
        place = f"{path}.{name}" if path else name
        kind, mapping = without_wrappers(field.annotation)
        place = f"{place}.{KEYS[name]}" if mapping else place
        meaning = meanings.get(name) or first_sentence(model)
        if kind is AttackCost:
            costs = attributes(AttackCost)
            yield from ((f"{place}.{part}", f"attack cost: {costs[part]}") for part in COST_PARTS)
        elif issubclass(kind, Measure):
            yield place, meaning
        elif issubclass(kind, BaseModel):
            words = name.replace("_", " ")
            yield from ((inner, f"{words}: {meaning}") for inner, meaning in documented_paths(kind, place))


def without_wrappers(annotation: Any) -> tuple[type, bool]:
    """The type of a field's values without `dict`, `list` and `| None`; whether it is a mapping."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is dict:
        return without_wrappers(arguments[1])[0], True
    if origin is UnionType:
        return without_wrappers(next(kind for kind in arguments if kind is not NoneType))
    if origin in (list, Annotated):
        return without_wrappers(arguments[0])
    return annotation, False


def attributes(model: type[BaseModel]) -> dict[str, str]:
    """The meaning of a model's fields, from the section "Attributes" of its docstring."""
    return {name: text.rstrip(".") for name, text in attribute_docs(model).items()}


def first_sentence(model: type[BaseModel]) -> str:
    """The first line of a model's docstring."""
    return (inspect.getdoc(model) or "").splitlines()[0].rstrip(".")


def tables() -> str:
    """The tables of the page."""
    parts: list[str] = []
    for title, model in (
        ("Of a defense: `defenses.NAME.PATH`, `judges.JUDGE.NAME.PATH`", DefenseSummary),
        ("Of the model as shipped: `as_shipped.PATH`", ShippedSummary),
    ):
        rows = [[f"`{path}`", cell(meaning)] for path, meaning in documented_paths(model)]
        parts += [title + ":", "", *table(["path", "meaning"], rows), ""]
    rows = [[f"`{path}`", cell(meaning)] for path, meaning in COMPUTED.items()]
    parts += ["Of a defense, computed from several measures:", "", *table(["path", "meaning"], rows)]
    return "\n".join(parts)


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def main(arguments: list[str]) -> None:
    """Print the tables or write them into a page."""
    if len(arguments) > 1:
        sys.exit(__doc__)
    try:
        if arguments:
            replace_tables(Path(arguments[0]), f"python scripts/gate_paths.py {arguments[0]}", tables())
        else:
            print(tables())
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
