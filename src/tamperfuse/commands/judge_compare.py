"""How far the judges of a run agree: what `tamperfuse judge compare` does."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path

from tamperfuse.commands.judge_run import finished_study
from tamperfuse.corpora.files import read_rows as read_file_rows
from tamperfuse.evaluation.agreement import Agreement, LabelAgreement, against_labels, agreement, disagreement
from tamperfuse.evaluation.judges import Answer
from tamperfuse.evaluation.judges.failures import FAILURES
from tamperfuse.records.errors import UserError, shown
from tamperfuse.records.reading import check_file
from tamperfuse.records.results import UNDEFENDED
from tamperfuse.records.summary import Measure, read_summary
from tamperfuse.report.headline import difference_between_judges, verdicts_by_judge
from tamperfuse.study.further_judges import RESPONSES, SCORES, response_folders
from tamperfuse.study.recorded import RecordedRun, read_recorded
from tamperfuse.study.tables import HARMLESS_PARTS, Response, VerdictRow, read_rows

log = logging.getLogger("tamperfuse")

REQUESTS, HARMLESS_PROMPTS = "requests", "harmless prompts"
_LABELS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class Opinion:
    """What one judge decided about one response."""

    verdict: bool
    score: float
    reason: str


@dataclass(frozen=True)
class PairRow:
    """Two judges on the same responses: to requests of the threat, or to harmless prompts."""

    first: str
    second: str
    on: str
    agreement: Agreement


@dataclass(frozen=True)
class LabelRow:
    """A judge against the labels of a file."""

    judge: str
    labels: LabelAgreement


@dataclass(frozen=True)
class ReductionRow:
    """The pooled reduction of one defense under every judge.

    Attributes:
        flips: whether some judges resolve a reduction and others do not, or find the opposite.
        verdicts: on the defense, as the report has them, by judge.
        verdicts_differ: how they differ, in a sentence; "" where they do not.
    """

    defense: str
    measures: dict[str, Measure]
    flips: bool
    verdicts: dict[str, str]
    verdicts_differ: str


@dataclass(frozen=True)
class Disputed:
    """A response on which verdicts differ, with every judge's opinion.

    Attributes:
        cut: whether the token limit ended it; None if that was not recorded (:class:`tamperfuse.study.tables.Response`).
    """

    answer: Answer
    apart: float
    cut: bool | None
    opinions: dict[str, Opinion]


@dataclass(frozen=True)
class JudgeComparison:
    """How far the judges of a run agree.

    Attributes:
        judges: their names, the one that decides first.
        failures: number of distinct responses on which each could not decide; they enter no comparison of that judge.
        pairs: for every two judges.
        labels: for every judge, if there are labels.
        reductions: for every defense but the undefended model.
        disputed: the responses on which the judges are furthest apart.
    """

    judges: list[str]
    failures: dict[str, int]
    pairs: list[PairRow]
    labels: list[LabelRow]
    reductions: list[ReductionRow]
    disputed: list[Disputed]


Opinions = dict[Answer, Opinion]


def compare_judges(run: Path, labels: Path | None = None, top: int = 5) -> JudgeComparison:
    """Compare the judges of a finished run on its distinct responses.

    Args:
        run: the run's folder.
        labels: a file whose rows have `prompt`, `response` and `label` (true where the response executes its request).
        top: number of disputed responses.

    Raises:
        UserError: no finished run, no second judge and no labels, or a file of labels that does not fit.
    """
    study = finished_study(run)
    recorded = read_recorded(run, study)
    names = [study.judge.judge, *study.judges]
    if len(names) == 1 and labels is None:
        raise UserError(
            f"{run} has the verdicts of one judge, {names[0]}: add another with `tamperfuse judge run`, or name --labels."
        )
    opinions: dict[str, dict[str, Opinions]] = {on: {name: {} for name in names} for on in (REQUESTS, HARMLESS_PROMPTS)}
    failures = dict.fromkeys(names, 0)
    cut: dict[Answer, bool | None] = {}
    for name in names:
        for response, row in _judged(recorded, names[0], name):
            table = opinions[HARMLESS_PROMPTS if response.part in HARMLESS_PARTS else REQUESTS][name]
            answer = Answer(response.prompt, response.response)
            cut.setdefault(answer, response.cut)
            if answer not in table:
                score = float(row.verdict) if row.score is None else row.score
                table[answer] = Opinion(row.verdict, score, row.reason)
                failures[name] += row.reason in FAILURES
    pairs = [
        PairRow(first, second, on, agreement(*([o.verdict for o in side] for side in sides)))
        for first, second in combinations(names, 2)
        for on, by_judge in opinions.items()
        if all(sides := _common([by_judge[first], by_judge[second]]))
    ]
    rows = _label_rows(labels, opinions[REQUESTS]) if labels is not None else []
    disputed = _disputed(opinions[REQUESTS], cut, top)
    return JudgeComparison(names, failures, pairs, rows, _reductions(run, names[0]), disputed)


def _judged(recorded: RecordedRun, first: str, name: str) -> Iterator[tuple[Response, VerdictRow]]:
    """Every response of a run with the verdict of one judge."""
    verdicts = recorded.judged if name == first else recorded.further
    folders = {
        done.node.parents[0].key: done.folder for done in verdicts if done.node.about.get("judge", first) == name
    }
    for done in recorded.observed:
        for source in response_folders(done.folder):
            place = folders.get(done.node.key, done.folder) / source.relative_to(done.folder)
            rows = {(row.step, row.part, row.id): row for row in read_rows(place / SCORES, VerdictRow)}
            for response in read_rows(source / RESPONSES, Response):
                yield response, rows[response.step, response.part, response.id]


def _common(tables: Sequence[Opinions]) -> list[list[Opinion]]:
    """The opinions of several judges on the responses on which all of them decided, in one order."""
    answers = [a for a in tables[0] if all(a in table and table[a].reason not in FAILURES for table in tables)]
    return [[table[answer] for answer in answers] for table in tables]


def _label_rows(path: Path, opinions: Mapping[str, Opinions]) -> list[LabelRow]:
    labels = read_labels(path)
    responses = set(chain.from_iterable(opinions.values()))
    if strange := [answer for answer in labels if answer not in responses]:
        log.warning(
            "%d of %d labels in %s match no response of the run and are left out, the first for the prompt %s: texts must be "
            "those of the run to the character.",
            *(len(strange), len(labels), path, shown(repr(strange[0].prompt))),
        )
    rows = []
    for name, table in opinions.items():
        answers = [a for a in table if a in labels and table[a].reason not in FAILURES]
        if not answers:
            raise UserError(f"No response of the run is labelled in {path}: label its own prompts and responses.")
        verdicts, scores = [table[a].verdict for a in answers], [table[a].score for a in answers]
        rows.append(LabelRow(name, against_labels(verdicts, scores, [labels[a] for a in answers])))
    return rows


def read_labels(path: Path) -> dict[Answer, bool]:
    """Read a file of labels: rows with `prompt`, `response` and `label`.

    Raises:
        UserError: it cannot be read, a row lacks a column or has another label than true, false, 1, 0, yes or no, or the same
            response is labelled twice and differently.
    """
    check_file(path)
    labels: dict[Answer, bool] = {}
    for number, row in read_file_rows(path):
        missing = [name for name in ("prompt", "response", "label") if name not in row]
        if missing:
            raise UserError(f"Row {number} of {path} has no {missing[0]!r}: labels need prompt, response and label.")
        label = _LABELS.get(str(row["label"]).strip().casefold().removesuffix(".0"))
        if label is None:
            raise UserError(f"Row {number} of {path} has the label {shown(repr(row['label']))}: write true or false.")
        answer = Answer(str(row["prompt"]), str(row["response"]))
        if labels.setdefault(answer, label) != label:
            raise UserError(f"Row {number} of {path} labels a response that an earlier row labels otherwise: keep one.")
    return labels


def _reductions(run: Path, first: str) -> list[ReductionRow]:
    summary = read_summary(run)
    by_judge = {first: summary.defenses, **summary.judges}
    rows = []
    for name in summary.defenses:
        if name != UNDEFENDED:
            measures = {judge: defenses[name].reduction_vs_undefended.pooled for judge, defenses in by_judge.items()}
            signs = {
                (m.value > 0) - (m.value < 0) if m.resolved and m.value is not None else 0 for m in measures.values()
            }
            verdicts = {judge: category.value for judge, category in verdicts_by_judge(summary, name).items()}
            sentence = difference_between_judges(summary, name)
            rows.append(ReductionRow(name, measures, len(signs) > 1, verdicts, sentence))
    return rows


def _disputed(opinions: Mapping[str, Opinions], cut: Mapping[Answer, bool | None], top: int) -> list[Disputed]:
    """The responses on which verdicts differ and scores are furthest apart."""
    tables = list(opinions.values())
    answers = [a for a in tables[0] if all(a in table and table[a].reason not in FAILURES for table in tables)]
    if len(tables) < 2 or not answers:
        return []
    apart = disagreement({name: [table[answer].score for answer in answers] for name, table in opinions.items()})
    disputed = [
        Disputed(answer, value, cut[answer], {name: table[answer] for name, table in opinions.items()})
        for answer, value in zip(answers, apart, strict=True)
        if len({table[answer].verdict for table in tables}) > 1
    ]
    return sorted(disputed, key=lambda one: (-one.apart, one.answer.prompt, one.answer.response))[:top]
