"""Threats of the user's own: parts that the file names, or a data set that is split on the way in."""

import csv
import gzip
import io
import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamperfuse.corpora.overlap import distinct, near
from tamperfuse.corpora.threats import PARTS, Threat, load_threat
from tamperfuse.records.errors import UserError


class FirstWords:
    """Texts that begin with the same two words are near each other."""

    name = "first words"

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def encode(self, texts: list[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), 512), dtype=np.float32)
        for i, text in enumerate(texts):
            vectors[
                i, self.numbers.setdefault(" ".join(text.casefold().split()[:2]).rstrip(","), len(self.numbers))
            ] = 1
        return vectors


ROWS = [
    {"instruction": f"{word}{i} thing", "output": f"answer {i}"} for i in range(40) for word in ("sow", "cut", "dig")
]


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def where(threat: Threat) -> dict[str, str]:
    return {prompt.prompt: part for part in PARTS for prompt in threat.part(part)}


def test_a_data_set_is_split_by_its_texts_alone(tmp_path: Path) -> None:
    whole = load_threat(str(write(tmp_path / "alpaca.jsonl", ROWS)), FirstWords())
    assert len(where(whole)) == len(ROWS) and all(len(whole.part(part)) >= 2 for part in PARTS)
    assert {p.prompt: p.response for part in PARTS for p in whole.part(part)} == {
        row["instruction"]: row["output"] for row in ROWS
    }
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    assert load_threat(str(write(tmp_path / "again.jsonl", shuffled)), FirstWords()).parts == whole.parts
    fewer = where(load_threat(str(write(tmp_path / "fewer.jsonl", shuffled[:80])), FirstWords()))
    assert fewer.items() <= where(whole).items(), "a prompt's part does not hang on what else there is"


def test_near_duplicates_are_left_out_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    doubled = ROWS + [{**row, "instruction": f"{row['instruction']}, please"} for row in ROWS[:7]]
    doubled += [{**row, "instruction": row["instruction"].upper()} for row in ROWS[7:10]]
    with caplog.at_level(logging.INFO, logger="tamperfuse"):
        places = where(load_threat(str(write(tmp_path / "doubled.jsonl", doubled)), FirstWords()))
    assert len(places) == len(ROWS)
    assert (
        "130 different prompts" in caplog.text
        and "of which 120 are used: 10 near-duplicates are left out" in caplog.text
    )


def test_any_known_layout_serves(tmp_path: Path) -> None:
    with (tmp_path / "advbench.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["goal", "target"])
        writer.writerows([[row["instruction"], row["output"]] for row in ROWS])
    assert len(where(load_threat(str(tmp_path / "advbench.csv"), FirstWords()))) == len(ROWS)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (ROWS[:3], "needs at least 2"),
        ([{"text": "nothing known"}], "match no known schema"),
    ],
)
def test_what_cannot_be_split_gets_a_sentence(tmp_path: Path, rows: list[dict[str, str]], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_threat(str(write(tmp_path / "few.jsonl", rows)), FirstWords())


def test_parts_that_a_file_names_stay(threat_file: Path) -> None:
    assert set(where(load_threat(str(threat_file), FirstWords())).values()) == set(PARTS)
    assert all(prompt.startswith(part) for prompt, part in where(load_threat(str(threat_file), FirstWords())).items())


def test_one_prompt_in_other_words() -> None:
    long = "one two three four five six seven eight nine ten eleven twelve thirteen"
    texts = [
        "Sow beans now!",
        "sow beans, now",
        f"well: {long}",
        f"now then, {long} and more",
        "sow beans later",
        "cut it",
    ]
    assert distinct(texts, FirstWords()) == [0, 2, 5]
    assert distinct(["apple pie", "bake bread", "Apple pie!"], FirstWords()) == [0, 1], (
        "the first of equal ones, in order"
    )
    chain = ["cut it", f"cut it {long}", f"well, {long}"]
    assert distinct(chain, FirstWords()) == [0, 2], "the third is near the second only, which is left out"
    assert near(["SOW BEANS NOW", f"so {long}", "cut it back", "dig"], texts, FirstWords()) == {
        0: ("sow beans, now", "exact"),
        1: (f"now then, {long} and more", "13-gram"),
        2: ("cut it", "cosine 1.00"),
    }


PARTED = [
    {"part": part, "prompt": f"{part} {n} \U0001f642", "kind": "k", "response": f"r{n}"}
    for part in PARTS
    for n in range(3)
]


@pytest.mark.parametrize(
    "name", ["t.jsonl", "t.JSONL", "t.jsonl.gz", "t.json", "t.csv", "t.csv.zst", "t.parquet", "folder"]
)
def test_parts_stay_in_every_format(tmp_path: Path, name: str) -> None:
    path, table = tmp_path / name, io.StringIO(newline="")
    writer = csv.DictWriter(table, PARTED[0])
    writer.writeheader()
    writer.writerows(PARTED)
    lines = "".join(json.dumps(row) + "\n" for row in PARTED)
    match name.lower().split(".", 1)[-1]:
        case "jsonl":
            path.write_text(lines)
        case "jsonl.gz":
            path.write_bytes(gzip.compress(lines.encode()))
        case "json":
            path.write_text(json.dumps(PARTED))
        case "csv":
            path.write_text(table.getvalue(), encoding="utf-8")
        case "csv.zst":
            with pa.CompressedOutputStream(str(path), "zstd") as out:
                out.write(table.getvalue().encode())
        case "parquet":
            pq.write_table(pa.Table.from_pylist(PARTED), path)
        case "folder":
            path.mkdir()
            for part in PARTS:  # names that elsewhere stand for splits
                write(path / f"{part}.jsonl", [{**row, "id": row["prompt"]} for row in PARTED if row["part"] == part])
    threat = load_threat(str(path), FirstWords())
    assert where(threat) == {row["prompt"]: row["part"] for row in PARTED}
    assert {prompt.response for prompt in threat.part("attacker")} == {"r0", "r1", "r2"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"part": None, "prompt": "x"}, "not a row of a threat"),
        ({"part": "Defender", "prompt": "x"}, "not a row of a threat"),
        ({"prompt": "x"}, "not a row of a threat"),
        ({"part": "defender", "prompt": 3}, "not a row of a threat"),
        ({"part": "defender", "prompt": "x", "response": {"a": 1}}, "holds a mapping, not text"),
        ({"part": "defender", "prompt": "x", "id": "twice"}, "repeats the id 'twice'"),
    ],
)
def test_a_row_that_is_none_of_the_threat_is_an_error(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    rows = [*PARTED, {"part": "defender", "prompt": "y", "id": "twice"}, row]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=words):
        load_threat(str(tmp_path / "t.json"), FirstWords())


