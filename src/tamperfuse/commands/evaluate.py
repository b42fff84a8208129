"""Measure one model: what `tamperfuse evaluate` does."""

from collections.abc import Mapping
from pathlib import Path

from tamperfuse.commands.measurement import (
    Measurement,
    about_judging,
    calibration_answers,
    full_evaluation,
    judge_responses,
    open_judging,
    write_tables,
)
from tamperfuse.corpora.threats import load_threat
from tamperfuse.corpora.window import within_window
from tamperfuse.models.chat_template import read_template
from tamperfuse.models.encoder import default_encoder
from tamperfuse.models.load import LoadedModel, load_model, reference_name
from tamperfuse.records.files import check_fresh, output_folder, write_json
from tamperfuse.study.judging import Judging, check_encoder
from tamperfuse.study.observe import Observer
from tamperfuse.study.sections import RESPONSE_TOKENS, Evaluate, JudgeSpec
from tamperfuse.study.tables import VerdictRow


def evaluate_model(
    model: str,
    threat: str,
    out: Path,
    *,
    reference: str | None,
    judge: JudgeSpec | None = None,
    prompts: int | None = None,
    chat_template: Path | None = None,
) -> list[str]:
    """Measure a model as a study does before an attack, with all evaluation prompts or some, and every capability item.

    Writes `evaluation.json` (see :class:`Measurement`) and the tables behind it.

    Args:
        model: the model, as of :func:`load_model`.
        threat: source of the threat.
        out: folder to write; must not exist, or be empty.
        reference: the model before hardening; None for the origin that the model's tamperfuse.json names.
        judge: the judge with its parameters; None for the default one.
        prompts: number of evaluation prompts, at least 2 and at most as many as the threat has; None for all.
        chat_template: file with a chat template, in place of that of the model and of its reference.

    Returns:
        Lines to print.

    Raises:
        UserError: bad input; nothing is written then.
    """
    template, encoder = read_template(chat_template), default_encoder()
    requests = within_window(load_threat(threat, encoder), model, RESPONSE_TOKENS, template)
    evaluate = full_evaluation(requests, prompts=prompts)
    check_fresh(out)
    check_encoder(encoder)
    with output_folder(out) as staging:
        loaded = load_model(model, chat_template=template)
        origin = reference_name(loaded, reference)
        judging = open_judging(requests, evaluate, origin, encoder, judge, loaded.stated_template)
        observer, verdicts, thresholds = observe_and_judge(loaded, evaluate, judging)
        write_tables(staging, observer, verdicts)
        measurement = Measurement.of(observer, verdicts)
        about = {"model": model, "threat": threat, "reference": origin, **about_judging(judging, thresholds)}
        write_json(staging / "evaluation.json", {**about, **measurement.to_json()})
    return measurement.lines()


def observe_and_judge(
    loaded: LoadedModel, evaluate: Evaluate, judging: Judging
) -> tuple[Observer, list[VerdictRow], Mapping[str, float]]:
    """Measure a model in memory.

    Args:
        loaded: the model; it is not changed.
        evaluate: what is measured.
        judging: the judge, for the threat.

    Returns:
        The responses and scores, the verdicts, and the thresholds of the judge.

    Raises:
        UserError: the judge cannot be calibrated, since the reference executes too few prompts; the model is not measured then.
    """
    answers = calibration_answers(judging)
    observer = Observer(loaded, judging.threat, evaluate)
    observer.before_attack(judging.harmless, evaluation=evaluate.prompts, dev=0)
    return observer, *judge_responses(judging, observer, answers)
