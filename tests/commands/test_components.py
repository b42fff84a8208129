"""What `tamperfuse list` prints: every component with the parameters that its model accepts."""

import json

import pytest

from command_stand_ins import output
from tamperfuse.commands.components import KINDS, REGISTRIES, choice, choices
from tamperfuse.records.errors import UserError


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_parameter_of_every_component_is_explained(kind: str) -> None:
    for entry in choices(kind):
        assert entry.about and entry.about.endswith("."), entry.name
        model = REGISTRIES[kind].get(entry.name).parameters
        assert [field.name for field in entry.parameters] == list(model.model_fields)
        for field in entry.parameters:
            place = f"{entry.name}.{field.name}: {field.meaning!r}"
            assert field.meaning, place
            assert not field.meaning.startswith("see "), place
            assert "likewise" not in field.meaning and ":class:" not in field.meaning, place


def test_a_parameter_is_listed_with_type_range_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    shown = output(["list", "attacks", "mixed_finetune"], capsys)
    assert "number, in (0, 1]; default 0.1" in shown
    assert "share of harmful samples" in shown
    assert "full, lora, qlora, attention or last_layers; default full" in shown
    assert max(map(len, shown.splitlines())) <= 110


def test_defaults_of_presets_are_stated_for_both_sizes() -> None:
    parameters = {field.name: field for field in choice("defenses", "sdd").parameters}
    assert parameters["learning_rate"].default == "0.0001 (135 million parameters), 5.0e-07 (8 billion)"
    assert (parameters["price"].default, parameters["price"].type) == ("null", "number or null")
    assert parameters["steps"].type == "whole number"
    assert all(text in parameters["preset"].meaning for text in ("no effect", "5e-7", "2e-5", "docs/paper.md"))


def test_controls_are_told_from_attacks() -> None:
    assert "malicious" in choice("attacks", "merge").notes
    assert "a control: not malicious" in choice("attacks", "prune").notes


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("attacks", "harmful_finetun", "no attack named 'harmful_finetun': did you mean 'harmful_finetune'"),
        ("judges", "phrase", "did you mean 'phrases'"),
        ("corpora", "builtin:cookin", "did you mean 'cooking'"),
        ("models", "smollm2", "did you mean 'smollm2-135m'"),
        ("defense", "sdd", "did you mean 'defenses'"),
    ],
)
def test_an_unknown_name_is_one_sentence_with_the_nearest_one(kind: str, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choice(kind, name)


def test_kinds_and_components_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(json.loads(output(["list", "--json"], capsys))) == KINDS
    listed = json.loads(output(["list", "corpora", "--json"], capsys))
    assert "builtin:cooking" in [entry["name"] for entry in listed["corpora"]]
    assert choice("corpora", "cooking").name == "builtin:cooking"
    parameters = json.loads(output(["list", "judges", "phrases", "--json"], capsys))["parameters"]
    assert [(field["name"], field["default"]) for field in parameters] == [("window", "160")]
