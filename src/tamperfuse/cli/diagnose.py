"""The command `tamperfuse diagnose`."""

from typing import Annotated

import typer

from tamperfuse.cli.options import (
    ChatTemplate,
    Out,
    Reference,
    Seed,
    Settings,
    ThreatSource,
    out_console,
    parse_settings,
)


def diagnose(
    models: Annotated[
        list[str], typer.Argument(help="Models to compare, each as in `tamperfuse harden`.", metavar="MODEL...")
    ],
    threat: ThreatSource,
    out: Out,
    attack: Annotated[
        str, typer.Option(help="An attack that trains (see `tamperfuse list`).", metavar="NAME")
    ] = "harmful_finetune",
    reference: Reference = None,
    retain: Annotated[
        str, typer.Option(help="The attacker's harmless samples, for attacks that use them.", metavar="SRC")
    ] = "builtin:retain",
    items: Annotated[
        int, typer.Option(help="Items of each capability task, before and after the attack; 0 to skip.", min=0)
    ] = 200,
    settings: Settings = None,
    seed: Seed = 0,
    chat_template: ChatTemplate = None,
) -> None:
    """Follow an attack step by step: does it make a model's own answers, and benign text with them, less likely, as SDD assumes?

    Example: `tamperfuse diagnose undefended hardened --threat builtin:cooking --out diagnosis`
    """
    from tamperfuse.commands.diagnose import diagnose_models
    from tamperfuse.report.diagnosis import answer, finding, time_spent, write_diagnosis

    diagnoses = diagnose_models(
        models,
        attack,
        threat,
        out,
        reference=reference,
        retain=retain,
        settings=parse_settings(settings),
        items=items,
        seed=seed,
        chat_template=chat_template,
    )
    page = write_diagnosis(out, diagnoses)
    for diagnosis in diagnoses:
        out_console.print(answer(diagnosis), style="bold")
        out_console.print(finding(diagnosis))
        out_console.print(time_spent(diagnosis))
    out_console.print(f"Every step is in {out / 'measured.json'}; open {page} in a browser.")
