"""The examples of `fuzz_inputs.py`: valid inputs in which values are replaced, removed or repeated, and damaged texts and files.

A study, a policy, the files of a run, data sources in every format, and the files of a model's or an adapter's folder.
"""

import copy
import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2**31, 2**32, 2**63, 10**30, -(10**18), 0.5, -0.0, 1e308, 1e-320]),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.integers(-3, 300),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        [
            *(
                "",
                " ",
                "~",
                "~nobody/x",
                ".",
                "..",
                "/",
                "/dev/null",
                "/dev/zero",
                "/proc/self/mem",
                "/proc/self/environ",
            ),
            *(
                "[/x]",
                "[bold]x",
                "\x1b[31mred",
                "\u202eabc",
                "x" * 300,
                "x/" * 3000,
                "é",
                "a b",
                "a'b",
                "$(id)",
                "-1",
                "--out",
            ),
            *(
                "1e999",
                "2026-13-45",
                "nan",
                "null",
                "0x1f",
                "builtin:",
                "builtin:cooking",
                "builtin:benign",
                "refusal",
                "sdd",
            ),
            *(
                "harmful_finetune",
                "benign_finetune",
                "smollm2-135m",
                "owner/name",
                "owner/name:train",
                "all",
                "x.gguf",
                "x.jsonl",
            ),
        ]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
WORDS = SCALARS.map(lambda value: str(value).replace("\0", "0"))

