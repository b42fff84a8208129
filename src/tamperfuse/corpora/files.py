"""Streaming rows from local files: .jsonl, .json, .csv, .txt, .parquet and .arrow; the texts also as .gz and .zst.

At most one row (or one batch of a columnar file) is in memory.
"""

import csv
import io
import json
import logging
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from tamperfuse.corpora.columnar import read_arrow, read_parquet
from tamperfuse.corpora.folders import data_format
from tamperfuse.corpora.streams import CHUNK as _CHUNK
from tamperfuse.corpora.streams import MAX_ROW, check_column_names, lines, open_stream, too_long
from tamperfuse.records.errors import UserError, kind_of, shown
from tamperfuse.records.files import json_problem, without_repeated_keys
from tamperfuse.records.reading import unreadable

log = logging.getLogger("tamperfuse")

_LINE_END = re.compile(r"\r\n|\r|\n")
_SOME_EVIDENCE, _MUCH_EVIDENCE = 2, 4  # for an open quote in a CSV file, see _rows_within: a warning, an error
_SEPARATOR = re.compile(r"[,;|\t]")
_COLUMN_NAMES = re.compile(
    "(prompt|response|completion|goal|target|behaviou?r|instruction|input|output|question|answer|request|query|text|category|id)s?"
)
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
csv.field_size_limit(MAX_ROW)  # by default, fields above 128 KiB are errors


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Stream the rows of a file with their numbers from 1 (of lines for .jsonl, of rows otherwise).

    Raises:
        UserError: the file cannot be read, is not UTF-8, or is malformed; the message names the line.
    """
    try:
        yield from _READERS[cast(str, data_format(path))](path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({_byte(error)}): save it as UTF-8.") from error
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise unreadable(path, error) from error
        raise UserError(
            f"{path} cannot be decompressed ({error}): it is damaged, cut short or no {path.suffix} file; fetch or compress it "
            "again."
        ) from error


def _byte(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x}"


# ValueError includes bad syntax and numbers of thousands of digits; RecursionError is from lists nested a thousand deep.
_NOT_JSON = (ValueError, RecursionError)


def _constant(name: str) -> float | None:
    """NaN, which pandas writes for a missing value, as null; infinity as it is."""
    return None if name == "NaN" else float(name)


_DECODER = json.JSONDecoder(parse_constant=_constant, object_pairs_hook=without_repeated_keys)


def _jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    with open_stream(path) as stream:
        for number, line in enumerate(lines(stream, path), 1):
            if line.isspace():
                continue
            try:
                row = _DECODER.decode(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path} is not UTF-8 text (line {number}, {_byte(error)}): save it as UTF-8."
                ) from error
            except _NOT_JSON as error:
                raise UserError(
                    f"{path} is not valid JSON (line {number}: {json_problem(error)}): mend that line."
                ) from error
            yield number, _mapping(row, path, number)


def _json(path: Path) -> Iterator[tuple[int, Row]]:
    """An array of rows, or rows one after another, decoded while they are read."""
    with open_stream(path) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig") as text:
        pending, number, opened, last = "", 0, False, ""
        failure: json.JSONDecodeError | None = None  # where the row that has begun stops being JSON
        while True:
            chunk = text.read(max(_CHUNK, len(pending)))  # a long row is not decoded again for every chunk
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
                    row, at = _DECODER.raw_decode(pending, start)
                except _NOT_JSON as error:
                    if not isinstance(error, json.JSONDecodeError) or (not chunk and pending[start:].strip()):
                        raise UserError(
                            f"{path} is not valid JSON (row {number + 1}: {json_problem(error)}): mend it."
                        ) from error
                    at, failure = start, error
                    break  # the row continues in the next chunk
                number += 1
                yield number, _mapping(row, path, number)
            pending = pending[at:]
            if len(pending) > MAX_ROW:
                # An unterminated string is reported where it begins, and more text may end it.
                ended = (
                    failure and not failure.msg.startswith("Unterminated") and failure.pos - at < len(pending) - _CHUNK
                )
                if failure and ended:
                    raise UserError(f"{path} is not valid JSON (row {number + 1}: {json_problem(failure)}): mend it.")
                raise too_long(path, f"row {number + 1}")
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
    with open_stream(path) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        rows = _csv_fields(text, path)
        header = next(rows, None)
        if header is None:
            return
        category = _hex_phi_category(path)
        if category and len(header) == 1 and " " in header[0].strip():
            # HEx-PHI: one column of instructions without a header, one file for each category.
            yield 1, {"text": header[0], "file_category": category}
            for number, row in _check_fields(rows, 1, path):
                yield number, {"text": row[0], "file_category": category}
            return
        header = [name.strip() for name in header]
        for sign, separator in ((";", "semicolons"), ("\t", "tabs")):
            if len(header) == 1 and re.fullmatch(rf"\w+({sign}\w+)+", header[0]):
                raise UserError(f"{path} is separated by {separator}: save it with commas, or as .jsonl.")
        check_column_names([name for name in header if name], path)
        for number, row in _check_fields(rows, len(header), path):
            values = [None if value in ("NaN", "nan") else value for value in row]  # as pandas may write missing values
            yield number, dict(zip(header, values + [""] * (len(header) - len(row)), strict=True))


def _csv_fields(text: io.TextIOWrapper, path: Path) -> Iterator[list[str]]:
    """The fields of every row.

    Raises:
        UserError: a line or field is too long, or quotes are not balanced: an open quote would make the rest of the file, or the
            rows up to the next quote, one field. The message names the line on which the row begins.
    """
    reader = csv.reader(_csv_lines(text, path), strict=True)
    number, columns, is_warned = 0, 0, False
    while True:
        first_line = reader.line_num + 1
        number += 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            reason = str(error)
            if reason.startswith("field larger"):
                raise too_long(path, f"row {number} (from line {first_line}), perhaps for an open quote") from error
            if "unexpected end" in reason:
                reason = "a quote is opened and not closed"
            elif "expected after" in reason:
                reason = "text follows a closing quote, so a quote before it is open or not doubled"
            raise UserError(
                f"{path} is not valid CSV (row {number}, which begins on line {first_line}: {reason}): mend the quotes of that "
                "row."
            ) from error
        if row is None:
            return
        columns = columns or len(row)
        evidence = max((_rows_within(row, at, columns) for at, field in enumerate(row) if "\n" in field), default=0)
        if evidence >= _SOME_EVIDENCE:
            problem = (
                f"{path} has a field in row {number}, which begins on line {first_line}, whose lines look like rows"
            )
            if evidence >= _MUCH_EVIDENCE:
                raise UserError(
                    f"{problem}: a quote before them is probably open. Mend the quotes of that row; if the text is "
                    "right, save the file as .jsonl or .parquet."
                )
            if not is_warned:
                log.warning("%s: check that no quote before them is open.", problem)
                is_warned = True
        yield row


def _rows_within(row: list[str], at: int, columns: int) -> int:
    """How much speaks for it that a field has swallowed rows, since a quote is opened in one and closed at the end of another.

        prompt,response
        a,"open            The first line of the field completes its row,
        b,c                the others are rows, by their number of commas,
        d,e"               and so is the last with the fields after it.

    Returns:
        The number of commas that are where those of rows would be; 0 if one is not. Those of prose, which a space follows, count
        a third.
    """
    lines = _LINE_END.split(row[at])
    commas = [line.count(",") for line in lines]
    outside = [at, *[0] * (len(lines) - 2), len(row) - 1 - at]
    if columns < 2 or any(inside + out != columns - 1 for inside, out in zip(commas, outside, strict=True)):
        return 0
    total = sum(commas[1:])
    return total // 3 if ", " in row[at] else total


def _csv_lines(text: io.TextIOWrapper, path: Path) -> Iterator[str]:
    number = 0
    while line := text.readline(MAX_ROW + 1):
        number += 1
        if len(line) > MAX_ROW:
            raise too_long(path, f"line {number}")
        yield line


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
    number = int(match.group(1)) if match and len(match.group(1)) < 4 else 0
    return _HEX_PHI[number - 1] if 1 <= number <= len(_HEX_PHI) else ""


def _mapping(row: Any, path: Path, number: int) -> Row:
    if not isinstance(row, dict):
        raise UserError(
            f'Row {number} of {path} is {kind_of(row)}, not a JSON object: write each row as one, such as {{"prompt": "…"}}.'
        )
    return row


def _txt(path: Path) -> Iterator[tuple[int, Row]]:
    """One prompt a line; blank lines are left out."""
    first = True
    with open_stream(path) as stream:
        for number, line in enumerate(lines(stream, path), 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path} is not UTF-8 text (line {number}, {_byte(error)}): save it as UTF-8."
                ) from error
            if text:
                if first:
                    _check_is_prompt(text, path, number)
                first = False
                yield number, {"prompt": text}


def _check_is_prompt(text: str, path: Path, number: int) -> None:
    """Check that the first line of a text file is a prompt, not the header of a table or a row of JSON.

    Raises:
        UserError: it is one of these.
    """
    names = [name.strip(" \"'") for name in _SEPARATOR.split(text.lower())]
    if all(map(_COLUMN_NAMES.fullmatch, names)):
        raise UserError(
            f"Line {number} of {path} is {shown(repr(text))}, which names columns; in a .txt every line is a prompt: remove this "
            "line, or save a table as .csv."
        )
    if text[0] in "[{":
        with suppress(ValueError, RecursionError):
            if isinstance(json.loads(text), dict | list):
                raise UserError(
                    f"Line {number} of {path} is JSON; in a .txt every line is a prompt: save the file as .jsonl, or as .json if "
                    "it is one list."
                )


_READERS = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".txt": _txt,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