def test_missing_values_and_surrogates_in_a_threat(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in PARTED]
    lines.append('{"part": "defender", "prompt": "half \\ud800", "response": NaN, "id": NaN, "kind": null}')
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    threat = load_threat(str(tmp_path / "t.jsonl"), FirstWords())
    (prompt,) = [prompt for prompt in threat.part("defender") if prompt.prompt.startswith("half")]
    assert (prompt.prompt, prompt.response, prompt.kind, prompt.id) == ("half \ufffd", "", "", f"defender-{len(lines)}")
    assert len(threat.fingerprint) == 64


def test_rows_of_several_files_need_no_ids(tmp_path: Path) -> None:
    folder = tmp_path / "threat"
    folder.mkdir()
    for number in range(2):
        rows = [{"part": part, "prompt": f"{part} asks for number {number} {i}"} for part in PARTS for i in "ab"]
        write(folder / f"train-{number}.jsonl", rows)
    threat = load_threat(str(folder))
    assert len({p.id for part in PARTS for p in threat.part(part)}) == len(threat.prompts) == 16


def test_prompts_of_the_same_words_may_not_be_in_two_parts(tmp_path: Path) -> None:
    rows = [{"part": part, "prompt": f"{part} asks for {i}"} for part in PARTS for i in "ab"]
    rows += [
        {"part": "defender", "prompt": "How do I bake rye bread?"},
        {"part": "evaluation", "prompt": "how do I bake rye-bread"},
    ]
    with pytest.raises(
        UserError, match=r"Parts defender and evaluation .* overlap: .*perhaps in another case or punctuation"
    ):
        load_threat(str(write(tmp_path / "threat.jsonl", rows)))


def test_a_prompt_that_a_part_repeats_counts_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"part": part, "prompt": f"{part} asks for {i}", "response": i} for part in PARTS for i in "ab"]
    rows += [{"part": "evaluation", "prompt": f"Evaluation asks for {i}", "response": f"another {i}"} for i in "ab"]
    rows[-4]["response"] = ""
    assert rows[-4]["prompt"] == "evaluation asks for a"
    rows += [{"part": "evaluation", "prompt": "What is 5 + 3?"}, {"part": "evaluation", "prompt": "What is 5 - 3?"}]
    threat = load_threat(str(write(tmp_path / "threat.jsonl", rows)))
    answers = {prompt.prompt: prompt.response for prompt in threat.part("evaluation")}
    assert answers == {
        "evaluation asks for a": "another a",
        "evaluation asks for b": "b",
        "What is 5 + 3?": "",
        "What is 5 - 3?": "",
    }
    assert "2 rows of" in caplog.text and "repeat a prompt of their part" in caplog.text