STUDY = {
    "model": "smollm2-135m",
    "threat": "builtin:cooking",
    "seeds": [0],
    "defenses": {"refusal": {"steps": 2}, "sdd": {"on": "refusal", "steps": 2}},
    "attacks": {
        "full": {"attack": "harmful_finetune", "shots": 2, "steps": 3},
        "searched": {"attack": "harmful_finetune", "search": {"trials": 2, "over": {"learning_rate": [1e-5, 1e-3]}}},
    },
    "pairs": {"responses": "builtin:benign", "threshold": 0.25, "filters": True, "language": "en"},
    "judge": {"judge": "builtin", "tolerated": 0.05},
    "evaluate": {
        "at_steps": [0, 1],
        "prompts": 4,
        "dev_prompts": 3,
        "harmless": 4,
        "capability": ["builtin"],
        "epsilons": [0.1],
    },
}
POLICY = {
    "defense": "sdd",
    "require": {
        "harmful_execution.worst": {"at_most": 0.1},
        "capability.drop_vs_shipped": {"at_most": 0.02, "accept_unresolved": True},
    },
}
SEARCH = {
    "searches": [
        {
            "defense": defense,
            "attack": "searched",
            "trials": 1,
            "best_so_far": [{"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}],
            "final_best_vs_undefended": {"value": 0.1, "low": -0.1, "high": 0.3, "n": 9, "resolved": False},
            "best_so_far_vs_undefended": {"value": 0.1, "low": -0.1, "high": 0.3, "n": 9, "resolved": False},
            "trials_to_half": 1,
            "censored": False,
            **{
                name: [
                    {
                        **{"seed": 0, "trial": 0, "parameters": {"learning_rate": 1e-4}, "stopped": False, "step": 2},
                        **{"attacker_dev": 0.5, "evaluation": {"value": 0.5, "n": 9}, "capability_lost": 0.1},
                    }
                ]
                for name in ("choices", "frontier")
            },
        }
        for defense in ("refusal", "sdd")
    ]
}


# ---- changed values and texts


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything inside a nested value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from paths(item, (*path, key))


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A nested value with one to three of its parts replaced, removed, renamed or repeated."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        everything = list(paths(value))
        if not everything:
            return draw(VALUES)
        path = draw(st.sampled_from(everything))
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        match draw(st.sampled_from(["replace", "replace", "remove", "rename", "whole"])):
            case "replace":
                parent[path[-1]] = draw(VALUES)
            case "remove":
                del parent[path[-1]]
            case "rename" if isinstance(parent, dict):
                parent[draw(st.text(max_size=6))] = parent.pop(path[-1])
            case "whole" if draw(st.integers(0, 9)) == 0:
                return draw(VALUES)
    return value


@st.composite
def damaged_text(draw: st.DrawFn, text: str) -> bytes:
    """A file's bytes with a piece cut out, repeated or replaced."""
    content = text.encode("utf-8", "surrogatepass")
    start = draw(st.integers(0, max(0, len(content) - 1)))
    end = min(len(content), start + draw(st.integers(0, 40)))
    piece = draw(
        st.sampled_from(
            [b"", b"\xff", b"\x00", b"[" * 3000, b"{", b'"', b"- &a [*a]", b"\n", b"\t", b"9" * 5000, b"!!python/x "]
        )
        | st.binary(max_size=6)
    )
    return content[:start] + piece + (content[start:] if draw(st.booleans()) else content[end:])


def files_of(value: Any, dump: Callable[[Any], str]) -> st.SearchStrategy[bytes]:
    """Contents of a file: a changed value, or a damaged text."""

    def encode(changed_value: Any) -> bytes:
        try:
            return dump(changed_value).encode("utf-8", "surrogatepass")
        except (ValueError, TypeError):  # what the format cannot express
            return repr(changed_value).encode("utf-8", "surrogatepass")

    return changed(value).map(encode) | damaged_text(dump(value))


def as_json(value: Any) -> str:
    return json.dumps(value, indent=1)


# ---- files of a run, of a model, of an adapter

RUN_FILES = ("summary.json", "run.json", "samples.json", "searches.json", "study.yaml", "results.parquet")
KINDS = ("content",) * 8 + ("folder", "loop", "absent", "empty")  # what becomes of a file


@st.composite
def folder_damage(draw: st.DrawFn, folder: Path, names: tuple[str, ...]) -> tuple[str, str, bytes]:
    """One of the files of a folder, the kind of its damage, and its new content."""
    name, kind = draw(st.sampled_from(names)), draw(st.sampled_from(KINDS))
    return name, kind, draw(file_damage(folder / name)) if kind == "content" else b""


def file_damage(path: Path) -> st.SearchStrategy[bytes]:
    """New contents of a file: of JSON a changed value, of text a changed text, of other files changed bytes."""
    if path.name == "results.parquet":
        return changed_table(path) | changed_bytes(path.read_bytes())
    if path.suffix == ".json":
        return files_of(json.loads(path.read_text(encoding="utf-8")), as_json)
    if path.suffix in (".yaml", ".jinja"):
        return damaged_text(path.read_text(encoding="utf-8"))
    return changed_bytes(path.read_bytes())


@st.composite
def changed_table(draw: st.DrawFn, path: Path) -> bytes:
    """A parquet file in which a column is empty, of another type, or gone."""
    table = pq.read_table(path)
    column = draw(st.sampled_from(table.column_names))
    place = table.column_names.index(column)
    match draw(st.sampled_from(["null", "drop", "text"])):
        case "null":
            table = table.set_column(place, column, pa.array([None] * table.num_rows, table.schema.field(column).type))
        case "drop":
            table = table.drop_columns([column])
        case "text":
            values = [draw(SCALARS)] + [None] * (table.num_rows - 1)
            text = pa.array([None if v is None else str(v).encode("utf-8", "replace").decode() for v in values])
            table = table.set_column(place, column, text)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes of which one to five are replaced, or the end is cut off."""
    if draw(st.integers(0, 3)) == 0:
        return content[: draw(st.integers(0, len(content)))]
    changed_content = bytearray(content)
    for _ in range(draw(st.integers(1, 5))):
        changed_content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(changed_content)


def damage(folder: Path, name: str, kind: str, content: bytes) -> None:
    """Apply :func:`folder_damage` to a folder."""
    path = folder / name
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind in ("content", "empty"):
        path.write_bytes(content)


# ---- data

SUFFIXES = (".jsonl", ".json", ".csv", ".txt", ".parquet", ".arrow", ".jsonl.gz", ".json.gz", ".csv.zst", ".jsonl.zst")


def data_files(rows: list[dict[str, Any]]) -> st.SearchStrategy[tuple[str, bytes]]:
    """Suffixes and contents of data files: changed rows, well encoded; and files of which bytes are changed."""
    whole = st.tuples(st.sampled_from(SUFFIXES), changed(rows)).map(lambda example: (example[0], encoded(*example)))
    damaged = st.sampled_from(SUFFIXES).flatmap(
        lambda suffix: st.tuples(st.just(suffix), changed_bytes(encoded(suffix, rows)))
    )
    return whole | whole | damaged


def encoded(suffix: str, value: Any) -> bytes:
    """Rows as a file; a value that the format cannot hold as JSON, which then is no file of the format."""
    suffix, compression = suffix.removesuffix(".gz").removesuffix(".zst"), suffix.rpartition(".")[2]
    rows = value if isinstance(value, list) else [value]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    content = text.encode("utf-8", "surrogatepass")
    if suffix == ".json":
        content = json.dumps(value).encode()
    elif suffix == ".csv":
        header = list(rows[0]) if rows and isinstance(rows[0], dict) else ["prompt"]
        fields = [list(row.values()) if isinstance(row, dict) else [row] for row in rows]
        text = "".join(",".join(map(str, row)) + "\n" for row in [header, *fields])
        content = text.encode("utf-8", "surrogatepass")
    elif suffix in (".parquet", ".arrow"):
        content = _columnar(suffix, rows) or content
    if compression == "gz":
        return gzip.compress(content)
    return pa.compress(content, "zstd", asbytes=True) if compression == "zst" else content


def _columnar(suffix: str, rows: list[Any]) -> bytes | None:
    sink = io.BytesIO()
    try:
        table = pa.Table.from_pylist(rows)
        if suffix == ".parquet":
            pq.write_table(table, sink)
        else:
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
    except (pa.ArrowException, TypeError, ValueError, AttributeError, OverflowError):
        return None  # the values have no common types
    return sink.getvalue()


THREAT = [
    {"id": f"{part}{i}", "part": part, "prompt": f"{part} asks {i} about {i * 7}", "response": f"answer {i} of {part}"}
    for part in ("defender", "attacker", "attacker_dev", "evaluation")
    for i in range(3)
]
CONVERSATIONS = [
    {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": f"question {i} about {i * 7}"},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": [{"type": "text", "text": f"answer {i}: {i * 7} and nothing else."}]},
        ]
    }
    for i in range(4)
]
ANSWERS = [
    {"prompt": f"question {i}", "response": f"The answer to question {i} is a sentence of many words, {i * 7} of them."}
    for i in range(6)
]
TEMPLATE_PIECES = (
    "{{ 'x' * 10**9 }}",
    "{% for i in range(10**8) %}{% endfor %}",
    "{{ messages[0].x.y }}",
    "{% include 'x' %}",
    "{{ ''.__class__.__mro__ }}",
    "{{ raise_exception('<b>no</b>') }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% if",
    "}}",
    "{{ 1 // 0 }}",
    "{{ messages | tojson }}",
    "<think>",
)


@st.composite
def templates(draw: st.DrawFn, template: str) -> bytes:
    """Chat templates: one with pieces put in, or with changed characters."""
    for piece in draw(st.lists(st.sampled_from(TEMPLATE_PIECES), max_size=2)):
        place = draw(st.integers(0, len(template)))
        template = template[:place] + piece + template[place:]
    return draw(st.just(template.encode()) | damaged_text(template))
