"""What `evaluate` and `attack` measure of one model: prompts, judge, measures with intervals, and the lines that are printed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from tamperfuse.corpora.threats import Threat
from tamperfuse.models.encoder import TextEncoder
from tamperfuse.models.load import load_model, resolve_model
from tamperfuse.records.errors import UserError
from tamperfuse.records.summary import Measure
from tamperfuse.study.judging import Judging, compliant_answers
from tamperfuse.study.observe import Observer, harmless_prompts
from tamperfuse.study.results.intervals import per_token, rate
from tamperfuse.study.results.undecided import judged_rate
from tamperfuse.study.sections import DEFAULT_JUDGE, Evaluate, JudgeSpec, parse_judge
from tamperfuse.study.tables import HARMLESS_NEAR, HARMLESS_PARTS, VerdictRow, write_rows

ACCURACY = "accuracy/"  # followed by the task


def full_evaluation(threat: Threat, **sizes: int | None) -> Evaluate:
    """A study's defaults with every evaluation prompt and every capability item.

    Args:
        threat: whose prompts are counted.
        **sizes: fields of :class:`Evaluate` that replace these; those that are None are ignored.

    Raises:
        UserError: a size is out of range, or larger than the number of evaluation prompts.
    """
    available = len(threat.part("evaluation"))
    stated = {name: size for name, size in sizes.items() if size is not None}
    dev = min(Evaluate().dev_prompts, len(threat.part("attacker_dev")))
    values = {"prompts": available, "dev_prompts": dev, "capability_items": "all", **stated}
    try:
        evaluate = Evaluate.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{first['loc'][0]} = {first['input']!r} cannot be used ({first['msg']}): correct it."
        ) from error
    if evaluate.prompts > available:
        raise UserError(
            f"{evaluate.prompts} prompts cannot be measured, since the evaluation part of {threat.source} has {available}: "
            "lower `prompts`, or add prompts to that part."
        )
    return evaluate


def open_judging(
    threat: Threat,
    evaluate: Evaluate,
    reference: str,
    encoder: TextEncoder,
    judge: JudgeSpec | None,
    chat_template: str = "",
    *,
    sharded: bool = False,
) -> Judging:
    """The judge of a single command.

    Args:
        threat: whose requests are judged.
        evaluate: how many harmless prompts there are, and how long responses may be.
        reference: the model before hardening; loaded once, when the judge first needs it.
        encoder: the sentence encoder.
        judge: the judge with its parameters; None for the default one.
        chat_template: of the reference, as of :func:`load_model`.
        sharded: whether the reference is loaded in shards.

    Raises:
        UserError: the judge cannot be used, or the reference does not exist.
    """
    resolve_model(reference)  # also where the judge never loads it
    harmless = harmless_prompts(evaluate.harmless, threat, encoder)
    load = cache(partial(load_model, reference, chat_template=chat_template, sharded=sharded))
    spec = judge or parse_judge(DEFAULT_JUDGE)
    judging = Judging(spec, threat, harmless, evaluate.response_tokens, encoder, load)
    judging.check()
    return judging


@dataclass(frozen=True)
class Measurement:
    """The measures of one model, by name and step.

    Attributes:
        measures: by name, then by step (0 is before an attack): `harmful_execution`, `refusal_rate` (if the judge detects
            refusals), `benign_answer_rate`, `benign_answer_rate_near`, `accuracy/TASK` and `benign_nll` (nats a token).
        chance: accuracy by guessing, by task; 0 where it is unknown.
    """

    measures: dict[str, dict[int, Measure]]
    chance: dict[str, float]

    @classmethod
    def of(cls, observer: Observer, verdicts: Sequence[VerdictRow]) -> "Measurement":
        """Compute the measures from responses, verdicts and scores of a model."""
        measures: dict[str, dict[int, Measure]] = {}
        for step in sorted({row.step for row in verdicts}):
            rows = [row for row in verdicts if row.step == step]
            requests = [row for row in rows if row.part == "evaluation"]
            refusals = [row.refuses for row in requests if row.refuses is not None]
            rates = {
                "harmful_execution": judged_rate(requests),
                "refusal_rate": rate(np.array(refusals, dtype=np.float64)),
                "benign_answer_rate": judged_rate([row for row in rows if row.part in HARMLESS_PARTS]),
                "benign_answer_rate_near": judged_rate([row for row in rows if row.part == HARMLESS_NEAR]),
            }
            for name, measure in rates.items():
                if measure.n:
                    measures.setdefault(name, {})[step] = measure
        chance: dict[str, float] = {}
        for task, step in sorted({(item.task, item.step) for item in observer.items}):
            items = [item for item in observer.items if (item.task, item.step) == (task, step)]
            correct = np.array([item.correct for item in items], dtype=np.float64)
            measures.setdefault(f"{ACCURACY}{task}", {})[step] = rate(correct)
            chance[task] = float(np.mean([item.chance for item in items]))
        for step in sorted({document.step for document in observer.documents}):
            sums = [(document.nll, document.tokens) for document in observer.documents if document.step == step]
            measures.setdefault("benign_nll", {})[step] = per_token(np.array(sums, dtype=np.float64))
        return cls(measures, chance)

    def to_json(self) -> dict[str, Any]:
        """As `evaluation.json` and `attack.json` hold it."""
        measures = {
            name: {str(step): measure.as_row() for step, measure in steps.items()}
            for name, steps in self.measures.items()
        }
        return {"measures": measures, "chance": self.chance}

    def lines(self, *, trains: bool = True) -> list[str]:
        """The measures as lines to print.

        Args:
            trains: whether the attack has steps; those after an attack without any are printed as "after".
        """
        steps = sorted({step for by_step in self.measures.values() for step in by_step})
        after = "step {}: " if trains else "after: "
        return [line for step in steps for line in self._lines(step, after.format(step) if step else "before: ")]

    def _lines(self, step: int, place: str) -> list[str]:
        words: list[tuple[str, Callable[[Measure], str]]] = [
            ("harmful_execution", lambda m: f"{place}harmful execution {_share(m, 'prompts')}"),
            ("refusal_rate", lambda m: f"{place}refusals {_share(m, 'prompts')}"),
            ("benign_answer_rate", lambda m: f"{place}benign answers {_share(m, 'prompts')}"),
            ("benign_answer_rate_near", lambda m: f"{place}benign answers near the threat {_share(m, 'prompts')}"),
            *((f"{ACCURACY}{task}", partial(_accuracy, place, task, chance)) for task, chance in self.chance.items()),
            ("benign_nll", lambda m: f"{place}benign NLL {_number(m.value)} nats a token ({_interval(m)})"),
        ]
        return [text(self.measures[name][step]) for name, text in words if step in self.measures.get(name, {})]


def _accuracy(place: str, task: str, chance: float, measure: Measure) -> str:
    guessing = f"; {chance:.0%} by guessing" if chance else ""
    return f"{place}{task} {_share(measure, 'items right' + guessing)}"


def _share(measure: Measure, unit: str) -> str:
    return f"{_number(measure.value, '.1%')} ({_interval(measure, '.1%')}, {measure.n} {unit})"


def _interval(measure: Measure, form: str = ".3f") -> str:
    if measure.low is None and measure.high is None:
        return "no interval"
    return f"{_number(measure.low, form)} to {_number(measure.high, form)}"


def _number(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else format(value, form)


def judge_responses(
    judging: Judging, observer: Observer, answers: Sequence[tuple[str, str]]
) -> tuple[list[VerdictRow], Mapping[str, float]]:
    """Calibrate the judge and judge the responses.

    Args:
        judging: the judge.
        observer: holds the responses.
        answers: (attacker prompt, compliant answer) to calibrate on; not used by a judge without thresholds.

    Returns:
        The verdicts and the thresholds.
    """
    thresholds, _ = judging.calibrate(answers)
    verdicts, _ = judging.verdicts(observer.responses, thresholds)
    return verdicts, thresholds


def write_tables(folder: Path, observer: Observer, verdicts: Sequence[VerdictRow]) -> None:
    """Write responses, capability items and held-out documents, and the verdicts as `scores.parquet`."""
    observer.write(folder)
    write_rows(folder / "scores.parquet", VerdictRow, verdicts)


def about_judging(judging: Judging, thresholds: Mapping[str, float]) -> dict[str, Any]:
    """The judge, its thresholds and the longest response, for `evaluation.json` and `attack.json`."""
    return {
        "judge": {"judge": judging.judge.judge, **judging.judge.parameters},
        "thresholds": dict(thresholds),
        "response_tokens": judging.response_tokens,
    }


def calibration_answers(judging: Judging) -> list[tuple[str, str]]:
    """Compliant answers to the attacker's prompts, which the judge is calibrated on; none for a judge without thresholds.

    Raises:
        UserError: fewer than two prompts have one.
    """
    if judging.traits.calibrate is None:
        return []
    prompts = judging.threat.part("attacker")
    return compliant_answers(judging.reference, prompts, judging.response_tokens, judging.encoder).pairs
