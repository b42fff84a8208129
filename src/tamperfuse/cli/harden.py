"""The command `tamperfuse harden`."""

from pathlib import Path
from typing import Annotated

import typer

from tamperfuse.cli.options import (
    ChatTemplate,
    Model,
    Out,
    ReportTo,
    Seed,
    Settings,
    ThreatSource,
    out_console,
    parse_reporters,
    parse_settings,
)
from tamperfuse.records.errors import quoted


def harden(
    model: Model,
    defense: Annotated[str, typer.Option(help="refusal, sdd, fuse, … (see `tamperfuse list`).", metavar="NAME")],
    threat: ThreatSource,
    out: Out,
    pairs: Annotated[Path | None, typer.Option(help="Pairs that `tamperfuse pair` wrote.", metavar="DIR")] = None,
    benign: Annotated[
        list[str] | None,
        typer.Option(
            help="Harmless prompts, which the model answers before it is hardened: a source of prompts; `self`, for prompts that "
            "it writes itself; or `documents`, for longer texts. Repeat for several; by default `self` alone.",
            metavar="SRC",
            show_default=False,
        ),
    ] = None,
    settings: Settings = None,
    seed: Seed = 0,
    report_to: ReportTo = None,
    chat_template: ChatTemplate = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            help="Experimental: upload the result to this repository of the Hub, which is created private; a public one is "
            "refused. Checked before the training.",
            metavar="OWNER/NAME",
        ),
    ] = None,
) -> None:
    """Harden a model and save it as a checkpoint that transformers can load.

    Example: `tamperfuse harden smollm2-135m --defense refusal --threat builtin:cooking --out undefended`

    Example: `tamperfuse harden undefended --defense sdd --threat builtin:cooking --set steps=44 --out hardened`
    """
    from tamperfuse.commands.harden import harden_model

    harden_model(
        model,
        defense,
        threat,
        out,
        pairs=pairs,
        benign=benign or ["self"],
        settings=parse_settings(settings),
        seed=seed,
        report_to=parse_reporters(report_to),
        chat_template=chat_template,
        push_to_hub=push_to_hub,
    )
    out_console.print(
        f"The hardened model is in {out}; measure it with: tamperfuse evaluate {quoted(out)} --threat {quoted(threat)} "
        "--out DIR",
    )
