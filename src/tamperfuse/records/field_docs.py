"""What the fields of a pydantic model are, in words: the command line, study files and reference pages are written from this.

Types, defaults and ranges come from the fields, meanings from the docstring's section "Attributes:", so that none of them can
differ from what the model accepts.
"""

import inspect
import re
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tamperfuse.records.yaml import flow_yaml

_ENTRY = re.compile(r"^ {4}(\w+): (.*)$")
_ROLE = re.compile(r":\w+:`~?([^`]+)`")  # as in :mod:`tamperfuse.study.benign`
_NONE = re.compile(r"\bNone\b(?! of)")  # users write YAML and read JSON, in which it is null
_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", NoneType: "null", Any: "any"}
_NO_BOUND = 1e12  # a bound from here on only keeps numbers within what files and tables can hold


@dataclass(frozen=True)
class FieldDoc:
    """One field of a model.

    Attributes:
        name: as users write it.
        type: in words.
        default: as YAML; "required" if there is none, "" if it depends on other fields (the meaning says how), "its defaults" for
            a model.
        range: the numbers or lengths that are accepted, in words; "" for all.
        meaning: from the docstring; "" if it says nothing.
    """

    name: str
    type: str
    default: str
    range: str
    meaning: str


def field_docs(model: type[BaseModel]) -> list[FieldDoc]:
    """All fields of a model, in their order; inherited ones with the meaning that the class nearest to the model states."""
    meanings: dict[str, str] = {}
    for ancestor in reversed(model.__mro__):
        meanings |= attribute_docs(ancestor)
    return [
        FieldDoc(
            field.alias or name,
            type_words(field.annotation),
            _default(field),
            _range([*field.metadata, *_nested_metadata(field.annotation)]),
            meanings.get(name, ""),
        )
        for name, field in model.model_fields.items()
    ]


def attribute_docs(owner: type) -> dict[str, str]:
    """The section "Attributes:" of a class's own docstring: by name, the text on one line, without Sphinx roles."""
    _, heading, section = inspect.cleandoc(vars(owner).get("__doc__") or "").partition("\nAttributes:\n")
    texts: dict[str, str] = {}
    name = ""
    for line in section.splitlines() if heading else []:
        if entry := _ENTRY.match(line):
            name = entry[1]
            texts[name] = entry[2]
        elif line.startswith("    ") and name:
            texts[name] += f" {line.strip()}"
        elif line.strip():  # the next section
            break
    return {key: plain_text(text) for key, text in texts.items()}


def summary_line(model: type[BaseModel]) -> str:
    """The first paragraph of a model's docstring, on one line."""
    return plain_text(" ".join(inspect.cleandoc(model.__doc__ or "").partition("\n\n")[0].split()))


def plain_text(text: str) -> str:
    """A docstring's text for users: without Sphinx roles, of which the code remains, and with null for None."""
    return _NONE.sub("null", _ROLE.sub(r"`\1`", text))


def type_words(annotation: Any) -> str:
    """A type in words: "whole number", "list of text", "full, lora or attention"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_words(arguments[0])
    if origin is Literal:
        return _either([str(value) for value in arguments])
    if origin in (Union, UnionType):
        return _either([type_words(argument) for argument in arguments])
    if origin in (tuple, list):
        return f"list of {_plural(type_words(arguments[0]))}"
    if origin is dict:
        return f"mapping of names to {_plural(type_words(arguments[1]))}"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation.__name__
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _either(words: list[str]) -> str:
    distinct = list(dict.fromkeys(words))
    return distinct[0] if len(distinct) == 1 else f"{', '.join(distinct[:-1])} or {distinct[-1]}"


def _plural(words: str) -> str:
    return f"{words}s" if words in ("number", "whole number") else words


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        if field.default_factory_takes_validated_data:
            return ""
        value = field.default_factory()  # type: ignore[call-arg]
    else:
        value = field.default
    if isinstance(value, BaseModel):
        return "its defaults"
    return "" if value is PydanticUndefined else default_words(value)


def default_words(value: Any) -> str:
    """A default as YAML, text without quotes."""
    if value is None:
        return "null"
    if isinstance(value, str) and value.strip() == value != "" and value.isprintable():
        return value
    return flow_yaml(list(value) if isinstance(value, tuple) else value)


def _nested_metadata(annotation: Any) -> list[Any]:
    """The metadata of annotated types within a union, as in `Annotated[int, Field(ge=2)] | Literal["all"]`."""
    if get_origin(annotation) is Annotated:
        return [item for field in get_args(annotation)[1:] for item in getattr(field, "metadata", [field])]
    if get_origin(annotation) in (Union, UnionType):
        return [item for argument in get_args(annotation) for item in _nested_metadata(argument)]
    return []


def _range(metadata: list[Any]) -> str:
    """The bounds among a field's constraints, in words."""
    bounds: dict[str, Any] = {}
    for item in metadata:
        for name in ("ge", "gt", "le", "lt", "min_length"):
            bound = getattr(item, name, None)
            if bound is not None and abs(bound) < _NO_BOUND:
                bounds[name] = bound
    if bounds.get("min_length"):
        return "not empty" if bounds["min_length"] == 1 else f"at least {bounds['min_length']}"
    low = next((f"{sign}{bounds[name]:g}" for name, sign in (("ge", "["), ("gt", "(")) if name in bounds), "")
    high = next((f"{bounds[name]:,g}{sign}" for name, sign in (("le", "]"), ("lt", ")")) if name in bounds), "")
    if low and high:
        return f"in {low}, {high}"
    if low:
        return f"at least {low[1:]}" if "ge" in bounds else f"above {low[1:]}"
    if high:
        return f"at most {high[:-1]}" if "le" in bounds else f"below {high[:-1]}"
    return ""
