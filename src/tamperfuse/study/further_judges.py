"""The nodes of further judges: verdicts on responses that another judge has decided on already.

    attack, measure ──▶ further judge      scores.parquet
    search          ──▶ further judge      trial-NNN/scores.parquet

A further judge decides nothing: where attackers stop and what a search chooses are up to the study's `judge`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tamperfuse.study.context import StudyContext
from tamperfuse.study.data_nodes import calibration_node
from tamperfuse.study.estimates import Costs, judging_tokens
from tamperfuse.study.judging import Judging, read_thresholds
from tamperfuse.study.keys import judging_key
from tamperfuse.study.labels import judge_label
from tamperfuse.study.node import Node, Outcome, node_folder
from tamperfuse.study.results.undecided import undecided_note
from tamperfuse.study.search.trials import read_trials, trial_folder
from tamperfuse.study.sections import Evaluate
from tamperfuse.study.tables import Response, VerdictRow, read_rows, write_rows

FURTHER_JUDGE = "further judge"
OBSERVED = ("measure", "attack", "search")  # kinds of nodes that hold responses
SCORES, RESPONSES = "scores.parquet", "responses.parquet"


def further_judge_nodes(context: StudyContext, nodes: Sequence[Node], answers: Node) -> list[Node]:
    """The nodes of all further judges of a study.

    Args:
        context: of the study.
        nodes: all others.
        answers: the node of the compliant answers.
    """
    observed = [node for node in nodes if node.kind in OBSERVED]
    further: list[Node] = []
    for name in context.study.judges:
        further += judge_nodes(context, name, observed, answers)
    return further


def judge_nodes(context: StudyContext, name: str, observed: Sequence[Node], answers: Node) -> list[Node]:
    """The nodes of one further judge: its thresholds, if it has any, and its verdicts.

    Args:
        context: of the study.
        name: of the judge in the study.
        observed: nodes with responses.
        answers: the node of the compliant answers.
    """
    judging, evaluate = context.further_judging(name), context.study.evaluate
    calibration = [calibration_node(context, answers, name)] if judging.traits.calibrate else []
    nodes = [verdict_node(judging, context.run, node, context.fingerprint, evaluate, calibration) for node in observed]
    return [*calibration, *nodes]


def verdict_node(
    judging: Judging,
    run_folder: Path,
    observed: Node,
    fingerprint: str,
    evaluate: Evaluate,
    calibration: Sequence[Node] = (),
) -> Node:
    """The verdicts of a further judge on the responses of one node.

    Args:
        judging: the judge.
        run_folder: of the study.
        observed: the node with the responses.
        fingerprint: hash of the model before hardening; "" for a judge that does not need it.
        evaluate: of the study, for the estimate.
        calibration: the node of its thresholds, if it has any.
    """

    def run(folder: Path) -> Outcome:
        thresholds = read_thresholds(node_folder(run_folder, calibration[0])) if calibration else {}
        rows: list[VerdictRow] = []
        scored = 0
        for source in response_folders(node_folder(run_folder, observed)):
            place = folder / source.relative_to(node_folder(run_folder, observed))
            verdicts, tokens = _judge(judging, source, place, thresholds)
            rows, scored = rows + verdicts, scored + tokens
        return Outcome(Costs(scored=scored), undecided_note(rows))

    tokens = judging_tokens(observed.expected.generated, evaluate) if judging.traits.needs_reference else 0
    return Node(
        judge_label(observed, judging.name),
        FURTHER_JUDGE,
        (observed, *calibration),
        judging_key(judging, fingerprint),
        0,
        run,
        Costs(scored=tokens),
        {"judge": judging.name},
    )


def response_folders(folder: Path) -> Iterator[Path]:
    """The folders with responses in the folder of a node: its own, or that of each trial of a search."""
    if (folder / RESPONSES).exists():
        yield folder
    for trial in read_trials(folder):
        yield trial_folder(folder, trial.number)


def _judge(
    judging: Judging, source: Path, destination: Path, thresholds: Mapping[str, float]
) -> tuple[list[VerdictRow], int]:
    """Judge the responses in a folder, and return the verdicts and the tokens that were scored."""
    rows, scored = judging.verdicts(read_rows(source / RESPONSES, Response), thresholds)
    destination.mkdir(exist_ok=True)
    write_rows(destination / SCORES, VerdictRow, rows)
    return rows, scored
