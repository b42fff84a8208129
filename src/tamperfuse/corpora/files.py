"""Rows out of local files, streamed: .jsonl .json .csv .parquet, also .gz and .zst, and directories of shards.

Nothing here keeps more than one row (or one parquet batch) in memory.
"""

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from tamperfuse.records.errors import UserError

FORMATS = (".jsonl", ".json", ".csv", ".parquet")
COMPRESSIONS = (".gz", ".zst")
_CHUNK = 1 << 20
_HEX_PHI = [
    "Illegal Activity",
    "Child Abuse Content",
    "Hate/Harass/Violence",
    "Malware",
    "Physical Harm",
    "Economic Harm",
    "Fraud/Deception",
    "Adult Content",
    "Political Campaigning",
    "Privacy Violation Activity",
    "Tailored Financial Advice",
]

Row = dict[str, Any]
csv.field_size_limit(1 << 30)  # single fields of a megabyte are bad taste, not an error


def is_data_file(path: Path) -> bool:
    """Whether a file's name ends like a format that is read here."""
    return _format(path) is not None


def shards(path: Path) -> list[Path]:
    """The data files of a source: the file itself, or every one below a directory, sorted by name.

    Raises:
        UserError: nothing is there, or nothing of a known format.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: check the path.")
    found = (
        sorted(file for file in path.rglob("*") if file.is_file() and is_data_file(file)) if path.is_dir() else [path]
    )
    if not found or not all(map(is_data_file, found)):
        raise UserError(f"{path} holds no {', '.join(FORMATS)} data (also .gz, .zst): convert it to one of these.")
    return found


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Stream a file's rows with their numbers (lines for .jsonl, rows otherwise; from 1).

    Raises:
        UserError: it cannot be read, is not UTF-8, or not of its format; the line is named.
    """
    try:
        yield from _READERS[cast(str, _format(path))](path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({_byte(error)}): save it as UTF-8.") from error
    except (OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}): check the file.") from error


def _format(path: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def _byte(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x}"


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.open(path))
    if path.suffix.lower() == ".zst":
        import pyarrow  # its codecs spare a dependency

        return cast(IO[bytes], io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), _CHUNK))
    return path.open("rb")


def _jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    with _open(path) as stream:
        for number, line in enumerate(stream, 1):
            if line.isspace():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path} is not UTF-8 text (line {number}, {_byte(error)}): save it as UTF-8."
                ) from error
            except json.JSONDecodeError as error:
                raise UserError(f"{path} is not valid JSON (line {number}: {error.msg}): mend that line.") from error
            yield number, _mapping(row, path, number)


def _json(path: Path) -> Iterator[tuple[int, Row]]:
    """An array of rows, or rows one after the other, decoded as they are read."""
    decoder = json.JSONDecoder()
    with _open(path) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig") as lines:
        pending, number = "", 0
        while True:
            chunk = lines.read(_CHUNK)
            pending = (pending + chunk).lstrip(" \t\r\n,[]") if number == 0 else pending + chunk
            at = 0
            while True:
                start = _skip(pending, at)
                try:
                    row, at = decoder.raw_decode(pending, start)
                except json.JSONDecodeError as error:
                    if not chunk and pending[start:].strip():
                        raise UserError(
                            f"{path} is not valid JSON (row {number + 1}: {error.msg}): mend it."
                        ) from error
                    break  # the row goes on in the next chunk
                number += 1
                yield number, _mapping(row, path, number)
            pending = pending[at:]
            if not chunk:
                return


_BETWEEN = re.compile(r"[\s,\]]*")


def _skip(text: str, at: int) -> int:
    """Past what stands between the rows of an array."""
    match = _BETWEEN.match(text, at)
    return match.end() if match else at


def _csv(path: Path) -> Iterator[tuple[int, Row]]:
    with _open(path) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines)
        header = next(rows, None)
        if header is None:
            return
        if len(header) == 1 and " " in header[0].strip():
            # HEx-PHI's layout: a headerless column of instructions, one file a category.
            category = _hex_phi_category(path)
            yield 1, {"text": header[0], "file_category": category}
            yield from ((n, {"text": row[0], "file_category": category}) for n, row in enumerate(rows, 2) if row)
            return
        for number, row in enumerate(rows, 2):
            if len(row) > len(header):
                raise UserError(
                    f"{path} has {len(row)} fields in row {number} but {len(header)} columns: mend that row."
                )
            if row:
                yield number, dict(zip(header, row + [""] * (len(header) - len(row)), strict=True))


def _hex_phi_category(path: Path) -> str:
    match = re.match(r"category_(\d+)", path.name)
    number = int(match.group(1)) if match else 0
    return _HEX_PHI[number - 1] if 1 <= number <= len(_HEX_PHI) else ""


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            number = 0
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{path} is not a readable parquet file ({str(error).splitlines()[0]}): check the file."
        ) from error


def _mapping(row: Any, path: Path, number: int) -> Row:
    if not isinstance(row, dict):
        raise UserError(
            f"{path} holds no JSON object in row {number} but a {type(row).__name__}: one object a row is needed."
        )
    return row


_READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
