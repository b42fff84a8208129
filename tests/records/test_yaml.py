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
    for parsed in (read_yaml(tmp_path / "x.yaml"), parse_settings([f"key={text}"])):
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


@pytest.mark.parametrize("text", ["a: [1", "a: !!python/object:os.system x", "a: " + "9" * 5000, "[" * 1500])
def test_what_is_not_yaml_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="not valid YAML"):
        read_yaml(tmp_path / "x.yaml")
    with pytest.raises(UserError, match="not valid YAML"):
        parse_settings([f"a={text}"])
