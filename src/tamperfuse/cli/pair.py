"""The command `tamperfuse pair`. Its options are the fields of :class:`tamperfuse.pairing.options.PairOptions`."""

import dataclasses
import inspect
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from tamperfuse.cli.options import out_console
from tamperfuse.pairing.options import Help, PairOptions


def pair(**values: Any) -> None:
    """Make SDD pairs: harmful prompts, each with a good response that does not answer it.

    SRC is builtin:NAME, a local .jsonl, .json, .csv, .txt (also .gz, .zst), .parquet or .arrow file, a directory of such files,
    or a Hub data set: owner/name, then as needed /config, @revision and :split.

    The folder holds pairs.parquet, pairs.json, the audit as page and JSON (audit.html, audit.json), a card (README.md)
    and the exports.

    Example: `tamperfuse pair --harmful builtin:cooking --responses builtin:benign --out runs/pairs`
    """
    from tamperfuse.pairing.pipeline import pair_corpora

    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    out_console.print(pair_corpora(PairOptions(**values)).summary)


def _parameter(field: dataclasses.Field[Any], annotated: Any) -> inspect.Parameter:
    """The parameter that typer turns into the option of a field; a tuple becomes an option that can be repeated."""
    kind, text = get_args(annotated)
    assert isinstance(text, Help)
    default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
    if get_origin(kind) is tuple:
        kind = list[str]
        default = [] if default == () else default
    # A default takes a line of its own where typer shows it, so it stands in the text.
    has_default = field.default not in (dataclasses.MISSING, None, ()) and kind is not bool
    help_text = f"{text.text} [default: {field.default}]" if has_default else text.text
    option = typer.Option(help=help_text, metavar=text.metavar, rich_help_panel=text.group, show_default=kind is bool)
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


_HINTS = get_type_hints(PairOptions, include_extras=True)
# What typer reads in place of `**values`.
pair.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [_parameter(field, _HINTS[field.name]) for field in dataclasses.fields(PairOptions)]
)
