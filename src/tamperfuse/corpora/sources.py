"""Reading corpora: `builtin:NAME`, a local file or directory, or a Hub data set."""

import re
from collections.abc import Iterator, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from tamperfuse.corpora.examples import Example
from tamperfuse.corpora.files import is_data_file, read_rows, shards
from tamperfuse.corpora.hub import hub_rows, parse_hub_source
from tamperfuse.corpora.schemas import Schema, find_schema, is_undecided, named_fields, recognise
from tamperfuse.records.errors import UserError, unknown_name

BUILTIN = "builtin:"


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
        src: `builtin:NAME`, a local .jsonl, .json, .csv or .parquet (also .gz, .zst), a directory of such shards, or a
            Hub data set as `owner/name[/config][@revision][:split]`.
        prompt_field: the column of the prompts, if the layout is unknown.
        response_field: the column of the responses, if the layout is unknown.
        category_field: the column of the categories, if the layout is unknown.
        revision: commit, branch or tag of a Hub data set, if `src` names none.
        split: split of a Hub data set, if `src` names none; `train` or the nearest to it by default.
        part: read only rows of this part of a threat; rows without a `part` are all read.
        mixed: whether the column names are for several sources at once: a source of a known layout that lacks them is then
            read in its layout.
        display_name: name of a local path in origins; its last component by default (see :func:`display_names`).

    Returns:
        Examples with stripped texts. A row without texts is an example without texts, so that it can be counted.

    Raises:
        UserError: the source cannot be read, is malformed, has no known schema, or has several in one directory.
    """
    fields = named_fields(prompt_field, response_field, category_field) if prompt_field or response_field else None
    for where, origin, rows in _streams(src, revision, split, display_name):
        of_part = rows if part is None else ((n, row) for n, row in rows if row.get("part", part) == part)
        yield from _examples(of_part, where, origin, fields, mixed)


def schema_of(src: str, fields: Sequence[str | None] = ()) -> str:
    """Name of the layout of a source, for the audit: a schema's name, "built-in", "Hub", "named columns" or "empty".

    Args:
        src: as for :func:`read_source`.
        fields: columns that the user named.
    """
    path = Path(src).expanduser()
    if src.startswith(BUILTIN):
        return "built-in"
    if not path.exists():
        return "Hub"
    rows = (row for file in shards(path) for _, row in read_rows(file))
    first = next((row for row in rows if not is_undecided(row)), None)
    if first is None:
        return "empty"
    named = {name for name in fields if name}
    schema = find_schema(first)
    return schema.name if schema and not (named and named <= first.keys()) else "named columns"


def builtin_names() -> list[str]:
    """Names of the built-in corpora, sorted."""
    folder = files("tamperfuse.corpora") / "data"
    return sorted(entry.name.removesuffix(".jsonl") for entry in folder.iterdir() if entry.name.endswith(".jsonl"))


Rows = Iterator[tuple[int, dict[str, Any]]]


def display_names(sources: Sequence[str]) -> dict[str, str]:
    """Short names of local paths: as many of their last components as distinguish them."""
    paths = {src: Path(src).expanduser().absolute().parts for src in sources if Path(src).expanduser().exists()}
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
    if src.startswith(BUILTIN):
        name = src.removeprefix(BUILTIN)
        entry = files("tamperfuse.corpora") / "data" / f"{name}.jsonl"
        if not re.fullmatch(r"[\w-]+", name) or not entry.is_file():
            raise unknown_name("built-in corpus", name, builtin_names())
        with as_file(entry) as path:
            yield src, src, read_rows(path)
        return
    path = Path(src).expanduser()
    hub = None if path.exists() or is_data_file(path) else parse_hub_source(src, revision, split)
    if hub is None:
        data_files = shards(path)
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
        row = next((row for _, row in read_rows(file) if not is_undecided(row)), None)
        if row is not None:
            schema = find_schema(row)
            layouts.setdefault(schema.name if schema else frozenset(row), (file, frozenset(row)))
    if len(layouts) > 1:
        (first_file, one), (second_file, other) = list(layouts.values())[:2]
        raise UserError(
            f"{first_file} and {second_file} are of different layouts (columns {', '.join(sorted(one - other)) or 'fewer'} "
            f"against {', '.join(sorted(other - one)) or 'fewer'}): keep one layout a directory."
        )


def _examples(rows: Rows, where: str, origin: str, fields: Schema | None, mixed: bool) -> Iterator[Example]:
    read = None
    for number, row in rows:
        if read is None:
            if fields is None and find_schema(row) is None and is_undecided(row):
                yield Example("", origin=f"{origin}#{number}")
                continue
            named = fields is not None and (fields.columns <= row.keys() or not mixed)
            schema = fields if fields is not None and named else recognise(row, where)
            read = schema.reader()
        try:
            for prompt, response, category in read(row):
                label = row.get("id") if where.startswith(BUILTIN) else None
                yield Example(_clean(prompt), _clean(response), _clean(category), f"{origin}#{label or number}")
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            # The row does not have the columns and types of the first row.
            problem = f"the field {error} is missing" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"{where} has a row that does not fit its layout (row {number}: {problem}): mend or remove that row, or name "
                "the columns with --prompt-field and --response-field."
            ) from error


def _clean(text: str) -> str:
    """The text stripped and without lone surrogates, which JSON can hold and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.strip()
