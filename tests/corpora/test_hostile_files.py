"""Data files that are damaged, huge or odd: read right, or refused in a sentence."""

import gzip
import json
import tracemalloc
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tamperfuse.corpora import columnar, files, streams
from tamperfuse.corpora.files import read_rows
from tamperfuse.corpora.sources import read_source
from tamperfuse.records.errors import UserError


def _zst(path: Path, content: bytes, times: int = 1) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as out:
        for _ in range(times):
            out.write(content)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".json.gz", ".csv.gz", ".jsonl.zst", ".json.zst", ".csv.zst"])
def test_an_archive_of_zeros_takes_little_memory(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (files, streams):
        monkeypatch.setattr(module, "MAX_ROW", 2 << 20)
    path, zeros = tmp_path / f"x{suffix}", b"\0" * (1 << 20)
    if suffix.endswith(".gz"):
        with gzip.open(path, "wb", compresslevel=1) as out:
            for _ in range(64):
                out.write(zeros)
    else:
        _zst(path, zeros, 64)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"too much for one row|not valid JSON"):
        list(read_rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_an_archive_that_expands_without_end_is_refused(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "RATIO_FROM", 1 << 20)
    path = tmp_path / f"x{suffix}"
    if suffix.endswith(".gz"):
        path.write_bytes(gzip.compress(b"\n" * (8 << 20)))
    else:
        _zst(path, b"\n" * (8 << 20))
    with pytest.raises(UserError, match=r"expands to more than .*Decompress it"):
        list(read_rows(path))


def _bomb(path: Path, shared: bool) -> None:
    """256 rows of 64 KiB of zeros, in a few KiB: compressed, or as one value that all rows share."""
    value = "0" * (1 << 16)
    column = (
        pa.DictionaryArray.from_arrays(pa.array([0] * 256, pa.int32()), [value]) if shared else pa.array([value] * 256)
    )
    table = pa.table({"prompt": column})
    if path.suffix == ".parquet":
        pq.write_table(table, path, compression="zstd", use_dictionary=shared)
        return
    options = pa.ipc.IpcWriteOptions(compression=None if shared else path.stem)
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table.schema, options=options) as writer:
        writer.write_table(table)


@pytest.mark.parametrize("name", ["x.parquet", "zstd.arrow", "lz4.arrow"])
def test_a_columnar_file_that_expands_without_end_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _bomb(tmp_path / name, shared=False)
    assert len(list(read_rows(tmp_path / name))) == 256, "as little as this is allowed"
    assert (tmp_path / name).stat().st_size < 1 << 17
    monkeypatch.setattr(streams, "RATIO_FROM", 1 << 20)
    monkeypatch.setattr(streams, "MAX_RATIO", 20)
    with pytest.raises(UserError, match="expands to more than"):
        next(read_rows(tmp_path / name))


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
def test_a_value_that_all_rows_share_takes_little_memory(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _bomb(tmp_path / name, shared=True)
    monkeypatch.setattr(columnar, "_BATCH_BYTES", 1 << 20)
    tracemalloc.start()
    assert sum(len(row["prompt"]) for _, row in read_rows(tmp_path / name)) == 256 << 16
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20, "all rows are 16 MiB"


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_archives_of_several_frames_are_read_whole_and_cut_ones_are_refused(tmp_path: Path, suffix: str) -> None:
    rows = [{"prompt": f"p{n} {'x' * 40}"} for n in range(3000)]
    path, content = tmp_path / f"x{suffix}", b""
    for start in range(0, 3000, 1000):
        text = "".join(json.dumps(row) + "\n" for row in rows[start : start + 1000]).encode()
        if suffix.endswith(".gz"):
            content += gzip.compress(text)
        else:
            _zst(path, text)
            content += path.read_bytes()
    path.write_bytes(content)
    assert [row for _, row in read_rows(path)] == rows
    for end in (len(content) - 1, len(content) - 9, len(content) // 2, 7):
        path.write_bytes(content[:end])
        with pytest.raises(UserError, match=r"cannot be decompressed|is not valid JSON"):
            list(read_rows(path))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_row_that_is_too_long_is_refused(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (files, streams):
        monkeypatch.setattr(module, "MAX_ROW", 1 << 20)
    path = tmp_path / f"x{suffix}"
    path.write_text(
        json.dumps([{"prompt": "x" * (2 << 20)}])[1:-1] if suffix != ".csv" else "prompt\n" + "x" * (2 << 20)
    )
    with pytest.raises(UserError, match="too much for one row"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('prompt,response\na,"open\nb,c\nd,e\n', "row 2, which begins on line 2: a quote is opened and not closed"),
        ('prompt,response\na,b\n\n"x\ny",z\nc,"open\n', "begins on line 6: a quote is opened"),
        ('prompt,response\na,"open\nb,"closed"\n', "line 2: text follows a closing quote"),
        ('prompt,response\na,"He said "hi" to me"\n', "text follows a closing quote"),
        ("prompt,prompt\na,b\n", "two columns named 'prompt'"),
        ("prompt,response\na,b,c\n", "3 fields in row 2 but 2 columns"),
    ],
)
def test_a_csv_file_with_wrong_quotes_or_columns_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(UserError, match=words):
        list(read_rows(tmp_path / "x.csv"))


def test_the_separator_of_a_table_that_is_not_a_comma_is_named(tmp_path: Path) -> None:
    for sign, name in ((";", "semicolons"), ("\t", "tabs")):
        (tmp_path / "table.csv").write_text(f"prompt{sign}response\nHow, then?{sign}So.\n")
        with pytest.raises(UserError, match=f"is separated by {name}: save it with commas"):
            list(read_source(str(tmp_path / "table.csv")))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('prompt,response\na,"open\n' + "b,c\n" * 50 + 'd,e"\nf,g\n', "row 2, which begins on line 2"),
        ('prompt,response\nx,y\n"open,b\n' + "b,c\n" * 3 + 'd,e"\nf,g\n', "row 3, which begins on line 3"),
        ('prompt,response\r\na,"open\r\n' + "b, c\r\n" * 12 + 'd, e"\r\n', "row 2, which begins on line 2"),
        ('a,b,c,d\n1,"2,3,4\n1,2,3,4\n1,2",3,4\n', r"a quote before them is probably open.*\.jsonl"),
    ],
)
def test_rows_that_an_open_quote_has_swallowed_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.csv").write_bytes(text.encode())
    with pytest.raises(UserError, match=rf"{words}|look like rows: {words}"):
        list(read_rows(tmp_path / "x.csv"))


