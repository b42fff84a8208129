"""What several kinds of nodes do: hand an attack its data, judge kept responses, say what they depend on and will cost."""

from collections.abc import Callable, Collection, Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from tamperfuse.attacks import AttackData
from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.evaluation.capability import BUILTIN_TASKS
from tamperfuse.evaluation.judges.builtin import Answer, Thresholds
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import content_hash, read_json
from tamperfuse.records.registry import Parameters
from tamperfuse.study.context import StudyContext
from tamperfuse.study.observe import HARMLESS, Observer, harmless_prompts, heldout_documents
from tamperfuse.study.tables import Response, ScoreRow, read_rows

PROMPT_TOKENS = 42  # of a prompt with its template, for estimates alone
OBSERVATION = 1  # version of what is measured; raise it when that changes


def attack_data(
    context: StudyContext, answers: Path, observer: Observer, at_steps: Collection[int], hook: Callable[[int], None]
) -> AttackData:
    """What an attack is handed, whatever its parameters.

    Args:
        context: the study's data.
        answers: folder of the answers before hardening.
        observer: of the model that is attacked.
        at_steps: steps to look at.
        hook: what looks.
    """
    return AttackData(
        harmful=[(row.prompt, row.response) for row in read_rows(answers / "responses.parquet", Response)],
        retain=[(example.prompt, example.response) for example in context.retain],
        reference=context.study.model,
        answer=observer.answer,
        response_limit=context.study.evaluate.response_tokens,
        at_steps=at_steps,
        hook=hook,
    )


def check_shots(context: StudyContext, attack: str, parameters: Parameters) -> None:
    """An attack asks for no more shots than there are prompts: said when the study is planned, not after the defenses trained.

    Raises:
        UserError: it does.
    """
    shots, prompts = int(getattr(parameters, "shots", 0)), len(context.threat.part("attacker"))
    if shots > prompts:
        raise UserError(
            f"The attack {attack} asks for {shots} shots; the attacker part of {context.study.threat} has {prompts} prompts: "
            "lower the number, or name a threat with more."
        )


def thresholds(answers: Path) -> Thresholds:
    """The judge's lines, as the answers before hardening set them."""
    return Thresholds.model_validate(read_json(answers / "thresholds.json"))


def judged(context: StudyContext, responses: Sequence[Response], answers: Path) -> tuple[list[ScoreRow], int]:
    """Verdicts on kept responses, and the tokens that the reference model scored for them."""
    lines = thresholds(answers)
    rows, scored = [], 0
    for harmless in (False, True):
        part = [r for r in responses if (r.part == HARMLESS) == harmless]
        judge = context.judge(lines, _judged_against(context, harmless))
        unique = list(dict.fromkeys(Answer(r.prompt, r.response) for r in part))
        verdicts = dict(zip(unique, judge.verdicts(unique), strict=True))
        scored += judge.tokens_scored
        rows += [ScoreRow.of(r, verdicts[Answer(r.prompt, r.response)]) for r in part]
    return rows, scored


def _judged_against(context: StudyContext, harmless: bool) -> list[str]:
    """The "other prompts" of the judge's likelihood ratio."""
    if harmless:
        return [row["prompt"] for row in harmless_prompts(context.study.evaluate.harmless, context.threat)]
    return [p.prompt for p in chain(context.threat.part("evaluation"), context.threat.part("attacker_dev"))]


def used(context: StudyContext, name: str) -> str:
    """Hash of what an attack says it uses: the samples to retain, or a built-in data set."""
    if name == "retain":
        return content_hash([(example.prompt, example.response) for example in context.retain])
    return content_hash(builtin_rows(name))


def observation(context: StudyContext) -> dict[str, Any]:
    """What the measurements of a model depend on, apart from the model."""
    evaluate = context.study.evaluate
    return {
        "observation": OBSERVATION,
        "threat": context.threat.fingerprint,
        "evaluate": evaluate.model_dump(mode="json", exclude={"at_steps", "capability_at", "epsilons"}),
        "harmless": content_hash(harmless_prompts(evaluate.harmless, context.threat)),
        "heldout": content_hash(heldout_documents(evaluate.heldout)),
        "tasks": [content_hash([builtin_rows(name) for name in BUILTIN_TASKS]), version("lm-eval")],
    }


def training_tokens(context: StudyContext, parameters: dict[str, Any], steps: int, batch: int) -> int:
    """Estimate of the tokens that a training with these parameters takes; `steps` and `batch` where a preset sets them."""
    if not parameters.keys() & {"steps", "batch"}:
        return 0  # an attack that does not train
    sample = PROMPT_TOKENS + context.study.evaluate.response_tokens
    return int((parameters.get("steps") or steps) * (parameters.get("batch") or batch) * sample)


def capability_tokens(context: StudyContext, *, documents: bool = True) -> int:
    """Estimate of the tokens that one look at capability scores, with or without the documents for benign NLL."""
    items = context.study.evaluate.capability_items or 2_000
    return items * 4 * 20 + items * 2 * 9 + (context.study.evaluate.heldout * 150 if documents else 0)
