"""Streaming rows from local files: .jsonl, .json, .csv, .parquet, also .gz and .zst, and directories of such shards.

At most one row (or one parquet batch) is in memory.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
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
csv.field_size_limit(1 << 30)  # by default, fields above 128 KiB are errors


def is_data_file(path: Path) -> bool:
    """Whether the name of a file has the suffix of a supported format."""
    return _format(path) is not None


def shards(path: Path) -> list[Path]:
    """The data files of a source: the file itself, or all files below a directory that are not hidden, sorted by name.

    Raises:
        UserError: the path does not exist, or has no file of a supported format.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: check the path.")
    data_files = [path]
    if path.is_dir():
        below = ((file, file.relative_to(path).parts) for file in path.rglob("*"))
        visible = (file for file, parts in below if not any(part.startswith(".") for part in parts))
        data_files = sorted(file for file in visible if is_data_file(file) and file.is_file())
    if not data_files or not all(map(is_data_file, data_files)):
        raise UserError(f"{path} holds no {', '.join(FORMATS)} data (also .gz, .zst): convert it to one of these.")
    return data_files


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Stream the rows of a file with their numbers from 1 (of lines for .jsonl, of rows otherwise).

    Raises:
        UserError: the file cannot be read, is not UTF-8, or is malformed; the message names the line.
    """
    try:
        yield from _READERS[cast(str, _format(path))](path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({_byte(error)}): save it as UTF-8.") from error
    except (OSError, EOFError, zlib.error) as error:
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
        import pyarrow  # its codecs read .zst without another dependency

        return cast(IO[bytes], io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), _CHUNK))
    return path.open("rb")


# ValueError includes bad syntax and numbers of thousands of digits; RecursionError is from lists nested a thousand deep.
_NOT_JSON = (ValueError, RecursionError)


def _json_problem(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error).split("; use ")[0].split(" while ")[0]


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
            except _NOT_JSON as error:
                raise UserError(
                    f"{path} is not valid JSON (line {number}: {_json_problem(error)}): mend that line."
                ) from error
            yield number, _mapping(row, path, number)


def _json(path: Path) -> Iterator[tuple[int, Row]]:
    """An array of rows, or rows one after another, decoded while they are read."""
    decoder = json.JSONDecoder()
    with _open(path) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig") as lines:
        pending, number, opened, last = "", 0, False, ""
        while True:
            chunk = lines.read(_CHUNK)
            pending += chunk
            last = chunk.rstrip()[-1:] or last
            if number == 0 and not opened:
                pending = pending.lstrip()
                opened = pending.startswith("[")
                pending = pending.removeprefix("[")
            at = 0
            while True:
                start = _skip(pending, at)
                try:
                    row, at = decoder.raw_decode(pending, start)
                except _NOT_JSON as error:
                    if not isinstance(error, json.JSONDecodeError) or (not chunk and pending[start:].strip()):
                        raise UserError(
                            f"{path} is not valid JSON (row {number + 1}: {_json_problem(error)}): mend it."
                        ) from error
                    break  # the row continues in the next chunk
                number += 1
                yield number, _mapping(row, path, number)
            pending = pending[at:]
            if not chunk:
                if opened and last != "]":
                    raise UserError(
                        f"{path} ends within its array, after row {number}: it was cut short, fetch it again."
                    )
                return


_BETWEEN = re.compile(r"[\s,\]]*")


def _skip(text: str, at: int) -> int:
    """The next position after white space, commas and brackets between rows."""
    match = _BETWEEN.match(text, at)
    return match.end() if match else at


def _csv(path: Path) -> Iterator[tuple[int, Row]]:
    with _open(path) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines)
        header = next(rows, None)
        if header is None:
            return
        if len(header) == 1 and " " in header[0].strip():
            # HEx-PHI: one column of instructions without a header, one file for each category.
            category = _hex_phi_category(path)
            yield 1, {"text": header[0], "file_category": category}
            for number, row in _check_fields(rows, 1, path):
                yield number, {"text": row[0], "file_category": category}
            return
        for number, row in _check_fields(rows, len(header), path):
            yield number, dict(zip(header, row + [""] * (len(header) - len(row)), strict=True))


def _check_fields(rows: Iterable[list[str]], columns: int, path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows after the first with their numbers, without blank lines; a row with more fields than columns is an error."""
    for number, row in enumerate(rows, 2):
        if len(row) > columns:
            expected = "1 column" if columns == 1 else f"{columns} columns"
            raise UserError(
                f"{path} has {len(row)} fields in row {number} but {expected}: mend that row, or put its text in quotes."
            )
        if row:
            yield number, row


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
            f"{path} has a {type(row).__name__} in row {number} where a JSON object is needed: write one object for each row."
        )
    return row


_READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
