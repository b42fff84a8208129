"""YAML 1.2 wherever the project reads YAML: study files, policies, `--set`."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tamperfuse.cli.options import parse_settings
from tamperfuse.records.errors import UserError
from tamperfuse.records.yaml import dump_yaml, parse_yaml, read_yaml

SCALARS: list[tuple[str, Any]] = [
    ("off", "off"),
    ("on", "on"),
    ("yes", "yes"),
    ("n", "n"),
    ("true", True),
    ("False", False),
    ("3e-5", 3e-5),
    ("-1.5E+3", -1500.0),
    (".5", 0.5),
    ("1.", 1.0),
    (".inf", float("inf")),
    ("7", 7),
    ("-7", -7),
    ("010", 10),
    ("0o10", 8),
    ("0x1F", 31),
    ("1_000", "1_000"),
    ("1:30", "1:30"),
    ("2026-01-01", "2026-01-01"),
    ("null", None),
    ("~", None),
    ("", None),
    ("'3'", "3"),
    ("[1, off]", [1, "off"]),
]


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars_are_those_of_yaml_1_2_in_files_and_settings(tmp_path: Path, text: str, value: Any) -> None:
    (tmp_path / "x.yaml").write_text(f"key: {text}\n", encoding="utf-8")
    settings = [parse_settings([f"key={text}"])] if text else []  # one without a value is refused
    for parsed in (read_yaml(tmp_path / "x.yaml"), *settings):
        assert parsed == {"key": value}
        assert type(parsed["key"]) is type(value)


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]))
    | st.sampled_from([text for text, _ in SCALARS])
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(st.characters(codec="ascii", exclude_categories=["Cc"])), leaves | st.lists(leaves)))
def test_what_is_written_is_read_back(value: dict[str, Any]) -> None:
    text = dump_yaml(value)
    assert parse_yaml(text) == value
    assert yaml.safe_load(text) == value, "a reader of YAML 1.1 gets the same"


def test_merge_keys_work() -> None:
    assert parse_yaml("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3")["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", "line 1"),
        ("a: !!python/object:os.system x", "python/object"),
        ("a: " + "9" * 5000, "5,000 characters"),
        ("a: 0x" + "f" * 5000, "5,002 characters"),
        ("a: 0o" + "7" * 9000, "9,002 characters"),
        ("[" * 1500, "more than 64 deep"),
        ("\n".join("  " * depth + "a:" for depth in range(70)), "more than 64 deep"),
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' occurs twice"),
        ('a: 1\n"a": 2', "occurs twice"),
        ("a: {b: {c: 1, c: 2}}", "the key 'c' occurs twice"),
        ("a: !!timestamp foo", "timestamp"),
        ("a: !!timestamp 2026-13-45", "timestamp"),
        ("a: !!bool foo", "'foo' is not true or false"),
        ("a: !!int foo", "'foo' is not a whole number"),
        ("a: !!float foo", "'foo' is not a number"),
        ("a: !!null foo", "'foo' is not null"),
        ("a: !!binary aGk=", "binary"),
        ("a: !!set {x}", "set"),
        ("a: !!str [1]", "scalar"),
        ("? [1]\n: 2", "unhashable"),
        ("a: *b", "undefined alias"),
        ("a: 1\n---\nb: 2", "single document"),
        ("a: \x00", "not allowed"),
    ],
)
def test_what_is_not_yaml_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"not valid YAML.*{words}") as error:
        read_yaml(tmp_path / "x.yaml")
    assert "\n" not in str(error.value)
    if "\n" not in text and not text.startswith("?"):
        with pytest.raises(UserError, match=f"not valid YAML.*{words}"):
            parse_settings([f"a={text}" if text.startswith("[") else text.replace(": ", "=", 1)])


def test_a_key_that_overrides_a_merged_one_is_not_repeated() -> None:
    text = "a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: [*b, *a], y: 3}"
    assert parse_yaml(text) == {"a": {"x": 1}, "b": {"x": 2}, "c": {"x": 2, "y": 3}}
