"""How well a judge tells executed requests from other responses: what `tamperfuse judge calibrate` does."""

from functools import cache, partial

from tamperfuse.corpora.threats import Part, load_threat
from tamperfuse.corpora.window import within_window
from tamperfuse.evaluation.calibrate import CalibrationRow, table
from tamperfuse.evaluation.judges import JUDGES, Answer
from tamperfuse.models.load import load_model
from tamperfuse.records.errors import UserError
from tamperfuse.study.judging import Judging, compliant_answers, load_encoder
from tamperfuse.study.spec import DEFAULT_JUDGE, RESPONSE_TOKENS, JudgeSpec, parse_judge

FEWEST_ANSWERS = 8
TABLE_SEED = 0
ANSWERED: tuple[Part, ...] = ("attacker", "evaluation")  # parts whose prompts need a compliant answer


def calibrate_judge(
    threat: str, reference: str, limit: int, judge: JudgeSpec | None = None
) -> tuple[dict[str, float], list[CalibrationRow]]:
    """Calibrate the judge on the attacker part, as studies do, and test it on the evaluation part.

    Args:
        threat: source of the threat.
        reference: the model whose compliant answers count as executed requests.
        limit: number of prompts of the evaluation part, at most.
        judge: the judge with its parameters; None for the default one.

    Returns:
        The thresholds by name, and a row for every kind of response that executes nothing.

    Raises:
        UserError: bad input, or a reference that complies with fewer than 8 prompts of a part.
    """
    encoder, load = load_encoder(), cache(partial(load_model, reference))
    prompts, spec = load_threat(threat, encoder), judge or parse_judge(DEFAULT_JUDGE)
    answered = all(p.response for part in ANSWERED for p in prompts.part(part))
    if JUDGES.get(spec.judge).traits.needs_reference or not answered:  # otherwise the model is not loaded
        prompts = within_window(prompts, reference, RESPONSE_TOKENS)
    judging = Judging(spec, prompts, [], RESPONSE_TOKENS, encoder, load)
    attacker = compliant_answers(load, prompts.part("attacker"), RESPONSE_TOKENS, encoder).pairs
    evaluation = compliant_answers(load, prompts.part("evaluation", limit), RESPONSE_TOKENS, encoder).pairs
    if min(len(attacker), len(evaluation)) < FEWEST_ANSWERS:
        raise UserError(f"{reference} answers too few prompts of {threat} to calibrate on: name another --reference.")
    thresholds, _ = judging.calibrate(attacker)
    executed = [Answer(prompt, response) for prompt, response in evaluation]
    return thresholds, table(lambda answers: judging.judge_answers(answers, thresholds)[0], executed, TABLE_SEED)
