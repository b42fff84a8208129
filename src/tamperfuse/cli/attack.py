"""The command `tamperfuse attack`."""

from typing import Annotated

import typer

from tamperfuse.cli.options import (
    ChatTemplate,
    Json,
    JudgeName,
    Model,
    Out,
    Reference,
    ReportTo,
    Seed,
    Settings,
    ThreatSource,
    out_console,
    parse_reporters,
    parse_settings,
    print_json,
)


def attack(
    model: Model,
    attack: Annotated[str, typer.Option(help="harmful_finetune, benign_finetune, … (see `tamperfuse list`).")],
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
    settings: Settings = None,
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
    from tamperfuse.study.spec import parse_judge

    lines = attack_model(
        model,
        attack,
        threat,
        out,
        reference=reference,
        retain=retain,
        keep=keep_attacked,
        settings=parse_settings(settings),
        seed=seed,
        report_to=parse_reporters(report_to),
        judge=parse_judge(judge),
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
