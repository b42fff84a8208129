"""Every answer that a run keeps, with the verdicts on it, from the folders of its nodes.

    results.parquet ─▶ which node measured which model      nodes/<key>/responses.parquet   the answers
                                                            nodes/<key>/scores.parquet      a judge's verdicts on the answers of
                                                                                            its first parent
                                                            nodes/<key>/trial-NNN/          both, of a trial of a search, or
                                                                                            the verdicts of a further judge on it

Results that were copied without nodes have the few answers of samples.json.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tamperfuse.records.errors import UserError
from tamperfuse.records.files import NODE, NODES, read_json
from tamperfuse.records.reading import check_file, path_exists
from tamperfuse.report.inputs import Run

RESPONSES, SCORES, THRESHOLDS = "responses.parquet", "scores.parquet", "thresholds.json"
JUDGES = ("judge", "further judge")  # kinds of the nodes that hold verdicts
#: Columns of the tables of nodes that are read here, and have a value in every row.
COLUMNS_READ = {
    RESPONSES: ("step", "part", "id", "prompt", "response"),
    SCORES: ("step", "part", "id", "judge", "verdict", "reason", "evidence"),
}


@dataclass(frozen=True)
class ModelState:
    """A model at one step of one attack.

    Attributes:
        defense: as the study names it.
        attack: "" before any attack; "name#003" for a trial of a search.
        step: of the attack; 0 is before.
        seed: of both.
        limit: longest answer in tokens; 0 if unknown.
    """

    defense: str
    attack: str
    step: int
    seed: int
    limit: int = 0


@dataclass(frozen=True)
class JudgedAs:
    """What one judge said about one answer: its name, the verdict, the reasons against it, and what it rests on."""

    judge: str
    executed: bool
    reason: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class JudgedAnswer:
    """One answer of one model.

    Attributes:
        state: the model.
        part: of the threat that the prompt belongs to, or "harmless_near", "harmless_far".
        id: of the prompt.
        prompt: the request.
        response: the answer, unedited: untrusted text.
        verdicts: the run's own judge first; empty if nobody judged the answer.
        cut: whether the token limit ended the answer; None if that was not recorded.
    """

    state: ModelState
    part: str
    id: str
    prompt: str
    response: str
    verdicts: tuple[JudgedAs, ...] = ()
    cut: bool | None = None


@dataclass(frozen=True)
class RunAnswers:
    """All answers of a run.

    Attributes:
        answers: in the order of the run's models, attacks and steps.
        complete: false if the nodes are missing, so that these are the few answers of samples.json.
        limits: by judge, the limits of its criteria by name: parameters and calibrated thresholds.
    """

    answers: list[JudgedAnswer]
    complete: bool
    limits: dict[str, dict[str, float]] = field(default_factory=dict)


def read_answers(folder: Path, run: Run) -> RunAnswers:
    """Read every kept answer of a run.

    Args:
        folder: of the run.
        run: its other files.

    Raises:
        UserError: a file of a node is damaged.
    """
    nodes = folder / NODES
    if not path_exists(nodes):
        return RunAnswers(_from_samples(run), complete=False)
    keys = {node.key for node in run.record.nodes}  # the folder may have nodes of an earlier study as well
    records = {path.parent.name: _record(path) for path in sorted(nodes.glob(f"*/{NODE}")) if path.parent.name in keys}
    limits: dict[str, dict[str, float]] = {}
    judged_by: dict[str, list[str]] = {}
    for key, record in records.items():
        if record.get("kind") in JUDGES and record["parents"]:
            judged_by.setdefault(record["parents"][0], []).append(key)
    answers: list[JudgedAnswer] = []
    for key, attack, defense, seed in _measured(run):
        trial = attack.partition("#")[2]
        inside = f"trial-{trial}" if trial else "."
        if key not in records or not path_exists(nodes / key / inside / RESPONSES):
            continue  # the attacker's choice of a search is one of its trials
        scores: list[dict[str, Any]] = []
        for judging in (key, *judged_by.get(key, ())):
            table = nodes / judging / inside / SCORES
            rows = _rows(table) if path_exists(table) else []
            scores += rows
            if rows and judging != key and rows[0]["judge"] not in limits:
                limits[rows[0]["judge"]] = _limits(nodes, records[judging])
        state = ModelState(defense, attack, 0, seed, _token_limit(records[key]))
        answers += _of_node(nodes / key / inside, state, scores, run)
    if not answers:
        return RunAnswers(_from_samples(run), complete=False)
    order = {name: number for number, name in enumerate(["as shipped", *run.defenses])}
    attacks = {name: number for number, name in enumerate(["", *run.attacks, *run.controls])}

    def place_of(answer: JudgedAnswer) -> tuple[Any, ...]:
        state = answer.state
        attack = attacks.get(state.attack.partition("#")[0], len(attacks))
        return (
            attack,
            state.attack,
            state.step,
            state.seed,
            order.get(state.defense, len(order)),
            answer.part,
            answer.id,
        )

    return RunAnswers(sorted(answers, key=place_of), complete=True, limits=limits)


def _measured(run: Run) -> list[tuple[str, str, str, int]]:
    """(node, attack, defense, seed) of every model that was measured; equal defenses share a node."""
    return list(dict.fromkeys((row["node"], row["attack"], row["defense"], row["seed"]) for row in run.rows))


def _record(path: Path) -> dict[str, Any]:
    """A node's record.

    Raises:
        UserError: it is damaged.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise UserError(f"{path} is no record of a node: delete its folder and run the study again.")
    parents, depends = record.get("parents"), record.get("depends")
    well_formed = isinstance(parents, list) and all(isinstance(parent, str) for parent in parents)
    return {
        **record,
        "parents": parents if well_formed else [],
        "depends": depends if isinstance(depends, dict) else {},
    }


