"""The workflow files of examples/ci/ call commands and options that exist."""

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from tamperfuse.cli.app import app

FILES = sorted((Path(__file__).parents[2] / "examples" / "ci").glob("*.yml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_commands_of_a_workflow_can_be_run(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert yaml.safe_load(text)
    lines = [shlex.split(line)[1:] for line in re.findall(r"(?:run:|-) (tamperfuse .+)", text)]
    assert [words[0] for words in lines] == ["run", "gate"]
    group = typer.main.get_command(app)
    values = {words[0]: group.commands[words[0]].make_context(words[0], words[1:]).params for words in lines}  # type: ignore[attr-defined]
    assert values["run"]["out"] == values["gate"]["folder"], "the gate checks what the study wrote"
    assert str(values["gate"]["junit"]) in text.partition("--junit")[2].partition("\n")[2], "the JUnit file is shown"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_workflow_installs_what_the_documentation_does(path: Path) -> None:
    """The same packages with the same versions; tamperfuse itself from a copy of its repository, as in the page."""
    text = path.read_text(encoding="utf-8")
    page = (Path(__file__).parents[2] / "docs" / "your-model.md").read_text(encoding="utf-8")
    documented = [line.partition("#")[0].split() for line in re.findall(r"^pip install (.+)", page, re.M)]
    installed = [line.split() for line in re.findall(r"pip install (.+)", text)]
    assert installed == [["./tamperfuse"] if words == ["."] else words for words in documented]
    assert "submodule" in text, "where the copy comes from"