@pytest.mark.parametrize(
    ("text", "is_warned"),
    [
        ('prompt,response\na,"open\nb,c\nd,e"\n', True),
        ('prompt,response,kind\na,"open,k\nb,c,k\nd,e",k\n', True),
        ('prompt,response\na,"Roses are red,\nViolets are blue,\nSugar is sweet,\nAnd so are you."\n', False),
        ('prompt,response\na,"Dear Sir\nI will come, at last.\nYours, Bob"\n', False),
        ('prompt,response\na,"name,age\nAda,36\nGrace,85\nAlan,41\nEdsger,72"\n', False),
        ('prompt,response\na,"def f(a, b):\n    return g(a,b)\n"\n', False),
        ('prompt\n"a\nb,c\nd,e"\n', False),
    ],
)
def test_text_of_several_lines_is_read(
    tmp_path: Path, text: str, is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "x.csv").write_text(text)
    assert len(list(read_rows(tmp_path / "x.csv"))) == 1
    assert ("check that no quote before them is open" in caplog.text) == is_warned


def test_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(
        '\ufeffprompt,response\r\n"say ""hi"",\r\nplease",b\r\n"",nan\r\nc,NaN\r\n'.encode()
    )
    assert [(e.prompt, e.response) for e in read_source(str(tmp_path / "x.csv"))] == [
        ('say "hi",\r\nplease', "b"),
        ("", ""),
        ("c", ""),
    ]


