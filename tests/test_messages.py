"""Options and commands that messages recommend are those of the command that was typed, and can be typed."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer

from command_stand_ins import answer
from scripts import fuzz_inputs
from tamperfuse.cli.app import app

SOURCE = Path(__file__).parents[1] / "src" / "tamperfuse"


@cache
def strings() -> list[tuple[str, ast.AST, str]]:
    """Every string of the package that is no docstring: its place, its node, its text with {expression} for what varies."""
    return list(strings_of_modules())


def strings_of_modules() -> Iterator[tuple[str, ast.AST, str]]:
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        skipped = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        skipped |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if id(node) in skipped:
                continue
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{path.relative_to(SOURCE)}:{node.lineno}", node, node.value
            elif isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else f"{{{ast.unparse(p.value)}}}" for p in node.values]  # type: ignore[attr-defined]
                yield f"{path.relative_to(SOURCE)}:{node.lineno}", node, "".join(map(str, parts))


COMMANDS = dict(fuzz_inputs._commands(typer.main.get_command(app)))
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
COMMAND = re.compile(r"(?:`|: |with )tamperfuse ((?:[a-z]+)(?: [^`\n]*)?)")


# Which commands reach the messages of a module; of several entries that fit, the longest counts.
READING = ("pair", "harden", "attack", "evaluate", "diagnose", "run", "judge calibrate")
WRITING = ("pair", "harden", "attack", "evaluate", "diagnose", "run", "demo", "report", "theory")
MEASURING = ("attack", "evaluate", "diagnose")
REACHED_BY = {
    "cli/compare_chat.py": ("compare-chat",),
    "cli/judge.py": ("judge calibrate", "judge run", "judge compare"),
    "cli/list_components.py": ("list",),
    "cli/options.py": ("harden", "attack", "evaluate", "diagnose", "judge calibrate", "judge run"),
    "cli": (),  # a file a command, of its name
    "commands/calibrate.py": ("judge calibrate",),
    "commands/chat_server.py": ("compare-chat",),
    "commands/hub_upload.py": ("harden",),
    "commands/judge_compare.py": ("judge compare",),
    "commands/judge_run.py": ("judge run",),
    "commands": (),
    "attacks": ("attack", "run"),
    "corpora": READING,
    "models": (*READING[1:], "compare-chat"),
    "models/load.py": MEASURING,
    "pairing": ("pair",),
    "pairing/filters.py": ("pair", "run"),
    "pairing/pairs.py": ("pair", "run"),
    "records/files.py": WRITING,
    "records/ray_workers.py": ("pair", "run"),
    "study": ("run",),
    "study/estimates.py": ("run", "demo"),
    "training": ("harden", "attack", "run"),
}
GLOBAL = {"--debug", "--version", "--help", "--no-deps", "--exclude"}  # the last two are those of pip and hf


@cache
def options_of(command: str) -> set[str]:
    parameters = COMMANDS[tuple(command.split())].params
    return GLOBAL | {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}


def commands_reaching(module: str) -> tuple[str, ...]:
    entry = max((entry for entry in REACHED_BY if module.startswith(entry)), key=len, default="")
    commands = REACHED_BY.get(entry) or (Path(module).stem.replace("_", "-"),)
    assert all(tuple(c.split()) in COMMANDS for c in commands), f"{module} names an option: add it to REACHED_BY"
    return commands


def test_options_that_messages_name_are_those_of_the_command_that_was_typed() -> None:
    """Or the message says of which command they are, or how a study says the same."""
    missing = []
    for place, _, text in strings():
        if text.startswith("--") and " " not in text:  # the name of an option where it is declared
            continue
        module, text = place.partition(":")[0], text.replace("{run}", "tamperfuse run")
        named = [
            name for name in re.findall(r"tamperfuse ([a-z-]+(?: [a-z]+)?)", text) if tuple(name.split()) in COMMANDS
        ]
        named += [name for name in re.findall(r"tamperfuse ([a-z-]+)", text) if (name,) in COMMANDS]
        stated = {option for command in named for option in options_of(command)}
        for option in OPTION.findall(text) if module != "corpora/data/make_grammar.py" else ():
            if option in stated | GLOBAL:
                continue
            for command in commands_reaching(module):
                in_study = command == "run" and "in a study" in text
                if option not in options_of(command) and not in_study:
                    missing.append(f"{place}: {option} is none of `{command}`: {text}")
    assert not missing, "\n".join(missing)


def test_commands_that_messages_recommend_can_be_typed() -> None:
    tried = 0
    for place, _, text in strings():
        for recommended in COMMAND.findall(text):
            varying = re.findall(r"\{([^}]*)\}", recommended)
            assert all(part.startswith(("quoted(", "context.")) for part in varying), f"{place}: not quoted: {varying}"
            words = shlex.split(re.sub(r"\{[^}]*\}", "X", recommended).rstrip(". "))
            path = next((p for p in COMMANDS if tuple(words[: len(p)]) == p), None)
            if path is None and words[0] == "X":
                continue
            assert path is not None, f"{place}: {recommended}"
            rest = words[len(path) :]
            if rest and "--no-filters" not in rest:
                COMMANDS[path].make_context(" ".join(path), rest)  # raises for an unknown or a missing option
                tried += 1
    assert tried >= 4


def test_recommended_commands_are_quoted_as_a_shell_needs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tamperfuse.commands.harden.harden_model", lambda *_, **__: None)
    monkeypatch.setattr("tamperfuse.commands.evaluate.evaluate_model", lambda *_, **__: [])
    out, threat = "my runs/it's [new]", "a b.jsonl"
    for arguments, expected in (
        (["harden", "m", "--defense", "sdd"], ["evaluate", out, "--threat", threat, "--out", "DIR"]),
        (
            ["evaluate", "my model"],
            ["attack", "my model", "--attack", "harmful_finetune", "--threat", threat, "--out", "DIR"],
        ),
    ):
        shown = answer([*arguments, "--threat", threat, "--out", out], capsys)[1]
        assert shlex.split(shown.partition(": tamperfuse ")[2]) == expected
