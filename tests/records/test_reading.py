"""Files that cannot be read as input: one sentence each, and none of them is opened to find out."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamperfuse.records.errors import UserError
from tamperfuse.records.files import read_json
from tamperfuse.records.reading import local_path, path_exists, read_text
from tamperfuse.records.yaml import parse_yaml, read_yaml


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize("read", [read_text, read_json, read_yaml])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "is not a file .it does not exist.: check the path"),
        (Path.mkdir, "it is a folder"),
        (os.mkfifo, "it is a pipe"),
        (_socket, "it is a socket"),
        (_loop, "in a loop of links"),
        (lambda path: path.symlink_to("nothing"), "a link to something that does not exist"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a device"),
        (lambda path: path.symlink_to("/proc/self/mem"), "a file of the operating system"),
        (lambda path: path.write_bytes(b'"caf\xe9"'), "not UTF-8 text .byte 4"),
    ],
)
def test_what_is_no_readable_file_is_a_sentence(
    tmp_path: Path, make: Callable[[Path], Any], words: str, read: Callable[[Path], Any]
) -> None:
    make(tmp_path / "input")
    with pytest.raises(UserError, match=words):
        read(tmp_path / "input")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("x" * 300, "too long a name"),
        ("/".join(["x" * 100] * 60), "too long a name"),
        ("/etc/hostname/x", "does not exist"),
        ("bad\udcffname", "is not UTF-8: rename"),
    ],
)
def test_bad_names_are_sentences(path: str, words: str) -> None:
    for read in (read_text, read_json, read_yaml):
        with pytest.raises(UserError, match=words) as error:
            read(Path(path))
        assert len(str(error.value)) < 400


def test_paths_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/x") == tmp_path / "x"
    for text, words in (("~nobody-of-this-name/x", "home directory"), ("a\0b", "null character"), ("a\udcff", "UTF-8")):
        with pytest.raises(UserError, match=words):
            local_path(text)
    assert path_exists(tmp_path) and not path_exists(tmp_path / "x") and not path_exists(Path("/etc/hostname/x"))
    with pytest.raises(UserError, match="too long"):
        path_exists(Path("x" * 300))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    (tmp_path / "x").touch(mode=0o000)
    with pytest.raises(UserError, match=r"permission denied.*chmod"):
        read_text(tmp_path / "x")


def test_text_has_a_limit(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("\ufeff12345")
    assert read_text(tmp_path / "x") == "12345"
    with pytest.raises(UserError, match="larger than 1 MiB"):
        (tmp_path / "x").write_bytes(b"0" * ((1 << 20) + 1))
        read_text(tmp_path / "x", 1 << 20)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ("9" * 5000, "4,300 digits"),
        ('{"a": "\\ud800"}', "half of a surrogate pair"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ("[-Infinity]", "-Infinity is no JSON number"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' occurs twice"),
        ('{"a": 1,\n}', "line 2"),
        ("", "line 1"),
    ],
)
def test_what_is_not_json_is_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=f"x.json is not valid JSON .*{words}"):
        read_json(tmp_path / "x.json")


def test_a_whole_surrogate_pair_is_text(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('"\\ud83d\\ude42 \\\\ud800"')
    assert read_json(tmp_path / "x.json") == "🙂 \\ud800"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=60)
@given(
    value=values,
    at=st.integers(0),
    rubbish=st.sampled_from(["", "{", '"', "[", "\\", "\x00", "&a [*a]", "<<: *a", "!!int x", "é"]),
)
def test_damaged_files_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, value: Any, at: int, rubbish: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    try:
        text = json.dumps(value, ensure_ascii=False)
        at %= len(text) + 1
        path.write_bytes((text[:at] + rubbish + text[at:]).encode())
    except UnicodeEncodeError:
        return
    for read in (read_json, read_yaml):
        try:
            read(path)
        except UserError as error:
            assert str(path) in str(error)


def test_aliases_are_bounded() -> None:
    import yaml

    laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdef", "bcdefg", strict=True)
    )
    merges = "a: &a {x: 1, y: 2}\n" + "".join(
        f"{name}: &{name}\n  <<: [{', '.join([f'*{before}'] * 10)}]\n"
        for before, name in zip("abcdef", "bcdefg", strict=True)
    )
    for text in (laughs, merges):
        with pytest.raises(yaml.YAMLError, match="100,000 values"):
            parse_yaml(text)
    with pytest.raises(yaml.YAMLError, match="refers to what it is in"):
        parse_yaml("a: &a [1, *a]")
    assert parse_yaml("a: &a [1, 2]\nb: [*a, *a]") == {"a": [1, 2], "b": [[1, 2], [1, 2]]}
