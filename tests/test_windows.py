"""Importing tamperfuse needs no module that Python lacks on Windows. The tests themselves run on Linux."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tamperfuse

POSIX_ONLY = frozenset(["fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"])


def imported_at_once(node: ast.AST) -> Iterator[str]:
    """Modules that a module imports when it is imported itself, not when one of its functions is called."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                pass
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(name)):
                yield name
            case _:
                yield from imported_at_once(child)


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("import os, resource", ["os", "resource"]),
        ("from fcntl import flock", ["fcntl"]),
        ("try:\n    import pwd\nfinally:\n    pass", ["pwd"]),
        ("class A:\n    import tty", ["tty"]),
        ("def f():\n    import resource", []),
    ],
)
def test_imports_outside_functions_are_noticed(source: str, modules: list[str]) -> None:
    assert list(imported_at_once(ast.parse(source))) == modules


def test_no_module_imports_at_once_what_windows_lacks() -> None:
    root = Path(tamperfuse.__file__).parent
    notes = [
        f"{path.relative_to(root)}: {name}"
        for path in sorted(root.rglob("*.py"))
        for name in imported_at_once(ast.parse(path.read_text(encoding="utf-8")))
        if name in POSIX_ONLY
    ]
    assert not notes, "Import these inside the functions that need them:\n" + "\n".join(notes)
