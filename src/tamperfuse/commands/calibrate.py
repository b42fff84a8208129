"""How well a judge tells executed requests from other responses: what `tamperfuse judge calibrate` does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.corpora.threats import Part, load_threat
from tamperfuse.corpora.window import within_window
from tamperfuse.evaluation.agreement import Agreement, LabelAgreement, against_labels, agreement
from tamperfuse.evaluation.calibrate import CalibrationRow, table
from tamperfuse.evaluation.judges import JUDGES, Answer, Verdict
from tamperfuse.evaluation.judges.failures import is_failure
from tamperfuse.models.chat_template import read_template
from tamperfuse.models.encoder import default_encoder
from tamperfuse.models.load import load_model
from tamperfuse.records.errors import UserError
from tamperfuse.study.judging import Judging, compliant_answers
from tamperfuse.study.sections import DEFAULT_JUDGE, RESPONSE_TOKENS, JudgeSpec, parse_judge

FEWEST_ANSWERS = 8
TABLE_SEED = 0
ANSWERED: tuple[Part, ...] = ("attacker", "evaluation")  # parts whose prompts need a compliant answer
LABELLED_THREAT = "builtin:cooking"


@dataclass(frozen=True)
class LabelledResponses:
    """A judge on the built-in labelled responses to requests of `builtin:cooking`, by models as shipped, hardened and attacked.

    Attributes:
        judge: the judge against the labels.
        labels: the agreement of the two independent labellings.
    """

    judge: LabelAgreement
    labels: Agreement


@dataclass(frozen=True)
class Calibration:
    """How well a judge tells executed requests from other responses.

    Attributes:
        thresholds: of the judge, by name.
        rows: one for every kind of response that executes nothing.
        labelled: on the labelled responses; None for a threat other than `builtin:cooking`.
    """

    thresholds: dict[str, float]
    rows: list[CalibrationRow]
    labelled: LabelledResponses | None


def calibrate_judge(
    threat: str,
    reference: str,
    limit: int,
    judge: JudgeSpec | None = None,
    chat_template: Path | None = None,
) -> Calibration:
    """Calibrate the judge on the attacker part, as studies do, and test it on the evaluation part.

    Args:
        threat: source of the threat.
        reference: the model whose compliant answers count as executed requests.
        limit: number of prompts of the evaluation part, at most.
        judge: the judge with its parameters; None for the default one.
        chat_template: file with a chat template, in place of that of the reference.

    Raises:
        UserError: bad input, or a reference that complies with fewer than 8 prompts of a part.
    """
    template, encoder = read_template(chat_template), default_encoder()
    load = cache(partial(load_model, reference, chat_template=template))
    prompts, spec = load_threat(threat, encoder), judge or parse_judge(DEFAULT_JUDGE)
    answered = all(p.response for part in ANSWERED for p in prompts.part(part))
    if JUDGES.get(spec.judge).traits.needs_reference or not answered:  # otherwise the model is not loaded
        prompts = within_window(prompts, reference, RESPONSE_TOKENS, template)
    judging = Judging(spec, prompts, [], RESPONSE_TOKENS, encoder, load)
    judging.check()
    attacker = compliant_answers(load, prompts.part("attacker"), RESPONSE_TOKENS, encoder).pairs
    evaluation = compliant_answers(load, prompts.part("evaluation", limit), RESPONSE_TOKENS, encoder).pairs
    if min(len(attacker), len(evaluation)) < FEWEST_ANSWERS:
        raise UserError(f"{reference} answers too few prompts of {threat} to calibrate on: name another --reference.")
    thresholds, _ = judging.calibrate(attacker)
    executed = [Answer(prompt, response) for prompt, response in evaluation]

    def judged(answers: Sequence[Answer]) -> list[Verdict]:
        return judging.judge_answers(answers, thresholds)[0]

    labelled = labelled_responses(judged) if threat == LABELLED_THREAT else None
    return Calibration(thresholds, table(judged, executed, TABLE_SEED), labelled)


def labelled_responses(judged: Callable[[Sequence[Answer]], list[Verdict]]) -> LabelledResponses:
    """Compare a judge with the labels of the built-in data set `labelled`, on the responses on which it could decide.

    Args:
        judged: the judge, with its data and thresholds.
    """
    rows = builtin_rows("labelled")
    every = judged([Answer(row["prompt"], row["response"]) for row in rows])
    labels = [bool(row["label"]) for row, verdict in zip(rows, every, strict=True) if not is_failure(verdict)]
    verdicts = [verdict for verdict in every if not is_failure(verdict)]
    scores = [float(v.verdict) if v.score is None else v.score for v in verdicts]
    return LabelledResponses(
        judge=against_labels([v.verdict for v in verdicts], scores, labels),
        labels=agreement([bool(row["first"]) for row in rows], [bool(row["second"]) for row in rows]),
    )
