"""Reading corpora: `builtin:NAME`, a local file or directory, or a Hub data set."""

import re
from collections.abc import Iterator, Sequence
from importlib.resources import as_file, files
from itertools import chain
from pathlib import Path
from typing import Any

from tamperfuse.corpora.conversations import roles
from tamperfuse.corpora.examples import PARTS, Example
from tamperfuse.corpora.files import read_rows
from tamperfuse.corpora.folders import ALL_SPLITS, data_format, shards
from tamperfuse.corpora.hub import hub_rows, parse_hub_source
from tamperfuse.corpora.schemas import (
    NAME_COLUMNS,
    Schema,
    find_schema,
    is_missing,
    is_undecided,
    named_fields,
    recognise,
)
from tamperfuse.corpora.tool_calls import is_tool_call
from tamperfuse.records.errors import UserError, unknown_name
from tamperfuse.records.reading import local_path, path_exists

BUILTIN = "builtin:"
# What determines the layout of a file: the columns of its first rows together, so that a value missing in one does not decide.
_FIRST_ROWS = 1000
_FIRST_TEXT = 16 << 20  # characters of these rows, beyond which no more of them are read


def read_source(
    src: str,
    *,
    prompt_field: str | None = None,
    response_field: str | None = None,
    category_field: str | None = None,
    revision: str | None = None,
    split: str | None = None,
    part: str | None = None,
    mixed: bool = False,
    display_name: str | None = None,
) -> Iterator[Example]:
    """Stream the rows of a corpus as examples, in its order.

    Args:
        src: `builtin:NAME`, a local .jsonl, .json, .csv, .txt (a prompt a line; these also .gz, .zst), .parquet or .arrow file,
            a directory of such shards without .txt, or a Hub data set as `owner/name[/config][@revision][:split]`.
        prompt_field: the column of the prompts, if the layout is unknown.
        response_field: the column of the responses, if the layout is unknown.
        category_field: the column of the categories, if the layout is unknown.
        revision: commit, branch or tag of a Hub data set, if `src` names none.
        split: split of a directory that has several, or of a Hub data set if `src` names none; `train` or the nearest to it
            by default, "all" for all files of a directory.
        part: read only rows of this part of a threat; of a source without the column `part`, all.
        mixed: whether the column names are for several sources at once: a source of a known layout that lacks them is then
            read in its layout.
        display_name: name of a local path in origins; its last component by default (see :func:`display_names`).

    Returns:
        Examples with stripped texts. A row without texts is an example without texts, so that it can be counted. Tool calls
        are no responses.

    Raises:
        UserError: the source cannot be read, is malformed, has no known schema, or has several in one directory; or no row
            has a text, or none is of the part.
    """
    fields = named_fields(prompt_field, response_field, category_field) if prompt_field or response_field else None
    reading = _Reading(fields, mixed)
    count, has_text = 0, False
    for where, origin, rows in _streams(src, revision, split, display_name):
        of_part = rows if part is None else _of_part(rows, part, where, reading)
        for example in reading.examples(of_part, where, origin):
            count += 1
            has_text = has_text or bool(example.prompt or example.response)
            yield example
    if reading.other_parts and not count:
        raise UserError(f"{src} has no row whose `part` is {part}: add some, or give another source.")
    if count and not has_text:
        raise reading.blank_error(src, count)


