"""The command `tamperfuse list`."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tamperfuse.cli.options import Json, out_console, print_json

if TYPE_CHECKING:
    from tamperfuse.commands.components import ChoiceDoc


def list_components(
    kind: Annotated[
        str | None, typer.Argument(help="defenses, attacks, judges, corpora or models; all by default.", metavar="KIND")
    ] = None,
    name: Annotated[
        str | None, typer.Argument(help="One of that kind, to explain with its parameters.", metavar="NAME")
    ] = None,
    as_json: Json = False,
) -> None:
    """List defenses, attacks, judges, built-in corpora and bundled models, or explain one of them.

    Example: `tamperfuse list`

    Example: `tamperfuse list attacks harmful_finetune`
    """
    from tamperfuse.commands.components import KINDS, choice, choices

    if kind and name:
        entry = choice(kind, name)
        print_json(asdict(entry)) if as_json else _explain(entry)
        return
    groups = {title: choices(title) for title in ((kind,) if kind else KINDS)}
    if as_json:
        print_json({title: [asdict(entry) for entry in entries] for title, entries in groups.items()})
        return
    for title, entries in groups.items():
        _print_names(title, entries)
    out_console.print("Parameters of one, for example: tamperfuse list attacks harmful_finetune")
    out_console.print("A study that uses them: tamperfuse init STUDY.yaml --model MODEL --threat SRC")


def _print_names(title: str, entries: Sequence["ChoiceDoc"]) -> None:
    table = Table(title.capitalize(), "", box=None, header_style="bold", min_width=24)
    for entry in entries:
        table.add_row(f"  {entry.name}", entry.about)
    out_console.print(table)


def _explain(entry: "ChoiceDoc") -> None:
    out_console.print(entry.name, style="bold")
    out_console.print(entry.about)
    for note in entry.notes:
        out_console.print(f"- {note}")
    if not entry.parameters:
        return
    table = Table("parameter", "type, range and default; meaning", box=None, header_style="bold", pad_edge=False)
    for field in entry.parameters:
        values = f"{field.type}{', ' if field.range else ''}{field.range}"
        default = field.default if field.default == "required" else f"default {field.default}"
        table.add_row(field.name, f"{values}; {default}\n{field.meaning}")
    out_console.print()
    out_console.print(table, soft_wrap=False)
