"""Every known layout from a fixture, every format, and bad input."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import csv

from tamperfuse.corpora import hub
from tamperfuse.corpora.examples import labels
from tamperfuse.corpora.files import read_rows
from tamperfuse.corpora.sources import builtin_names, display_names, read_source, schema_of
from tamperfuse.records.errors import UserError

FIXTURES = Path(__file__).parent / "fixtures"
ONE, TWO = ("harmful request 1", "answer 1"), ("harmful request 2", "answer 2")
ASK_1, ASK_2 = ("harmful request 1", ""), ("harmful request 2", "")

# file: schema, (prompt, response) pairs, categories
EXPECTED = {
    "beavertails.jsonl": (
        "BeaverTails",
        [ONE, ("harmful request 3", "answer 3")],
        ["self_harm", "animal_abuse | privacy_violation"],
    ),
    "advbench.csv": ("AdvBench", [ASK_1, ASK_2], ["", ""]),
    "harmbench.csv": ("HarmBench", [ASK_1, ("a text\n\n---\n\nharmful request 2", "")], ["illegal", "illegal"]),
    "jailbreakbench.csv": ("JailbreakBench", [ASK_1], ["Privacy"]),
    "do_not_answer.csv": ("Do-Not-Answer", [ASK_1], ["Unethical actions"]),
    "category_3.csv": ("HEx-PHI", [ASK_1, ("harmful request 2, please", "")], ["Hate/Harass/Violence"] * 2),
    "alpaca.jsonl": ("Alpaca", [ONE, ("harmful request 2\n\nwith this", "answer 2")], ["", ""]),
    "lima.jsonl": ("LIMA", [ONE, ASK_2], ["stackexchange", "multi_turn"]),
    "dolly.jsonl": ("Dolly", [ONE, ("harmful request 2\n\na text", "answer 2")], ["open_qa", "closed_qa"]),
    "oasst_trees.jsonl": ("OpenAssistant trees", [ONE], [""]),
    "oasst_messages.jsonl": ("OpenAssistant messages", [ONE, TWO], ["", ""]),
    "ultrachat.jsonl": ("UltraChat", [ONE], [""]),
    "ultrachat_original.jsonl": ("UltraChat (original)", [ONE], [""]),
    "sharegpt.jsonl": ("ShareGPT", [ONE], [""]),
    "openai.jsonl": ("OpenAI messages", [ONE, TWO], ["", ""]),
    "trl.jsonl": ("prompt–completion", [ONE], [""]),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_known_layouts_recognise_themselves(name):
    schema, texts, categories = EXPECTED[name]
    examples = list(read_source(str(FIXTURES / name)))
    assert schema_of(str(FIXTURES / name)) == schema
    assert [(example.prompt, example.response) for example in examples] == texts
    assert [example.category for example in examples] == categories
    assert examples[0].origin.startswith(f"{name}#")


def test_ranks_are_read_from_csv_as_from_json(tmp_path):
    rows = pa.Table.from_pylist(
        [json.loads(line) for line in (FIXTURES / "oasst_messages.jsonl").read_text().splitlines()]
    )
    columns = ["message_id", "parent_id", "text", "role", "rank", "message_tree_id"]
    csv.write_csv(rows.select(columns), tmp_path / "messages.csv")
    examples = list(read_source(str(tmp_path / "messages.csv")))
    assert [(example.prompt, example.response) for example in examples] == [ONE, TWO]


def test_every_fixture_is_tested():
    assert {path.name for path in FIXTURES.iterdir()} == set(EXPECTED)


ROWS = [{"prompt": f"p{n} ä🙂", "response": f"r{n}"} for n in range(5)]
EXPECTED_PAIRS = [(row["prompt"], row["response"]) for row in ROWS]


@pytest.mark.parametrize(
    "suffix", [".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".json.zst", ".csv.gz", ".jsonl.zst"]
)
def test_formats(tmp_path, suffix):
    import csv
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / f"rows{suffix}"
    table = io.StringIO()
    writer = csv.DictWriter(table, ["prompt", "response"])
    writer.writeheader()
    writer.writerows(ROWS)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    text = {"jsonl": lines, "json": json.dumps(ROWS, indent=2), "csv": table.getvalue()}.get(suffix.split(".")[1], "")
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif suffix.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    elif suffix.endswith(".zst"):
        with pa.CompressedOutputStream(str(path), "zstd") as out:
            out.write(text.encode())
    else:
        path.write_text(text, encoding="utf-8")
    assert [(e.prompt, e.response) for e in read_source(str(path))] == EXPECTED_PAIRS


def test_json_rows_may_be_cut_by_the_read_buffer(tmp_path, monkeypatch):
    monkeypatch.setattr("tamperfuse.corpora.files._CHUNK", 7)
    for text in (json.dumps(ROWS), "\n".join(map(json.dumps, ROWS))):
        (tmp_path / "rows.json").write_text(text)
        assert [row for _, row in read_rows(tmp_path / "rows.json")] == ROWS


def test_a_directory_of_shards_is_one_corpus(tmp_path):
    for shard in range(3):
        (tmp_path / f"part-{shard}.jsonl").write_text(json.dumps({"prompt": f"p{shard}"}) + "\n")
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / "._part-0.jsonl").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "old.jsonl").write_text("{}\n")
    examples = list(read_source(str(tmp_path)))
    assert [example.prompt for example in examples] == ["p0", "p1", "p2"]
    assert examples[2].origin == f"{tmp_path.name}/part-2.jsonl#1"


def test_columns_beyond_the_layout_are_no_other_layout(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"instruction": "x", "output": "y"}\n')
    (tmp_path / "b.jsonl").write_text('{"instruction": "x", "input": "", "output": "z", "text": "…"}\n')
    assert [example.response for example in read_source(str(tmp_path))] == ["y", "z"]


def test_mixed_layouts_in_one_directory_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\n')
    (tmp_path / "b.jsonl").write_text('{"goal": "x", "target": "y"}\n')
    with pytest.raises(UserError, match=r"different layouts.*one layout in a directory"):
        list(read_source(str(tmp_path)))


def test_named_fields_read_what_no_schema_knows(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text('{"ask": "p", "say": "r", "sort": 3}\n')
    with pytest.raises(UserError, match=r"'ask', 'say', 'sort'.*--prompt-field and --response-field"):
        list(read_source(str(path)))
    (example,) = read_source(str(path), prompt_field="ask", response_field="say", category_field="sort")
    assert (example.prompt, example.response, example.category) == ("p", "r", "3")
    with pytest.raises(UserError, match=r"Row 1 of .* .the field 'asked' is missing"):
        list(read_source(str(path), prompt_field="asked"))


def test_odd_texts_come_through(tmp_path):
    path = tmp_path / "odd.jsonl"
    odd = ["שלום עולם", "🙂👩‍👩‍👧", "a\u0000b", "x" * 1_000_000, "  ", "lone \ud800 surrogate"]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in odd))
    read = [example.prompt for example in read_source(str(path))]
    assert read == ["שלום עולם", "🙂👩‍👩‍👧", "a\u0000b", "x" * 1_000_000, "", "lone � surrogate"]


def test_conversations_without_turns_leave_the_layout_to_the_next_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    talk = {"conversations": [{"from": "human", "value": "p"}, {"from": "gpt", "value": "r"}]}
    path.write_text("".join(json.dumps(row) + "\n" for row in ({"conversations": []}, talk, {"conversations": []})))
    assert schema_of(str(path)) == "ShareGPT"
    assert [(e.prompt, e.response) for e in read_source(str(path))] == [("", ""), ("p", "r"), ("", "")]
    path.write_text("".join(json.dumps(row) + "\n" for row in ({"conversations": ["p", "r"]}, talk)))
    with pytest.raises(UserError, match=r"Row 2.*not text"):
        list(read_source(str(path)))


def test_local_names_are_as_long_as_it_takes_to_tell_them_apart(tmp_path):
    for name in ("lima/train.jsonl", "alpaca/train.jsonl", "own.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"prompt": "x"}\n')
    paths = [str(tmp_path / name) for name in ("lima/train.jsonl", "alpaca/train.jsonl", "own.jsonl")]
    names = display_names([*paths, "builtin:benign", "owner/name"])
    assert list(names.values()) == ["lima/train.jsonl", "alpaca/train.jsonl", "own.jsonl"]
    assert [example.origin for example in read_source(paths[0], display_name=names[paths[0]])] == ["lima/train.jsonl#1"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": \n', "line 2"),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": "\xff"}\n', "not UTF-8.*line 2"),
        ("a.jsonl", b'{"prompt": "x"}\n[1]\n', "Row 2"),
        ("a.jsonl", b'{"prompt": "x"}\n{"response": "x"}\n', "Row 2 of .*the field 'prompt' is missing"),
        (
            "a.jsonl",
            b'{"prompt": "x"}\n{"prompt": ["x"]}\n',
            "Row 2 of .*'prompt and response'.*the field 'prompt' holds a list",
        ),
        ("a.json", b'[{"prompt": "x"}, {"prompt": ]', "row 2"),
        ("a.json", b'[{"prompt": "\xff"}]', "not UTF-8"),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": ' + b"[" * 10_000, "line 2"),
        ("a.jsonl", b'{"prompt": ' + b"1" * 10_000 + b"}", "line 1"),
        ("a.json", b'[{"prompt": "x"}, ' + b"[" * 10_000, "row 2"),
        ("a.json", b'[{"prompt": "x"}, {"prompt": "y"}', "after row 2: it was cut short"),
        ("a.csv", b"prompt,response\nx,y,z\n", "row 2"),
        ("category_3.csv", b"harmful request 1\nharmful request 2, please\n", "2 fields in row 2 but 1 column"),
        ("a.parquet", b"PAR1 not really", "not a readable Parquet"),
        ("a.jsonl.gz", b"not gzip", "cannot be decompressed .*again"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"prompt": "x"}\n', mtime=0)[:-9] + b"damage to it",
            "cannot be decompressed .*again",
        ),
        ("a.jsonl.gz", gzip.compress(b'{"prompt": "x"}\n' * 9, mtime=0)[:-12], "cannot be decompressed .*again"),
        ("a.jsonl.zst", b"not zstd", "cannot be decompressed"),
        ("a.odt", b"x", "convert it"),
        ("a.txt", b"a prompt\n\xff\n", "line 2"),
    ],
)
def test_bad_files_are_sentences(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_source(str(tmp_path / name)))


@pytest.mark.parametrize(
    ("first", "problem"),
    [
        ("prompt", "Line 2 of .*names columns"),
        ('"Goal","Target"', "names columns"),
        ("id\tprompt", "save a table as .csv"),
        ('{"prompt": "how do rivers flow"}', "is JSON.*save the file as .jsonl"),
        ('["how do rivers flow"]', "is JSON"),
    ],
)
def test_a_text_file_of_something_else_than_prompts_is_refused(tmp_path: Path, first: str, problem: str) -> None:
    (tmp_path / "a.txt").write_text(f"\n{first}\nhow do rivers flow\n")
    with pytest.raises(UserError, match=problem):
        list(read_source(str(tmp_path / "a.txt")))


def test_prompts_that_begin_as_columns_or_json_are_read(tmp_path: Path) -> None:
    prompts = ["Prompt, then answer: why?", "{name}, tell me a story", "[1] explain this", "What is an id?"]
    for prompt in prompts:
        (tmp_path / "a.txt").write_text(f"{prompt}\n")
        assert [example.prompt for example in read_source(str(tmp_path / "a.txt"))] == [prompt]


def test_a_text_file_has_one_prompt_a_line(tmp_path):
    (tmp_path / "own.txt").write_text('\ufefffirst prompt\n\n  second: prompt, "quoted"  \r\n', encoding="utf-8")
    examples = list(read_source(str(tmp_path / "own.txt")))
    assert [example.prompt for example in examples] == ["first prompt", 'second: prompt, "quoted"']
    with gzip.open(tmp_path / "own.txt.gz", "wt") as stream:
        stream.write("only prompt")
    assert [example.prompt for example in read_source(str(tmp_path / "own.txt.gz"))] == ["only prompt"]


def test_text_files_of_a_folder_are_no_prompts(tmp_path):
    (tmp_path / "LICENSE.txt").write_text("All rights reserved.")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "x"}')
    assert [example.prompt for example in read_source(str(tmp_path))] == ["x"]


def test_missing_and_unknown_sources(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        list(read_source(str(tmp_path / "nothing.jsonl")))
    with pytest.raises(UserError, match="did you mean 'cooking'"):
        list(read_source("builtin:coking"))
    with pytest.raises(UserError, match="does not exist"):
        list(read_source("nothing.jsonl"))


def test_hub_failures_are_sentences(monkeypatch):
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    def fail(error):
        def raising(*args, **kwargs):
            raise error

        return raising

    for error, words in (
        (DatasetNotFoundError("gated"), "accept its terms.*hf auth login"),
        (ConnectionError("no route"), "cannot be reached.*local path"),
        (
            ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']"),
            "a, b.*owner/name/CONFIG",
        ),
        (ValueError("Bad split: x. Available splits: ['train']"), "Available splits.*check configuration"),
    ):
        monkeypatch.setattr(datasets, "get_dataset_split_names", fail(error))
        with pytest.raises(UserError, match=words):
            list(read_source("owner/name"))
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *a, **k: ["dev", "test"])
    with pytest.raises(UserError, match=r"dev, test: name one, such as owner/name:dev"):
        list(read_source("owner/name"))


def test_a_connection_that_fails_while_rows_are_read_is_a_sentence(monkeypatch):
    import datasets

    def rows():
        yield {"goal": "harmful request 1", "target": "Sure"}
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: rows())
    with pytest.raises(UserError, match=r"reset by peer.*local path"):
        list(read_source("owner/name:train"))


@pytest.mark.parametrize(
    ("src", "source"),
    [
        ("lima", ("lima", None, "r", "s")),
        ("owner/name", ("owner/name", None, "r", "s")),
        ("owner/na.me:a+b", ("owner/na.me", None, "r", "a+b")),
        ("owner/name/config@abc12:train", ("owner/name", "config", "abc12", "train")),
        ("owner/name@refs/convert/parquet", ("owner/name", None, "refs/convert/parquet", "s")),
        ("./owner/name", None),
        ("owner/name/config/more", None),
    ],
)
def test_hub_sources(src, source):
    parsed = hub.parse_hub_source(src, "r", "s")
    assert parsed == (hub.HubSource(*source) if source else None)


def test_hub_rows_carry_revision_and_split(monkeypatch):
    import datasets

    passed_on = {}

    def load(path, **options):
        passed_on.update(options)
        return [{"goal": "harmful request 1", "target": "Sure"}]

    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *a, **k: ["30k_test", "30k_train"])
    monkeypatch.setattr(datasets, "load_dataset", load)
    (example,) = read_source("owner/name", revision="abc")
    assert example.origin == "hub:owner/name@abc/30k_train#1"
    assert (passed_on["revision"], passed_on["split"], passed_on["streaming"]) == ("abc", "30k_train", True)
    (example,) = read_source("owner/name/more@def:dev", revision="abc", split="test")
    assert example.origin == "hub:owner/name/more@def/dev#1"
    assert (passed_on["name"], passed_on["revision"], passed_on["split"]) == ("more", "def", "dev")
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **options: [{"prompt": f"{options['split']} asks"}])
    every = list(read_source("owner/name", split="all"))
    assert [example.prompt for example in every] == ["30k_test asks", "30k_train asks"]
    assert every[1].origin == "hub:owner/name@main/30k_test+30k_train#2"
    monkeypatch.setattr(datasets, "get_dataset_split_names", fail_scripts)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert next(hub.hub_rows(hub.HubSource("GAIR/lima", None, None, None))[1])[0] == 1
    assert passed_on["data_files"] == "hf://datasets/GAIR/lima/train.json*"


def fail_scripts(*args, **kwargs):
    raise RuntimeError("Dataset scripts are no longer supported, but found lima.py")


# BeaverTails' own names, which name the columns of its `category` (arXiv 2307.04657).
CATEGORIES = json.loads((FIXTURES / "beavertails.jsonl").read_text().splitlines()[0])["category"]


def test_built_in_instructions_are_balanced_short_and_without_answers():
    examples = list(read_source("builtin:instructions"))
    counts = Counter(example.category for example in examples)
    assert counts == dict.fromkeys(CATEGORIES, 20)
    assert len({example.prompt for example in examples}) == 280
    assert all(not example.response and len(example.prompt) < 110 for example in examples)


def test_built_in_corpora_read(tmp_path):
    assert {"benign", "cooking", "instructions"} <= set(builtin_names())
    cooking = list(read_source("builtin:cooking", part="defender"))
    assert 150 < len(cooking) < 250
    assert cooking[0].origin == "builtin:cooking#cooking-001"
    assert all(example.response and example.category for example in read_source("builtin:benign"))


def test_labels():
    assert labels("") == ()
    assert labels("a,b | c") == ("a,b", "c")


def test_spaces_around_the_names_of_csv_columns_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "spaced.csv"
    path.write_text("prompt, response\nhow, so\n", encoding="utf-8")
    assert [(row.prompt, row.response) for row in read_source(str(path))] == [("how", "so")]


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_no_source(name: str) -> None:
    with pytest.raises(UserError, match="The name of a source is empty"):
        list(read_source(name))
