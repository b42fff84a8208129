"""Bad input through the command line: one sentence that helps, exit code 2, nothing half-written. Odd input: comes through."""

import json
from pathlib import Path
from unittest.mock import Mock

import pytest

from pairing_stand_ins import hash_projection, prose
from tamperfuse.cli.app import main
from tamperfuse.pairing import encoding, read_pairs
from tamperfuse.pairing.store import check_out, write_pairs
from tamperfuse.records.errors import UserError


@pytest.fixture(autouse=True)
def _no_model(monkeypatch):
    monkeypatch.setattr(encoding, "encode_batch", lambda name, dtype, texts: hash_projection(texts))


def rows(path: Path, *content: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with good prompts `p.jsonl` and responses `r.jsonl`, and others that are bad in their own way."""
    monkeypatch.chdir(tmp_path)
    rows(Path("p.jsonl"), *({"prompt": f"harmful request {n}"} for n in range(8)))
    rows(Path("r.jsonl"), *({"prompt": "", "response": prose(n * 50)} for n in range(20)))
    rows(Path("unknown.jsonl"), {"ask": "harmful request", "say": "x", "sort": "a"})
    rows(Path("mixed/a.jsonl"), {"prompt": "x"})
    rows(Path("mixed/b.jsonl"), {"goal": "x", "target": "y"})
    rows(Path("blank.jsonl"), {"prompt": " ", "response": ""}, {"prompt": "", "response": "\t"})
    rows(Path("half.jsonl"), {"prompt": "x", "response": "y"}, {"response": "y"})
    rows(Path("short.jsonl"), {"prompt": "", "response": "Yes."})
    Path("empty.jsonl").touch()
    Path("cut.jsonl").write_text('{"prompt": "x"}\n{"prompt": "y')
    Path("latin.jsonl").write_bytes(b'{"prompt": "caf\xe9"}\n')
    Path("notes.txt").write_text("x")
    Path("notes.odt").write_text("x")
    rows(Path("kept/thesis.jsonl"), {"x": 1})
    return tmp_path


def run(arguments: str) -> int:
    """The command with good sources where none are given; returns its exit code."""
    words = arguments.split()
    for option, usual in (("--harmful", "p.jsonl"), ("--responses", "r.jsonl"), ("--out", "out")):
        if option not in words:
            words += [option, usual]
    with pytest.raises(SystemExit) as ended:
        main(["pair", *words])
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--harmful unknown.jsonl", "'ask', 'say', 'sort', --prompt-field"),
        ("--responses unknown.jsonl", "'ask', 'say', 'sort', --response-field"),
        ("--harmful unknown.jsonl --prompt-field asks", "the field 'asks' is missing"),
        ("--category-field sort", "--prompt-field"),
        ("--harmful mixed", "different layouts, one layout in a directory"),
        ("--harmful blank.jsonl", "has no text, 2 rows, `prompt`, --prompt-field"),
        ("--responses blank.jsonl", "has no text, --response-field"),
        ("--harmful empty.jsonl", "no prompt"),
        ("--responses empty.jsonl", "no responses to pair"),
        ("--harmful half.jsonl", "Row 2, 'prompt' is missing"),
        ("--harmful cut.jsonl", "line 2"),
        ("--harmful latin.jsonl", "not UTF-8, line 1"),
        ("--harmful notes.odt", "convert it"),
        ("--responses notes.txt", "no responses to pair"),
        ("--harmful nothing.jsonl", "does not exist"),
        ("--harmful builtin:coking", "did you mean 'cooking'"),
        ("--harmful p.jsonl=0", "not positive"),
        ("--harmful p.jsonl=-2", "not positive"),
        ("--harmful p.jsonl=nan", "not positive"),
        ("--responses r.jsonl=1 --responses builtin:benign", "every one a weight"),
        ("--harmful p.jsonl --harmful p.jsonl", "--harmful names p.jsonl twice"),
        ("--threshold -1", "--threshold of `tamperfuse pair`, above -1"),
        ("--threshold 1.01", "--threshold, at most 1"),
        ("--threshold nan", "--threshold"),
        ("--threshold low", "--threshold"),
        ("--threshold -0.9", "higher threshold, --threshold of `tamperfuse pair`"),
        ("--max-draws 0", "--max-draws"),
        ("--workers 0", "--workers"),
        ("--language english", "'english', --language"),
        ("--responses short.jsonl", "The filters refused, 'too short'"),
        ("--refusal-prefix=", "prefix is empty"),
        ("--decontaminate p.jsonl", "Every prompt is in the evaluation sets"),
        ("--decontaminate r.jsonl", "r.jsonl holds no evaluation prompt"),
        ("--replay 0.999", "--replay-source"),
        ("--multi-turn 1 --replay-source r.jsonl", "--replay-source"),
        ("--tokenizer ./nowhere", "./nowhere"),
        ("--score-quality ./nowhere", "./nowhere"),
        ("--export axolot", "did you mean 'axolotl'"),
        ("--out notes.txt", "exists and is not empty, another --out"),
        ("--out kept", "exists and is not empty, another --out"),
        ("--out .", "exists and is not empty, another --out"),
        ("--out notes.txt/out", "cannot be written"),
    ],
)
def test_bad_input_is_a_sentence_and_leaves_nothing(place, capsys, arguments, words):
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
    assert run(arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "Usage" in said or len(said.strip().splitlines()) == 1, said
    assert [word for word in words.split(", ") if word not in said] == [], said
    left = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file() and "cache" not in path.parts}
    assert left == before


def test_a_cache_that_cannot_be_used_is_a_sentence(place, capsys, monkeypatch):
    monkeypatch.setenv("TAMPERFUSE_CACHE", str(place / "notes.txt"))
    assert run("") == 2
    assert "set TAMPERFUSE_CACHE" in capsys.readouterr().err
    assert not (place / "out").exists()


def test_odd_texts_become_pairs_and_unfit_ones_are_counted(place):
    same = prose(7)
    odd = ["שלום לכולם", "🙂👩‍👩‍👧 please", "bell\u0007 and\u0000 zero", same, "x" * 1_000_000, "  "]
    rows(Path("odd.jsonl"), *({"prompt": text} for text in odd))
    answers = [
        same,
        "y " * 500_000,
        "تتحدث هذه الفقرة عن الأنهار الطويلة والجبال العالية والبحار الواسعة.",
        "Bees 🐝🐝 " * 9 + "hum.",
    ]
    rows(
        Path("answers.jsonl"), *({"prompt": "", "response": text} for text in [*answers, *map(prose, range(400, 420))])
    )
    assert not run("--harmful odd.jsonl --responses answers.jsonl --language any --threshold 1 --near-duplicates 1")
    pairs = read_pairs(place / "out")
    facts = json.loads((place / "out" / "audit.json").read_text())
    assert {pair.prompt for pair in pairs} == {"שלום לכולם", "🙂👩‍👩‍👧 please", "bell and zero", same}
    assert all(pair.prompt != pair.response and len(pair.response) < 10_000 for pair in pairs)
    assert facts["prompts"]["too_long"] == 1
    assert "שלום לכולם" in (place / "out" / "audit.html").read_text()


def test_named_columns_and_known_layouts_mix(place):
    assert not run("--harmful unknown.jsonl --prompt-field ask --category-field sort --harmful p.jsonl")
    assert {pair.category for pair in read_pairs(place / "out")} == {"", "a"}
    facts = json.loads((place / "out" / "audit.json").read_text())
    assert [s["layout"] for s in facts["sources"]] == ["prompt and response", "named columns", "prompt and response"]


def test_folders_are_treated_as_by_every_command(place, capsys, monkeypatch):
    p, r = place / "p.jsonl", place / "r.jsonl"
    empty = place / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    for _ in range(2):  # into an empty current folder, and then over the pairs there
        assert not run(f"--harmful {p} --responses {r} --out .")
        assert len(read_pairs(empty)) == 8
    (empty / "notes.txt").write_text("mine")
    assert run(f"--harmful {p} --responses {r} --out .") == 2
    assert "holds pairs and also notes.txt, which would be removed with them" in capsys.readouterr().err
    assert (empty / "notes.txt").read_text() == "mine" and len(read_pairs(empty)) == 8
    monkeypatch.chdir(place)
    rows(place / "mount" / "lost+found" / "x", {})
    rows(place / "mount" / ".tmp-mount-0123abcd" / "x", {})
    (place / "mount" / ".lock").touch()
    (place / "link").symlink_to("target")
    for name in ("mount", "link", "empty/../new"):
        check_out(Path(name))


def test_an_old_folder_of_pairs_is_replaced_and_a_neighbour_let_alone(place):
    neighbour = rows(place / ".tmp-out-2-0123abcd" / "responses.pool", {"a": "run under way"})
    leftover = rows(place / ".tmp-out-0123abcd" / "responses.pool", {"a": "run that was killed"})
    for _ in range(2):
        assert not run("")
    assert len(read_pairs(place / "out")) == 8
    assert neighbour.exists()
    assert not leftover.exists()


def test_pairs_do_not_replace_what_is_no_folder_of_pairs(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not empty"):
        write_pairs(tmp_path, Mock())
    assert (tmp_path / "thesis.tex").exists()
