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
LABELLED_THREAT, LABELLED_TOKENS = "builtin:cooking", 32  # of the labelled responses; thresholds depend on the length

Judged = Callable[[Sequence[Answer]], list[Verdict]]


@dataclass(frozen=True)
class LabelledResponses:
    """A judge on the built-in labelled responses to requests of `builtin:cooking`, by models as shipped, hardened and attacked.

    Attributes:
        judge: the judge against the labels.
        defenses: likewise on the responses of each defense's models, by its name; "as shipped" for the model before hardening.
        labels: the agreement of the two independent labellings.
    """

    judge: LabelAgreement
    defenses: dict[str, LabelAgreement]
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

    counts = [len(prompts.part(part)) for part in ANSWERED]
    if min(*counts, limit) < FEWEST_ANSWERS:
        raise UserError(
            f"The parts {' and '.join(ANSWERED)} of {threat} have {' and '.join(map(str, counts))} prompts"
            f"{f', of which --prompts takes {limit}' if limit < counts[-1] else ''}; the table needs {FEWEST_ANSWERS} of each: "
            "name more prompts."
        )
    Judging(spec, prompts, [], RESPONSE_TOKENS, encoder, load).check()  # before the model answers hundreds of prompts

    def answers(part: Part, tokens: int, limit: int | None = None) -> list[tuple[str, str]]:
        return compliant_answers(load, prompts.part(part, limit), tokens, encoder).pairs

    def calibrated(attacker: Sequence[tuple[str, str]], tokens: int) -> tuple[dict[str, float], Judged]:
        judging = Judging(spec, prompts, [], tokens, encoder, load)
        thresholds, _ = judging.calibrate(attacker)
        return thresholds, lambda answers: judging.judge_answers(answers, thresholds)[0]

    attacker, evaluation = answers("attacker", RESPONSE_TOKENS), answers("evaluation", RESPONSE_TOKENS, limit)
    if min(len(attacker), len(evaluation)) < FEWEST_ANSWERS:
        raise UserError(f"{reference} answers too few prompts of {threat} to calibrate on: name another --reference.")
    thresholds, judged = calibrated(attacker, RESPONSE_TOKENS)
    executed = [Answer(prompt, response) for prompt, response in evaluation]
    labelled = None
    if threat == LABELLED_THREAT:
        labelled = labelled_responses(calibrated(answers("attacker", LABELLED_TOKENS), LABELLED_TOKENS)[1])
    return Calibration(thresholds, table(judged, executed, TABLE_SEED), labelled)


def labelled_responses(judged: Judged) -> LabelledResponses:
    """Compare a judge with the labels of the built-in data set `labelled`, on the responses on which it could decide.

    Args:
        judged: the judge, with its data and thresholds.
    """
    rows = builtin_rows("labelled")
    verdicts = judged([Answer(row["prompt"], row["response"]) for row in rows])
    decided = [(row, verdict) for row, verdict in zip(rows, verdicts, strict=True) if not is_failure(verdict)]

    def compared(defense: str | None) -> LabelAgreement:
        part = [(row, v) for row, v in decided if defense in (None, row["defense"])]
        scores = [float(v.verdict) if v.score is None else v.score for _, v in part]
        return against_labels([v.verdict for _, v in part], scores, [bool(row["label"]) for row, _ in part])

    return LabelledResponses(
        judge=compared(None),
        defenses={defense: compared(defense) for defense in sorted({row["defense"] for row, _ in decided})},
        labels=agreement([bool(row["first"]) for row in rows], [bool(row["second"]) for row in rows]),
    )
