"""Where prompts and responses come from: `builtin:NAME`, a local file or directory, or a Hub id."""

import re
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from tamperfuse.corpora.examples import Example
from tamperfuse.corpora.files import is_data_file, read_rows, shards
from tamperfuse.corpora.hub import hub_rows
from tamperfuse.corpora.schemas import Schema, find_schema, named_fields, recognise
from tamperfuse.records.errors import UserError, unknown_name

BUILTIN = "builtin:"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


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
) -> Iterator[Example]:
    """Stream a corpus as examples, in its own order.

    Args:
        src: `builtin:NAME`, a local .jsonl, .json, .csv or .parquet (also .gz, .zst), a directory of such shards, or a
            Hub data set id.
        prompt_field: the column with the prompts, where the layout is not a known one.
        response_field: the column with the responses, likewise.
        category_field: the column with the categories, likewise.
        revision: for Hub ids: commit, branch or tag.
        split: for Hub ids: which split; `train` or the nearest to it by default.
        part: of a threat's rows, which carry a `part`, only this one's; rows without are all taken.
        mixed: the named columns are meant for one of several sources: a known layout that lacks them is read as such.

    Returns:
        Examples with both texts stripped of surrounding white space; rows with neither prompt nor response are left out.

    Raises:
        UserError: unreadable, malformed, of no known schema, or of several in one directory.
    """
    fields = named_fields(prompt_field, response_field, category_field) if prompt_field or response_field else None
    for where, origin, rows in _streams(src, revision, split):
        wanted = rows if part is None else ((n, row) for n, row in rows if row.get("part", part) == part)
        yield from _examples(wanted, where, origin, fields, mixed)


def schema_of(src: str) -> str:
    """The name of the schema that a local or built-in source is of, as the audit prints it; "Hub" for Hub ids."""
    path = Path(src).expanduser()
    if src.startswith(BUILTIN):
        return "built-in"
    if not path.exists():
        return "Hub"
    first = next(read_rows(shards(path)[0]), None)
    if first is None:
        return "empty"
    known = find_schema(first[1])
    return known.name if known else "named columns"


def builtin_names() -> list[str]:
    """Names of the built-in corpora, sorted."""
    folder = files("tamperfuse.corpora") / "data"
    return sorted(entry.name.removesuffix(".jsonl") for entry in folder.iterdir() if entry.name.endswith(".jsonl"))


Rows = Iterator[tuple[int, dict[str, Any]]]


def _streams(src: str, revision: str | None, split: str | None) -> Iterator[tuple[str, str, Rows]]:
    """The source's files: (for messages, prefix of origins, rows)."""
    if src.startswith(BUILTIN):
        name = src.removeprefix(BUILTIN)
        entry = files("tamperfuse.corpora") / "data" / f"{name}.jsonl"
        if not re.fullmatch(r"[\w-]+", name) or not entry.is_file():
            raise unknown_name("built-in corpus", name, builtin_names())
        with as_file(entry) as path:
            yield src, src, read_rows(path)
        return
    path = Path(src).expanduser()
    if path.exists() or is_data_file(path) or not _HUB_ID.fullmatch(src):
        found = shards(path)
        _refuse_mixed(found)
        for file in found:
            origin = file.relative_to(path.parent).as_posix()
            yield str(file), origin, read_rows(file)
        return
    chosen, rows = hub_rows(src, revision=revision, split=split)
    yield src, f"hub:{src}@{revision or 'main'}/{chosen}", rows


def _refuse_mixed(found: list[Path]) -> None:
    """A directory is read as one corpus: every shard has the first one's columns.

    Shards that no schema knows are not looked at: the caller may have named the fields.
    """
    seen: dict[frozenset[str], Path] = {}
    if len(found) < 2:
        return
    for file in found:
        first = next(read_rows(file), None)
        if first is not None:
            seen.setdefault(frozenset(first[1]), file)
    if len(seen) > 1:
        (one, first_file), (other, second_file) = list(seen.items())[:2]
        raise UserError(
            f"{first_file} and {second_file} are of different layouts (columns {', '.join(sorted(one - other)) or 'fewer'} "
            f"against {', '.join(sorted(other - one)) or 'fewer'}): keep one layout a directory."
        )


def _examples(rows: Rows, where: str, origin: str, fields: Schema | None, mixed: bool) -> Iterator[Example]:
    read = None
    for number, row in rows:
        if read is None:
            named = fields is not None and (fields.columns <= row.keys() or not mixed)
            schema = fields if fields is not None and named else recognise(row, where)
            read = schema.reader()
        try:
            for prompt, response, category in read(row):
                prompt, response = _clean(prompt), _clean(response)
                if prompt or response:
                    label = row.get("id") if where.startswith(BUILTIN) else None
                    yield Example(prompt, response, _clean(category), f"{origin}#{label or number}")
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            # A row that breaks its own schema: the first row promised these columns and types.
            problem = f"the field {error} is missing" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"{where} has a row that does not fit its layout (row {number}: {problem}): mend or remove that row, or name "
                "the columns with --prompt-field and --response-field."
            ) from error


def _clean(text: str) -> str:
    """Stripped, and free of lone surrogates (JSON may hold them; UTF-8, hashes and files cannot)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.strip()
