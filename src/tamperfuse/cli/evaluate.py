"""The command `tamperfuse evaluate`."""

from tamperfuse.cli.options import (
    ChatTemplate,
    Json,
    JudgeName,
    JudgeSettings,
    Model,
    Out,
    Prompts,
    Reference,
    ThreatSource,
    out_console,
    parse_judge_settings,
    print_json,
)
from tamperfuse.records.errors import UserError, quoted


def evaluate(
    model: Model,
    threat: ThreatSource,
    out: Out,
    reference: Reference = None,
    judge: JudgeName = "builtin",
    settings: JudgeSettings = None,
    prompts: Prompts = None,
    as_json: Json = False,
    chat_template: ChatTemplate = None,
) -> None:
    """Measure a model: harmful execution, benign answers, capability, benign NLL.

    Example: `tamperfuse evaluate hardened --threat builtin:cooking --out measured`

    Example: `tamperfuse evaluate hardened --threat builtin:cooking --judge phrases --set judge.window=60 --out measured`
    """
    from tamperfuse.commands.evaluate import evaluate_model
    from tamperfuse.records.files import read_json

    spec, others = parse_judge_settings(judge, settings)
    if others:
        name = next(iter(others))
        raise UserError(
            f"--set {name}=…: --set of evaluate takes parameters of the judge only: write --set judge.{name}=…."
        )
    lines = evaluate_model(
        model, threat, out, reference=reference, judge=spec, prompts=prompts, chat_template=chat_template
    )
    if as_json:
        print_json(read_json(out / "evaluation.json"))
        return
    for line in lines:
        out_console.print(line)
    out_console.print(
        f"Responses and scores are in {out}; attack the model with: tamperfuse attack {quoted(model)} --attack "
        f"harmful_finetune --threat {quoted(threat)} --out DIR",
    )
