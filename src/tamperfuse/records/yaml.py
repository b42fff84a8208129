"""YAML 1.2 (core schema), for study files, policies and `--set` values.

PyYAML follows YAML 1.1, where `on`, `off`, `yes` and `no` are booleans, 010 is 8, 1:30 is 90, 2026-01-01 is a date and 3e-5
is a string. In YAML 1.2, `on` is a string, 010 is 10 and 3e-5 is a number. Merge keys (`<<`) are kept from YAML 1.1.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from tamperfuse.records.errors import UserError, first_line
from tamperfuse.records.reading import read_text

MAX_FILE = 4 << 20  # bytes
MAX_DEPTH = 64
MAX_VALUES = 100_000

_TAG = "tag:yaml.org,2002:"
_CORE_SCHEMA = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
)


class _Loader(yaml.SafeLoader):
    """A safe loader with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (as PyYAML declares it)
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node, at a depth of at most :data:`MAX_DEPTH`."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ConstructorError(None, None, f"nested more than {MAX_DEPTH} deep", self.get_mark())
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def fetch_flow_collection_start(self, TokenClass: type[yaml.Token]) -> None:
        """Begin `[` or `{`, at a depth of at most :data:`MAX_DEPTH`: the scanner's time is quadratic in the depth."""
        if self.flow_level >= MAX_DEPTH:
            raise ConstructorError(None, None, f"nested more than {MAX_DEPTH} deep", self.get_mark())
        super().fetch_flow_collection_start(TokenClass)


class _Dumper(yaml.SafeDumper):
    """A safe dumper that quotes strings which YAML 1.1 or YAML 1.2 would read as something else."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: list(resolvers) for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


class _LineDumper(yaml.SafeDumper):
    """A dumper that quotes strings which YAML 1.2 would read as something else, and keeps text of several lines on one."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def represent_text(self, text: str) -> yaml.Node:
        """A node of a string, double-quoted if it has line breaks."""
        return self.represent_scalar(
            f"{_TAG}str", text, style='"' if len(text.splitlines()) > 1 or "\n" in text else None
        )


_LineDumper.add_representer(str, _LineDumper.represent_text)

for _name, _pattern, _first in _CORE_SCHEMA:
    for _class in (_Loader, _Dumper, _LineDumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _scalar(kind: str, convert: Callable[[str], Any]) -> Callable[[_Loader, yaml.ScalarNode], Any]:
    """A constructor of scalars of a kind; a text that is not of it (`!!bool foo`) is an error."""

    def construct(loader: _Loader, node: yaml.ScalarNode) -> Any:
        text = loader.construct_scalar(node)
        try:
            return convert(text)
        except (ValueError, KeyError) as error:
            shown = text if len(text) <= 40 else f"{text[:30]}… ({len(text):,} characters)"
            raise ConstructorError(None, None, f"{shown!r} is not {kind}", node.start_mark) from error

    return construct


def _int(text: str) -> int:
    value = int(text, 0) if text.startswith(("0o", "0x")) else int(text)
    str(value)  # a ValueError for more than 4,300 digits, which 0x… may have and nothing could print
    return value


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


# Only the tags of the core schema: !!timestamp, !!binary, !!set and the like are errors, as every unknown tag.
_Loader.yaml_constructors = {
    None: yaml.SafeLoader.yaml_constructors[None],
    **{_TAG + name: yaml.SafeLoader.yaml_constructors[_TAG + name] for name in ("str", "seq", "map")},
}
_Loader.add_constructor(
    _TAG + "null", _scalar("null", {"~": None, "null": None, "Null": None, "NULL": None, "": None}.__getitem__)
)
_Loader.add_constructor(
    _TAG + "bool", _scalar("true or false", lambda text: {"true": True, "false": False}[text.lower()])
)
_Loader.add_constructor(_TAG + "int", _scalar("a whole number of at most 4,300 digits", _int))
_Loader.add_constructor(_TAG + "float", _scalar("a number", _float))


def parse_yaml(text: str) -> Any:
    """Parse one YAML document.

    Raises:
        yaml.YAMLError: it is not valid YAML, repeats a key, is nested more than 64 deep, or has aliases that refer to what
            they are in or that expand to more than 100,000 values.
    """
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _check_size(root, {})
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _check_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """The number of values of a node, aliases expanded; repeated keys, circular aliases and too many values are errors.

    Args:
        node: the node of a composed document, whose depth is bounded.
        sizes: the sizes of the nodes before it, by `id`; 0 for those that it is in.
    """
    if id(node) in sizes:
        if sizes[id(node)] == 0:
            raise ConstructorError(None, None, "an alias refers to what it is in", node.start_mark)
        return sizes[id(node)]
    sizes[id(node)] = 0
    size = 1
    if isinstance(node, yaml.SequenceNode):
        size += sum(_check_size(item, sizes) for item in node.value)
    elif isinstance(node, yaml.MappingNode):
        keys = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    raise ConstructorError(None, None, f"the key {key.value!r} occurs twice", key.start_mark)
                keys.add((key.tag, key.value))
            size += _check_size(key, sizes) + _check_size(value, sizes)
    if size > MAX_VALUES:
        raise ConstructorError(None, None, f"more than {MAX_VALUES:,} values, aliases expanded", node.start_mark)
    sizes[id(node)] = size
    return size


def yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong and on which line, for a message in parentheses."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or first_line(error)
    context = getattr(error, "context", None)
    where = f"{context}, " if context else ""
    return f"line {mark.line + 1}: {where}{problem}" if mark else str(problem)


def dump_yaml(value: Any) -> str:
    """Write a value as YAML, mappings in their own order; :func:`parse_yaml` returns an equal value."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def flow_yaml(value: Any) -> str:
    """A value as YAML on one line, as in `{steps: 32, batch: 8}`."""
    text = yaml.dump(
        value, Dumper=_LineDumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=float("inf")
    )
    return str(text).removesuffix("\n").removesuffix("\n...")


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        UserError: it cannot be read, is not UTF-8 or larger than 4 MiB, or is not YAML (the line is named).
    """
    text = read_text(path, MAX_FILE)
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML ({yaml_problem(error)}): mend it.") from error