def test_a_first_line_is_an_instruction_only_in_the_files_of_hex_phi(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("harmful request 1\nharmful request 2\n")
    with pytest.raises(UserError, match="'harmful request 1', which match no known schema"):
        list(read_source(str(tmp_path / "mine.csv")))


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([2**62], pa.timestamp("us")), "column 'prompt'.*store that column as text"),
        (pa.array([0], pa.timestamp("us", tz="Foo/Bar")), "column 'prompt'"),
        (pa.array([datetime(2026, 1, 1)]), "holds a datetime, not text"),
        (pa.array([float("inf")]), "holds inf, not text"),
        (pa.array([b"\xff"], pa.binary()), "holds bytes, not text"),
    ],
)
def test_parquet_values_that_are_no_text_are_sentences(tmp_path: Path, column: pa.Array, words: str) -> None:
    pq.write_table(pa.table({"prompt": column}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=words):
        list(read_source(str(tmp_path / "x.parquet"), prompt_field="prompt"))


def test_missing_values_of_every_kind_are_missing(tmp_path: Path) -> None:
    nat = pa.array([None, None], pa.timestamp("ns"))
    table = pa.table({"prompt": ["a", None], "response": pa.array([float("nan"), None]), "category": nat})
    pq.write_table(table, tmp_path / "x.parquet")
    (tmp_path / "x.jsonl").write_text('{"prompt": "a", "response": NaN, "category": null}\n{"prompt": NaN}\n')
    for name in ("x.parquet", "x.jsonl"):
        examples = list(read_source(str(tmp_path / name)))
        assert [(e.prompt, e.response, e.category) for e in examples] == [("a", "", ""), ("", "", "")]


@pytest.mark.parametrize("line", ['{"prompt": "a", "prompt": "b"}', '{"prompt": Infinity}', '{"prompt": 1e999}'])
def test_json_that_would_lose_something_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "x.jsonl").write_text(f'{{"prompt": "a"}}\n{line}\n')
    with pytest.raises(UserError, match=r"line 2|Row 2"):
        list(read_source(str(tmp_path / "x.jsonl")))


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_arrow_files(tmp_path: Path, kind: str) -> None:
    table = pa.table({"prompt": [f"p{n}" for n in range(600)]})
    new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as out, new(out, table.schema) as writer:
        writer.write_table(table)
    assert [e.prompt for e in read_source(str(tmp_path / "x.arrow"))] == table["prompt"].to_pylist()
    (tmp_path / "x.arrow").write_bytes(b"ARROW1 not really")
    with pytest.raises(UserError, match="not a readable Arrow file"):
        list(read_source(str(tmp_path / "x.arrow")))


leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
value = st.recursive(
    leaf,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "text", "type", "tool_calls", "x"]), inner
        )
    ),
    max_leaves=8,
)
columns = st.sampled_from(
    ["prompt", "response", "completion", "messages", "conversations", "conversation", "category", "is_safe", "part", "data",
     "id", "instruction", "output", "input", "message_tree_id", "role", "text", "parent_id", "message_id", "ask"]
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(rows=st.lists(st.dictionaries(columns, value, max_size=5), max_size=4), part=st.sampled_from([None, "defender"]))
def test_any_rows_are_read_or_refused_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], part: str | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for field in (None, "ask"):
        try:
            for example in read_source(str(path), part=part, prompt_field=field):
                for text in (example.prompt, example.response, example.category):
                    assert text == text.strip()
                    text.encode()
        except UserError as error:
            assert "\n" not in str(error)


@example(suffix=".arrow", at=1782533, rubbish=b"\x00\x00\x00\x00\x01", cut=False)  # an offset that is negative
@settings(deadline=None, max_examples=120)
@given(
    suffix=st.sampled_from([".jsonl", ".json", ".csv", ".parquet", ".arrow", ".jsonl.gz", ".csv.zst"]),
    at=st.integers(0),
    rubbish=st.binary(max_size=6),
    cut=st.booleans(),
)
def test_damaged_files_are_read_or_refused_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, at: int, rubbish: bytes, cut: bool
) -> None:
    rows = [{"prompt": f"p{n}, ä", "response": 'say "r"'} for n in range(3)]
    path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    table = pa.Table.from_pylist(rows)
    if ".csv" in suffix:
        text = "prompt,response\n" + "".join(f'"{row["prompt"]}","say ""r"""\n' for row in rows)
    else:
        text = json.dumps(rows) if suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    if suffix == ".parquet":
        pq.write_table(table, path)
    elif suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
    elif suffix.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    elif suffix.endswith(".zst"):
        _zst(path, text.encode())
    else:
        path.write_text(text, encoding="utf-8")
    content = path.read_bytes()
    at %= len(content) + 1
    path.write_bytes(content[:at] + rubbish + (b"" if cut else content[at:]))
    try:
        list(read_source(str(path)))
    except UserError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    ("row", "kind"),
    [("null", "null"), ("true", "true"), ("3", "a number"), ('"x"', "text"), ("[1]", "a list"), ("1e999", "inf")],
)
def test_a_row_that_is_no_object_is_named_in_words(tmp_path: Path, row: str, kind: str) -> None:
    (tmp_path / "x.jsonl").write_text(f'{{"prompt": "a"}}\n{row}\n')
    with pytest.raises(UserError, match=rf"^Row 2 of .*x.jsonl is {kind}, not a JSON object: write each row as one"):
        list(read_rows(tmp_path / "x.jsonl"))


def test_a_syntax_error_before_much_text_is_no_long_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (files, streams):
        monkeypatch.setattr(module, "MAX_ROW", 1 << 20)
    rows = ",".join(json.dumps({"prompt": str(i) * 50}) for i in range(40_000))
    (tmp_path / "x.json").write_text('[{"prompt": bad},' + rows + "]")
    with pytest.raises(UserError, match=r"not valid JSON \(row 1: Expecting value"):
        list(read_rows(tmp_path / "x.json"))
