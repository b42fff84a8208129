"""Judging kept responses."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from tamperfuse.evaluation.judges.builtin import Answer, Thresholds
from tamperfuse.records.files import read_json
from tamperfuse.study.context import StudyContext
from tamperfuse.study.observe import HARMLESS, harmless_prompts
from tamperfuse.study.tables import Response, ScoreRow


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
