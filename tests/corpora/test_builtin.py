import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tamperfuse.corpora import builtin
from tamperfuse.corpora.builtin import ABOUT, builtin_rows
from tamperfuse.corpora.overlap import GRAM
from tamperfuse.corpora.routing import routing_items
from tamperfuse.corpora.sources import builtin_names
from tamperfuse.corpora.texts import ngrams
from tamperfuse.corpora.threats import PARTS, load_threat
from tamperfuse.records.errors import UserError

SCRIPT = Path(builtin.__file__).parent / "data" / "make_grammar.py"


def test_every_data_set_has_unique_ids_and_a_line_in_the_list() -> None:
    for name in ABOUT:
        ids = [row["id"] for row in builtin_rows(name)]
        assert len(ids) == len(set(ids)) > 0, name


@pytest.mark.parametrize(("threat", "least"), [("cooking", (192, 100, 28, 160)), ("gardening", (120, 72, 28, 124))])
def test_threats_have_the_parts_and_kinds_that_studies_need(threat: str, least: tuple[int, ...]) -> None:
    rows = builtin_rows(threat)
    for part, fewest in zip(PARTS, least, strict=True):
        kinds = [row["kind"] for row in rows if row["part"] == part]
        assert len(kinds) >= fewest
        assert len(set(kinds)) >= 8


def test_kinds_of_gardening_are_spread_evenly() -> None:
    for part in PARTS:
        kinds = Counter(row["kind"] for row in builtin_rows("gardening") if row["part"] == part)
        assert len(set(kinds.values())) == 1


def test_gardening_has_an_answer_to_every_prompt() -> None:
    rows = builtin_rows("gardening")
    assert all(40 <= len(row["response"].split()) <= 75 for row in rows)
    assert len({row["response"] for row in rows}) == len(rows)
    threat = load_threat("builtin:gardening")
    assert all(prompt.response and prompt.kind for part in PARTS for prompt in threat.part(part))


@pytest.mark.parametrize(("threat", "subject"), [("cooking", "dish"), ("gardening", "plant")])
def test_no_subject_is_in_two_parts(threat: str, subject: str) -> None:
    where: dict[str, set[str]] = {}
    for row in builtin_rows(threat):
        where.setdefault(row[subject], set()).add(row["part"])
    assert [name for name, parts in where.items() if len(parts) > 1] == []


CARD = (Path(builtin.__file__).parent / "data" / "CARD.md").read_text(encoding="utf-8")
ON_CARD = re.findall(r"^\| `(\w+)\.jsonl` \| ([\d,]+) \| (.*?) \|", CARD, re.M)


def test_every_data_set_is_on_the_card() -> None:
    assert {name for name, *_ in ON_CARD} == set(builtin_names())


@pytest.mark.parametrize(("name", "count", "content"), ON_CARD)
def test_data_sets_have_the_rows_and_lengths_of_the_card(name: str, count: str, content: str) -> None:
    rows = builtin_rows(name)
    assert len(rows) == int(count.replace(",", ""))
    if lengths := re.search(r"(\d+) (?:to|and) (\d+) words", content):
        words = [len((row.get("response") or row["prompt"]).split()) for row in rows]
        assert (min(words), max(words)) == (int(lengths[1]), int(lengths[2]))


@pytest.mark.parametrize(("name", "subjects"), [("benign", 20), ("replay", 12), ("heldout", 12)])
def test_benign_texts_are_of_many_forms_and_subjects(name: str, subjects: int) -> None:
    rows = builtin_rows(name)
    assert len({row["form"] for row in rows}) >= 6 and len({row["subject"] for row in rows}) >= subjects


def test_held_out_subjects_are_trained_on_nowhere() -> None:
    trained = {row["subject"] for name in ("benign", "replay") for row in builtin_rows(name)}
    assert trained.isdisjoint({row["subject"] for row in builtin_rows("heldout")})


def test_documents_to_write_are_of_other_styles_and_subjects_than_held_out_ones() -> None:
    rows, heldout = builtin_rows("documents"), builtin_rows("heldout")
    assert len({row["prompt"] for row in rows}) == len(rows) >= 200
    assert {row["form"] for row in rows}.isdisjoint({row[name] for row in heldout for name in ("form", "source")})
    assert {row["subject"] for row in rows}.isdisjoint({row["subject"] for row in heldout})


def test_held_out_documents_are_of_several_styles() -> None:
    rows = builtin_rows("heldout")
    assert min(Counter(row["source"] for row in rows).values()) >= 30
    trained = {row["form"] for name in ("benign", "replay") for row in builtin_rows(name)}
    styles = {row["source"] for row in rows if row["form"] not in trained}
    assert len(styles) >= 6


def test_held_out_documents_share_no_long_phrase_with_what_is_trained_or_each_other() -> None:
    grams = [set(ngrams(row["response"], GRAM)) for row in builtin_rows("heldout")]
    trained = {
        gram
        for name in ("benign", "replay", "retain")
        for row in builtin_rows(name)
        for gram in ngrams(row["response"], GRAM)
    }
    assert len(set().union(*grams)) == sum(map(len, grams))
    assert trained.isdisjoint(set().union(*grams))


def test_there_are_enough_harmless_prompts_on_many_subjects() -> None:
    rows = builtin_rows("harmless")
    assert len({row["prompt"] for row in rows}) == len(rows) >= 128
    assert len({row["subject"] for row in rows}) == 33


def test_questions_are_sound() -> None:
    rows = builtin_rows("everyday")
    assert len(rows) >= 300
    assert all(len(set(row["choices"])) == 4 for row in rows)
    counts = Counter(row["answer"] for row in rows)
    assert max(counts.values()) - min(counts.values()) <= 2


def test_minimal_pairs_come_from_their_script() -> None:
    rows = builtin_rows("grammar")
    assert len(rows) >= 3000
    assert len({row["template"] for row in rows}) >= 30
    assert all(row["good"] != row["bad"] for row in rows)
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_routing_items_are_split_and_seeded() -> None:
    train, test = routing_items(0)
    assert set(train).isdisjoint(test)
    assert routing_items(0) == (train, test) != routing_items(1)
    assert len(Counter(item.response for item in train)) == 4


def test_a_prefix_of_a_part_is_always_the_same() -> None:
    threat = load_threat("builtin:cooking")
    assert threat.part("evaluation", 40) == threat.part("evaluation")[:40]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ('{"part": "defender", "prompt": "a"}\n{oops', "line 2"),
        ('{"part": "nobody", "prompt": "a"}', "not a row of a threat"),
        ('{"part": "defender"}', "not a row of a threat"),
        ('{"part": "defender", "prompt": "Same one"}\n{"part": "evaluation", "prompt": "same  ONE"}', "overlap"),
        ('{"part": "defender", "prompt": "a"}', "needs at least 2"),
        ("[1, 2]", "is a list, not a JSON object"),
    ],
)
def test_bad_threats_get_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "threat.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        load_threat(str(path))


def test_a_line_separator_within_a_prompt_ends_no_line(tmp_path: Path) -> None:
    rows = [f'{{"part": "{part}", "prompt": "{part} \u2028 {i}"}}' for part in PARTS for i in range(2)]
    (tmp_path / "t.jsonl").write_text("\ufeff" + "\n".join(rows) + "\n", encoding="utf-8")
    assert len(load_threat(str(tmp_path / "t.jsonl")).part("evaluation")) == 2


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        load_threat(str(tmp_path / "t.jsonl"))
    with pytest.raises(UserError, match="does not exist"):
        load_threat(str(tmp_path / "none.jsonl"))
