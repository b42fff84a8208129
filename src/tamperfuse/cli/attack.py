"""The command `tamperfuse attack`."""

from typing import Annotated

import typer

from tamperfuse.cli.options import (
    ChatTemplate,
    Json,
    JudgeName,
    Model,
    Out,
    Prompts,
    Reference,
    ReportTo,
    Seed,
    ThreatSource,
    out_console,
    parse_judge_settings,
    parse_reporters,
    print_json,
)


def attack(
    model: Model,
    attack: Annotated[
        str, typer.Option(help="harmful_finetune, benign_finetune, … (see `tamperfuse list`).", metavar="NAME")
    ],
    threat: ThreatSource,
    out: Out,
    reference: Reference = None,
    retain: Annotated[
        str, typer.Option(help="The attacker's harmless samples, for attacks that use them.", metavar="SRC")
    ] = "builtin:retain",
    keep_attacked: Annotated[
        bool, typer.Option("--keep-attacked", help="Keep the attacked weights; they are deleted by default.")
    ] = False,
    judge: JudgeName = "builtin",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A parameter of the attack as key=value, or of the judge as judge.key=value; repeat for several.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    prompts: Prompts = None,
    seed: Seed = 0,
    report_to: ReportTo = None,
    as_json: Json = False,
    chat_template: ChatTemplate = None,
) -> None:
    """Attack a model and measure it before and after.

    Example: `tamperfuse attack hardened --attack harmful_finetune --threat builtin:cooking --set shots=50 --out attacked`
    """
    from tamperfuse.commands.attack import attack_model
    from tamperfuse.records.files import read_json
    from tamperfuse.records.process import is_main

    spec, parameters = parse_judge_settings(judge, settings)
    lines = attack_model(
        model,
        attack,
        threat,
        out,
        reference=reference,
        retain=retain,
        keep=keep_attacked,
        settings=parameters,
        seed=seed,
        report_to=parse_reporters(report_to),
        judge=spec,
        prompts=prompts,
        chat_template=chat_template,
    )
    if as_json:
        if is_main():  # the only process that writes the file
            print_json(read_json(out / "attack.json"))
        return
    for line in lines:
        out_console.print(line)
    out_console.print(
        f"Responses and scores are in {out}; compare defenses under several attacks with: tamperfuse run STUDY.yaml "
        "--out DIR",
    )
