"""The command `tamperfuse evaluate`."""

from tamperfuse.cli.options import (
    ChatTemplate,
    Json,
    JudgeName,
    Model,
    Out,
    Reference,
    ThreatSource,
    out_console,
    print_json,
)
from tamperfuse.records.errors import quoted


def evaluate(
    model: Model,
    threat: ThreatSource,
    out: Out,
    reference: Reference = None,
    judge: JudgeName = "builtin",
    as_json: Json = False,
    chat_template: ChatTemplate = None,
) -> None:
    """Measure a model: harmful execution, benign answers, capability, benign NLL.

    Example: `tamperfuse evaluate hardened --threat builtin:cooking --out measured`
    """
    from tamperfuse.commands.evaluate import evaluate_model
    from tamperfuse.records.files import read_json
    from tamperfuse.study.spec import parse_judge

    lines = evaluate_model(
        model, threat, out, reference=reference, judge=parse_judge(judge), chat_template=chat_template
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
