"""Where prompts and responses come from: `builtin:NAME`, a local file or directory, or a Hub id."""

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
    called: str | None = None,
) -> Iterator[Example]:
    """Stream a corpus as examples, in its own order.

    Args:
        src: `builtin:NAME`, a local .jsonl, .json, .csv or .parquet (also .gz, .zst), a directory of such shards, or a
            Hub data set as `owner/name[/config][@revision][:split]`.
        prompt_field: the column with the prompts, where the layout is not a known one.
        response_field: the column with the responses, likewise.
        category_field: the column with the categories, likewise.
        revision: commit, branch or tag of a Hub data set that names none.
        split: split of a Hub data set that names none; `train` or the nearest to it by default.
        part: of a threat's rows, which carry a `part`, only this one's; rows without are all taken.
        mixed: the named columns are meant for one of several sources: a known layout that lacks them is read as such.
        called: what origins call a local path; its last component by default (see :func:`display_names`).

    Returns:
        Examples with both texts stripped of surrounding white space. A row whose texts are blank gives a blank example, so
        that it can be counted.

    Raises:
        UserError: unreadable, malformed, of no known schema, or of several in one directory.
    """
    fields = named_fields(prompt_field, response_field, category_field) if prompt_field or response_field else None
    for where, origin, rows in _streams(src, revision, split, called):
        wanted = rows if part is None else ((n, row) for n, row in rows if row.get("part", part) == part)
        yield from _examples(wanted, where, origin, fields, mixed)


def schema_of(src: str, fields: Sequence[str | None] = ()) -> str:
    """The name of the layout as which a local or built-in source is read, for the audit; "Hub" for Hub data sets.

    Args:
        src: as for :func:`read_source`.
        fields: the columns that the user named.
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
    known = find_schema(first)
    return known.name if known and not (named and named <= first.keys()) else "named columns"


def builtin_names() -> list[str]:
    """Names of the built-in corpora, sorted."""
    folder = files("tamperfuse.corpora") / "data"
    return sorted(entry.name.removesuffix(".jsonl") for entry in folder.iterdir() if entry.name.endswith(".jsonl"))


Rows = Iterator[tuple[int, dict[str, Any]]]


def display_names(sources: Sequence[str]) -> dict[str, str]:
    """What to call local paths where others read it: as many of their last components as tell them apart."""
    paths = {src: Path(src).expanduser().absolute().parts for src in sources if Path(src).expanduser().exists()}
    names: dict[str, str] = {}
    for src, parts in paths.items():
        others = [other for other in paths.values() if other != parts]
        length = next(n for n in range(1, len(parts) + 1) if all(other[-n:] != parts[-n:] for other in others))
        names[src] = "/".join(parts[-length:])
    return names


def _streams(src: str, revision: str | None, split: str | None, called: str | None) -> Iterator[tuple[str, str, Rows]]:
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
    hub = None if path.exists() or is_data_file(path) else parse_hub_source(src, revision, split)
    if hub is None:
        found = shards(path)
        _refuse_mixed(found)
        for file in found:
            inside = file.relative_to(path).as_posix()
            origin = called or path.name
            yield str(file), origin if file == path else f"{origin}/{inside}", read_rows(file)
        return
    chosen, rows = hub_rows(hub)
    config = f"/{hub.config}" if hub.config else ""
    yield src, f"hub:{hub.name}{config}@{hub.revision or 'main'}/{chosen}", rows


def _refuse_mixed(found: list[Path]) -> None:
    """A directory is read as one corpus: every shard is of one known layout, or else has the first one's columns."""
    seen: dict[object, tuple[Path, frozenset[str]]] = {}
    for file in found if len(found) > 1 else ():
        row = next((row for _, row in read_rows(file) if not is_undecided(row)), None)
        if row is not None:
            known = find_schema(row)
            seen.setdefault(known.name if known else frozenset(row), (file, frozenset(row)))
    if len(seen) > 1:
        (first_file, one), (second_file, other) = list(seen.values())[:2]
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
