"""A further judge on the responses of a finished run: what `tamperfuse judge run` does."""

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from tamperfuse.corpora.examples import PARTS
from tamperfuse.corpora.threats import Part, Threat, ThreatPrompt
from tamperfuse.evaluation.judges import Answer
from tamperfuse.evaluation.judges.failures import FAILURES
from tamperfuse.evaluation.judges.local_model import free_judge_model
from tamperfuse.models.encoder import default_encoder
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import LOCK, locked, write_text
from tamperfuse.records.reading import path_exists
from tamperfuse.records.results import write_results
from tamperfuse.records.run import STUDY, NodeRun, read_run, write_run
from tamperfuse.records.summary import Summary, read_summary, write_summary
from tamperfuse.study.context import StudyContext
from tamperfuse.study.further_judges import RESPONSES, SCORES, judge_nodes, response_folders, verdict_node
from tamperfuse.study.judging import Judging
from tamperfuse.study.node import FinishedNode, Node, execute
from tamperfuse.study.observe import HarmlessPrompt
from tamperfuse.study.recorded import RecordedRun, read_recorded
from tamperfuse.study.results.load import StudyMeasurements
from tamperfuse.study.results.rows import result_rows
from tamperfuse.study.results.summary import summarize_defenses
from tamperfuse.study.sections import JudgeSpec, named
from tamperfuse.study.spec import Study, load_study
from tamperfuse.study.tables import HARMLESS_PARTS, Response, VerdictRow, read_rows

log = logging.getLogger("tamperfuse")


@dataclass(frozen=True)
class JudgedRun:
    """What a further judge decided.

    Attributes:
        name: of the judge in the run.
        responses: number of responses, equal ones counted once.
        failures: number of verdicts without a decision, by kind.
        summary: of the run, with the measures under the judge.
    """

    name: str
    responses: int
    failures: dict[str, int]
    summary: Summary


def finished_study(run: Path) -> Study:
    """The resolved study of a finished run.

    Raises:
        UserError: the folder holds no finished run.
    """
    if not path_exists(run / STUDY):
        raise UserError(f"{run} holds no {STUDY}: name the folder of a finished run.")
    read_summary(run)
    return load_study(run / STUDY)


def judge_run(run: Path, judge: JudgeSpec, name: str = "", *, dry_run: bool = False) -> JudgedRun | None:
    """Judge the responses of a finished run once more, and add the measures to its summary. Nothing is trained or generated.

    Verdicts are nodes of the run, as those of a judge in the study's `judges`: an interrupted call resumes, and a second one
    reuses them.

    Args:
        run: the run's folder.
        judge: the judge with its parameters.
        name: under which its verdicts are stored; the judge's own where "".
        dry_run: log the number of responses and what judging them costs, and stop.

    Raises:
        UserError: no finished run, its responses are missing, the name cannot be used, or another judge has it.
    """
    finished_study(run)  # without one there is nothing to lock
    named({name or judge.judge: judge}, "--name")
    # What is read under the lock does not change before the results are written.
    with nullcontext() if dry_run else locked(run / LOCK, run):
        return _judge(run, judge, name or judge.judge, dry_run)


def _judge(run: Path, judge: JudgeSpec, name: str, dry_run: bool) -> JudgedRun | None:
    study = finished_study(run)
    if study.judges.get(name, judge) != judge:
        raise UserError(f"{run} has verdicts of another judge named {name!r}: choose another --name.")
    if name == study.judge.judge:
        raise UserError(f"{name} is the judge that decides in {run}: choose another judge, or another --name.")
    recorded = read_recorded(run, study.model_copy(update={"judges": {}}))
    judged_study = study.model_copy(update={"judges": {**study.judges, name: judge}})
    responses = _responses(recorded)
    judging, nodes = _nodes(run, judged_study, name, recorded, responses)
    distinct = list(dict.fromkeys(Answer(r.prompt, r.response) for r in responses))
    log.info("%d responses of %d model states, %d of them distinct", len(responses), len(nodes), len(distinct))
    if judging.traits.estimate:
        log.info("%s", judging.traits.estimate(distinct, judging.parameters))
    if dry_run:
        return None
    judging.check()
    done = []
    for number, node in enumerate(nodes, 1):
        log.info("[%d/%d] %s", number, len(nodes), node.label)
        done.append(execute(run, node))
    free_judge_model()
    summary = _add(run, judged_study, name, done)
    counts = Counter(row.reason for node in done for row in _verdicts(node) if row.reason in FAILURES)
    return JudgedRun(name, len(distinct), dict(counts), summary)


def _responses(recorded: RecordedRun) -> list[Response]:
    folders = [folder for node in recorded.observed for folder in response_folders(node.folder)]
    return [response for folder in folders for response in read_rows(folder / RESPONSES, Response)]


def _verdicts(done: FinishedNode) -> list[VerdictRow]:
    return [row for path in sorted(done.folder.rglob(SCORES)) for row in read_rows(path, VerdictRow)]


def _nodes(
    run: Path, study: Study, name: str, recorded: RecordedRun, responses: Sequence[Response]
) -> tuple[Judging, list[Node]]:
    """The judge and its nodes. Only a judge with thresholds, or with a reference model, needs the study's model and data."""
    observed = [done.node for done in recorded.observed]
    judging = _without_model(study, name, responses)
    if judging.traits.calibrate or judging.traits.needs_reference:
        context = StudyContext.open(study, run)
        return context.further_judging(name), judge_nodes(context, name, observed, recorded.answers)
    return judging, [verdict_node(judging, run, node, "", study.evaluate) for node in observed]


def _without_model(study: Study, name: str, responses: Sequence[Response]) -> Judging:
    """The judge, with the prompts of the responses in place of the threat's."""
    parts: dict[Part, tuple[ThreatPrompt, ...]] = {
        part: tuple({r.id: ThreatPrompt(r.id, r.prompt) for r in responses if r.part == part}.values())
        for part in PARTS
    }
    harmless = {r.id: HarmlessPrompt(r.id, r.prompt, r.part) for r in responses if r.part in HARMLESS_PARTS}
    threat, tokens = Threat(study.threat, parts), study.evaluate.response_tokens
    return Judging(study.judges[name], threat, list(harmless.values()), tokens, default_encoder(), _no_reference, name)


def _no_reference() -> LoadedModel:
    raise AssertionError("the judge needs no reference model")


def _add(run: Path, study: Study, name: str, done: Sequence[FinishedNode]) -> Summary:
    """Write that the run has one more judge: into its record, its study, its results and its summary, in this order."""
    record = read_run(run)
    new = {
        node.node.label: NodeRun(
            key=node.node.key, what=node.node.label, seconds=node.record["seconds"], reused=node.reused
        )
        for node in done
    }
    nodes = [node for node in record.nodes if node.what not in new]
    recorded_keys = {node.key for node in record.nodes}
    added = [node.record for node in done if node.node.key not in recorded_keys]
    costs = {
        name: getattr(record, name) + sum(node[name] for node in added)
        for name in ("seconds", "tokens_generated", "tokens_scored")
    }
    write_run(run, record.model_copy(update={"nodes": [*nodes, *new.values()], **costs}))
    write_text(run / STUDY, study.to_yaml())
    recorded = read_recorded(run, study)
    measured = StudyMeasurements.from_nodes(study, [*recorded.observed, *recorded.judged, *recorded.further])
    write_results(run, result_rows(measured))
    summary = read_summary(run)
    judges = {**summary.judges, name: summarize_defenses(measured.further[name], study.judges[name])}
    summary = summary.model_copy(update={"judges": judges})
    write_summary(run, summary)
    return summary