def raw_rows(src: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """The rows of all files of a source as they are, each with the name of its file and its number there.

    Raises:
        UserError: as :func:`read_source`, for files that cannot be read.
    """
    for where, _, rows in _streams(src, None, ALL_SPLITS, None):
        for number, row in rows:
            yield where, number, row


def schema_of(src: str, fields: Sequence[str | None] = (), split: str | None = None) -> str:
    """Name of the layout of a source, for the audit: a schema's name, "built-in", "Hub", "named columns" or "empty".

    Args:
        src: as for :func:`read_source`.
        fields: columns that the user named.
        split: as for :func:`read_source`.
    """
    if src.startswith(BUILTIN):
        return "built-in"
    path = local_path(src)
    if not path_exists(path):
        return "Hub"
    columns = _columns_of(_first_rows(chain.from_iterable(map(read_rows, shards(path, split)))))
    if not columns:
        return "empty"
    named = {name for name in fields if name}
    if named and named <= columns.keys():
        return "named columns"
    return recognise(columns, src).name if find_schema(columns) or is_undecided(columns) else "named columns"


def builtin_names() -> list[str]:
    """Names of the built-in corpora, sorted."""
    folder = files("tamperfuse.corpora") / "data"
    return sorted(entry.name.removesuffix(".jsonl") for entry in folder.iterdir() if entry.name.endswith(".jsonl"))


Rows = Iterator[tuple[int, dict[str, Any]]]


def display_names(sources: Sequence[str]) -> dict[str, str]:
    """Short names of local paths: as many of their last components as distinguish them."""
    local = {src: local_path(src) for src in sources if not src.startswith(BUILTIN)}
    paths = {src: path.absolute().parts for src, path in local.items() if path_exists(path)}
    names: dict[str, str] = {}
    for src, parts in paths.items():
        others = [other for other in paths.values() if other != parts]
        length = next(n for n in range(1, len(parts) + 1) if all(other[-n:] != parts[-n:] for other in others))
        names[src] = "/".join(parts[-length:])
    return names


def _streams(
    src: str, revision: str | None, split: str | None, display_name: str | None
) -> Iterator[tuple[str, str, Rows]]:
    """The files of a source, as (name for messages, prefix of origins, rows)."""
    if not src.strip():
        raise UserError(
            "The name of a source is empty: name a built-in corpus, a file, a folder or a data set of the Hub."
        )
    if src.startswith(BUILTIN):
        name = src.removeprefix(BUILTIN)
        entry = files("tamperfuse.corpora") / "data" / f"{name}.jsonl"
        if not re.fullmatch(r"[\w-]+", name) or not entry.is_file():
            raise unknown_name("built-in corpus", name, builtin_names())
        with as_file(entry) as path:
            yield src, src, read_rows(path)
        return
    path = local_path(src)
    hub = None if path_exists(path) or data_format(path) else parse_hub_source(src, revision, split)
    if hub is None:
        data_files = shards(path, split)
        _check_one_layout(data_files)
        for file in data_files:
            inside = file.relative_to(path).as_posix()
            origin = display_name or path.name
            yield str(file), origin if file == path else f"{origin}/{inside}", read_rows(file)
        return
    chosen, rows = hub_rows(hub)
    config = f"/{hub.config}" if hub.config else ""
    yield src, f"hub:{hub.name}{config}@{hub.revision or 'main'}/{chosen}", rows


def _check_one_layout(data_files: list[Path]) -> None:
    """Check that all files of a directory have the same schema, or the same columns if the schema is unknown.

    Raises:
        UserError: two files differ.
    """
    layouts: dict[object, tuple[Path, frozenset[str]]] = {}
    for file in data_files if len(data_files) > 1 else ():
        columns = _columns_of(_first_rows(read_rows(file)))
        if columns and not is_undecided(columns):
            schema = find_schema(columns)
            layouts.setdefault(schema.name if schema else frozenset(columns), (file, frozenset(columns)))
    if len(layouts) > 1:
        (first_file, one), (second_file, other) = list(layouts.values())[:2]
        sides = (("the first", one - other), ("the second", other - one))
        differences = [f"only {which} has {', '.join(sorted(columns))}" for which, columns in sides if columns]
        raise UserError(
            f"{first_file} and {second_file} are of different layouts ({'; '.join(differences)}): keep one layout in a directory."
        )


def _first_rows(rows: Rows) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a file whose columns determine its layout."""
    first_rows, size = [], 0
    for number, row in rows:
        first_rows.append((number, row))
        size += len(str(row))
        if len(first_rows) == _FIRST_ROWS or size > _FIRST_TEXT:
            break
    return first_rows


def _columns_of(rows: Sequence[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    """All columns of some rows, each with its first value that is not missing, as one row."""
    columns: dict[str, Any] = {}
    for _, row in rows:
        for name, value in row.items():
            if is_missing(columns.get(name)):
                columns[name] = value
    return columns


def _of_part(rows: Rows, part: str, where: str, reading: "_Reading") -> Rows:
    """The rows of a part of a threat; all rows of a source without a column `part`.

    Raises:
        UserError: a part is none of a threat, or some rows have one and others have not.
    """
    for number, row in rows:
        place = f"row {number} of {where}"
        if "part" in row:
            reading.with_part = reading.with_part or place
        else:
            reading.without_part = reading.without_part or place
        if reading.with_part and reading.without_part:
            raise UserError(
                f"A threat needs a `part` in every row, and {reading.without_part} has none while {reading.with_part} has one: "
                f"give each row one of {', '.join(PARTS)}, or remove the column."
            )
        value = row.get("part", part)
        if value not in PARTS:
            raise UserError(
                f"{where} has {value!r} as `part` in row {number}, which is none of {', '.join(PARTS)}: mend it, or rename the "
                "column if it is not that of a threat."
            )
        if value == part:
            yield number, row
        else:
            reading.other_parts += 1


def _check_new_columns(schema: Schema, columns: dict[str, Any], row: dict[str, Any], where: str) -> None:
    """Check that columns which the rows before lack do not make another layout, and add them.

    Raises:
        UserError: they do; the layout in use would ignore them.
    """
    new = sorted(row.keys() - columns.keys())
    columns.update((name, row[name]) for name in new)
    other = find_schema(columns)
    if other is not None and other is not schema:
        raise UserError(
            f"{where} is the first with the columns {', '.join(map(repr, new))}, by which it is of the "
            f"layout {other.name!r}, while the rows before are read as {schema.name!r}: give all rows the same columns, with "
            "null where a value is missing, or make two files."
        )


class _Reading:
    """Reads the rows of one source, and records what an error about the whole source needs.

    Attributes:
        other_parts: rows that were left out since they are of another part of a threat.
        with_part: the first row that has the column `part`, for messages; "" if there is none so far.
        without_part: the first row that has not.
    """

    def __init__(self, fields: Schema | None, mixed: bool) -> None:
        """Set up.

        Args:
            fields: the columns that the user named; None if none.
            mixed: whether a source of a known layout may lack them.
        """
        self._fields, self._mixed = fields, mixed
        self._schema: Schema | None = None
        self._roles: set[str] = set()
        self.other_parts = 0
        self.with_part, self.without_part = "", ""

    def examples(self, rows: Rows, where: str, origin: str) -> Iterator[Example]:
        """The examples of the rows of one file.

        Args:
            rows: the rows with their numbers.
            where: name of the file for messages.
            origin: prefix of the origins.
        """
        rows = iter(rows)
        first_rows = _first_rows(rows)
        if not first_rows:
            return
        columns = _columns_of(first_rows)
        named = self._fields is not None and (self._fields.columns <= columns.keys() or not self._mixed)
        schema = self._fields if self._fields is not None and named else recognise(columns, where)
        self._schema = schema
        read = schema.reader()
        for number, row in chain(first_rows, rows):
            if not named and not row.keys() <= columns.keys():
                _check_new_columns(schema, columns, row, f"Row {number} of {where}")
            try:
                for prompt, response, category in read(row):
                    label = row.get("id") if where.startswith(BUILTIN) else None
                    response = "" if is_tool_call(response) else clean_text(response)
                    example = Example(clean_text(prompt), response, clean_text(category), f"{origin}#{label or number}")
                    if not (example.prompt or example.response) and len(self._roles) < 10:
                        self._roles.update(role for field in schema.columns for role in roles(row.get(field)))
                    yield example
            except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
                # The row does not have the columns and types of the first row.
                problem = f"the field {error} is missing" if isinstance(error, KeyError) else str(error)
                raise UserError(
                    f"Row {number} of {where} does not fit the layout of the source, {schema.name!r} ({problem}): mend or remove "
                    f"that row, or {NAME_COLUMNS}."
                ) from error

    def blank_error(self, src: str, count: int) -> UserError:
        """The error for a source in which no row has a text."""
        layout = self._schema.name if self._schema else "no layout"
        columns = ", ".join(f"`{name}`" for name in sorted(self._schema.columns)) if self._schema else ""
        why = f"nothing is in {columns}"
        if self._roles:
            why = f"in {columns}, no turn of a user or assistant has a text; the roles are {', '.join(sorted(self._roles))}"
        return UserError(
            f"{src} has no text: its {count:,} rows are read as {layout!r}, and {why}. Check the file, or {NAME_COLUMNS}."
        )


def clean_text(text: str) -> str:
    """The text stripped and without lone surrogates, which JSON can hold and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.strip()
