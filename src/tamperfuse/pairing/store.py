"""Pairs on disk: a folder with `pairs.parquet` and `pairs.json`, written completely or not at all."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamperfuse.corpora.examples import Pair
from tamperfuse.pairing.pairs import PairSet
from tamperfuse.records.errors import UserError, first_line, quoted
from tamperfuse.records.files import check_fresh, is_leftover, staged, write_json
from tamperfuse.records.reading import check_file, path_exists, unreadable

if TYPE_CHECKING:
    import pyarrow

TABLE = "pairs.parquet"
SUMMARY = "pairs.json"
ROWS_PER_GROUP = 8192
_WRITTEN = (TABLE, SUMMARY, "audit.json", "audit.html", "README.md", "exports")  # what a folder of pairs consists of


def schema() -> "pyarrow.Schema":
    """The columns of `pairs.parquet`: a :class:`Pair`'s fields under their own names."""
    import pyarrow as pa

    turn = pa.struct([("user", pa.string()), ("assistant", pa.string())])
    texts = ("prompt", "response", "category")
    origins = ("prompt_origin", "response_origin", "refusal_prefix")
    return pa.schema(
        [(name, pa.string()) for name in texts]
        + [("similarity", pa.float64())]
        + [(name, pa.string()) for name in origins]
        + [("history", pa.list_(turn)), ("kind", pa.string())]
    )


def write_table(path: Path, blocks: Iterable[list[Pair]]) -> None:
    """Stream blocks of pairs into a parquet file; the same pairs give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, schema(), compression="zstd") as writer:
        for block in blocks:
            rows = [_row(pair) for pair in block]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema()), row_group_size=ROWS_PER_GROUP)


def _row(pair: Pair) -> dict[str, Any]:
    return asdict(pair) | {"history": [{"user": user, "assistant": answer} for user, answer in pair.history]}


def check_out(out: Path) -> None:
    """Check that `out` can be written: as for any command, or since it is an earlier folder of pairs, which is replaced.

    Raises:
        UserError: it holds something else.
    """
    if not path_exists(out) or not (out / TABLE).is_file():
        check_fresh(out)
        return
    others = sorted(path.name for path in out.iterdir() if path.name not in _WRITTEN and not is_leftover(path))
    if others:
        raise UserError(
            f"{out} holds pairs and also {others[0]}, which would be removed with them: choose another folder, or move it away."
        )


def write_pairs(out_dir: Path, pair_set: PairSet) -> None:
    """Write a folder of pairs; an earlier folder of pairs is replaced.

    Args:
        out_dir: the folder; `pairs.parquet` holds the pairs, `pairs.json` the counts.
        pair_set: the result of :func:`make_pairs`.

    Raises:
        UserError: the folder holds something else, the place cannot be written, or the disk is full.
    """
    check_out(out_dir)
    with staged(out_dir, directory=True) as folder:
        write_table(folder / TABLE, [pair_set.pairs])
        write_json(folder / SUMMARY, summary(pair_set))


def summary(pair_set: PairSet) -> dict[str, Any]:
    """The counts of a pair set, as `pairs.json` holds them."""
    similarity = [pair.similarity for pair in pair_set.pairs]
    return {
        "schema": 1,
        "pairs": len(pair_set.pairs),
        "dropped": len(pair_set.dropped),
        "dropped_prompts": pair_set.dropped[:20],
        "redraws": pair_set.redraws,
        "encoded_prompts": pair_set.encoded_prompts,
        "encoded_responses": pair_set.encoded_responses,
        "duplicate_prompts": pair_set.duplicate_prompts,
        "duplicate_responses": pair_set.duplicate_responses,
        "refused_responses": pair_set.refused,
        "threshold": pair_set.threshold,
        "seed": pair_set.seed,
        "encoder": pair_set.encoder,
        "similarity": {"mean": sum(similarity) / len(similarity), "highest": max(similarity)},
    }


def read_pairs(path: Path) -> list[Pair]:
    """Read the pairs of a folder that `tamperfuse pair` or :func:`write_pairs` wrote, or of a `pairs.parquet`.

    Raises:
        UserError: the file does not exist, or does not hold pairs.
    """
    return list(iter_pairs(path))


def count_pairs(table: Path) -> int:
    """Number of pairs in a `pairs.parquet`."""
    import pyarrow.parquet as pq

    return int(pq.read_metadata(table).num_rows)


def iter_pairs(path: Path) -> Iterator[Pair]:
    """Read pairs as :func:`read_pairs` does, one at a time."""
    import pyarrow
    import pyarrow.parquet as pq

    table = path / TABLE if path_exists(path) and path.is_dir() else path
    if not path_exists(table):
        raise UserError(
            f"{table} does not exist: name a folder of pairs, or make one with `tamperfuse pair --harmful SRC --responses SRC "
            f"--out {quoted(path)}`."
        )
    check_file(table)
    number = 0
    try:
        with pq.ParquetFile(table) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield _pair(row)
    except (pyarrow.ArrowException, KeyError, TypeError, ValueError, OverflowError) as error:
        problem = f"the field {error} is missing" if isinstance(error, KeyError) else first_line(error)
        raise UserError(f"{table} does not hold pairs (row {max(number, 1)}: {problem}): make it again.") from error
    except OSError as error:
        raise unreadable(table, error) from error


def _pair(row: dict[str, Any]) -> Pair:
    """The pair of a row.

    Raises:
        ValueError: it has no prompt or response, or a field is of another type.
        KeyError: a field is missing.
        TypeError: it has a field that pairs do not have.
    """
    for name in ("prompt", "response"):
        if not isinstance(row[name], str) or not row[name].strip():
            raise ValueError(f"it has no {name}")
    if row["kind"] not in ("sdd", "replay"):
        raise ValueError(f"its kind is {row['kind']!r}, neither 'sdd' nor 'replay'")
    turns = row.pop("history") or []
    history = tuple((turn["user"], turn["assistant"]) for turn in turns)
    texts = [row[name] for name in ("category", "prompt_origin", "response_origin", "refusal_prefix")]
    texts += [text for turn in history for text in turn]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a field of it is not text")
    return Pair(**row, history=history)