def _token_limit(record: dict[str, Any]) -> int:
    evaluate = record["depends"].get("evaluate")
    limit = evaluate.get("response_tokens") if isinstance(evaluate, dict) else None
    return limit if isinstance(limit, int) else 0


def _of_node(folder: Path, state: ModelState, scores: list[dict[str, Any]], run: Run) -> Iterator[JudgedAnswer]:
    judged: dict[tuple[int, str, str], list[JudgedAs]] = {}
    for row in scores:
        verdict = JudgedAs(row["judge"], row["verdict"], row["reason"], _evidence(row["evidence"]))
        judged.setdefault((row["step"], row["part"], row["id"]), []).append(verdict)
    states: dict[int, ModelState] = {}
    for row in _rows(folder / RESPONSES):
        step = row["step"]
        if step not in states:
            states[step] = ModelState(state.defense, state.attack, step, state.seed, state.limit)
        verdicts = judged.get((step, row["part"], row["id"]), [])
        verdicts.sort(key=lambda verdict: verdict.judge != run.summary.judge)
        cut = row.get("cut")  # responses that an older version generated lack it
        texts = row["part"], row["id"], row["prompt"], row["response"]
        yield JudgedAnswer(states[step], *texts, tuple(verdicts), cut if isinstance(cut, bool) else None)


def _evidence(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _limits(nodes: Path, record: dict[str, Any]) -> dict[str, float]:
    """The limits of a judge node's criteria: the parameters of the judge and the thresholds that its parent calibrated."""
    judge = record["depends"].get("judge")
    if not isinstance(judge, list) or not judge:
        return {}
    values = dict(judge[-1]) if isinstance(judge[-1], dict) else {}
    for parent in record["parents"][1:]:
        path = nodes / parent / THRESHOLDS
        thresholds = read_json(path) if path_exists(path) else {}
        values |= thresholds if isinstance(thresholds, dict) else {}
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a node's table.

    Raises:
        UserError: it is missing or damaged.
    """
    check_file(path)
    try:
        table = pq.read_table(path)
        missing = [name for name in COLUMNS_READ[path.name] if name not in table.schema.names]
        if missing or any(table.column(name).null_count for name in COLUMNS_READ[path.name]):
            raise UserError(f"{path} lacks values: delete its folder and run the study again.")
        rows: list[dict[str, Any]] = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: delete its folder and run the study again.") from error
    return rows


def _from_samples(run: Run) -> list[JudgedAnswer]:
    return [
        JudgedAnswer(
            ModelState(sample.defense, sample.attack, sample.step, 0),
            "evaluation",
            "",
            sample.prompt,
            sample.response,
            (JudgedAs(run.summary.judge, sample.harmful, ", ".join(sample.reasons)),),
            sample.cut,
        )
        for sample in run.samples.samples
    ]
