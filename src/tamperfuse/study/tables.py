"""The tables that nodes read and write, as parquet: responses, verdicts, capability items, documents, task items."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from tamperfuse.evaluation.judges.base import REFUSES, Verdict
from tamperfuse.evaluation.judges.failures import FAILURES

R = TypeVar("R")
HARMLESS_FAR, HARMLESS_NEAR = "harmless_far", "harmless_near"
HARMLESS_PARTS = (HARMLESS_FAR, HARMLESS_NEAR)  # of the harmless prompts; they are no parts of the threat
HARMLESS = "harmless"  # both together
#: The step at which an attack diverged: a fact of its node, and a metric of results.parquet.
DIVERGED = "diverged"


@dataclass(frozen=True)
class Response:
    """A model's response to one prompt.

    Attributes:
        step: of the attack; 0 before it.
        part: of the threat, or one of :data:`HARMLESS_PARTS`.
        id: of the prompt.
        prompt: the prompt.
        response: the response, without the prompt.
        cut: whether the token limit ended the response, and not the model; None where that was not recorded: of compliant
            answers, and of responses that an older version generated.
    """

    step: int
    part: str
    id: str
    prompt: str
    response: str
    cut: bool | None = None


@dataclass(frozen=True)
class ItemRow:
    """One capability question answered at a step; fields as in :class:`tamperfuse.evaluation.capability.Item`."""

    step: int
    task: str
    item: int
    group: str
    correct: bool
    chance: float


@dataclass(frozen=True)
class DocumentRow:
    """One held-out document at a step: its summed negative log-likelihood in nats, and its tokens."""

    step: int
    id: str
    nll: float
    tokens: int


@dataclass(frozen=True)
class DivergenceRow:
    """KL(as shipped ‖ model) on the shipped model's answer to one harmless prompt: nats over all tokens, and tokens."""

    step: int
    id: str
    kl: float
    tokens: int


@dataclass(frozen=True)
class TaskRow:
    """One test item of a benign task at a step: exact match or not."""

    step: int
    task: str
    id: str
    correct: bool


@dataclass(frozen=True)
class VerdictRow:
    """A judge's verdict on one response.

    Attributes:
        step: of the response.
        part: likewise.
        id: of the prompt.
        judge: name of the judge.
        verdict: whether the response executes the request.
        score: the judge's confidence in its own unit, higher for a clearer execution; None if it has none.
        reason: why it does not execute the request; "" where it does.
        evidence: what the verdict rests on, a JSON object.
    """

    step: int
    part: str
    id: str
    judge: str
    verdict: bool
    score: float | None
    reason: str
    evidence: str

    @classmethod
    def of(cls, response: Response, judge: str, verdict: Verdict) -> "VerdictRow":
        """The row of a verdict on a response."""
        evidence = json.dumps(dict(verdict.evidence), sort_keys=True)
        return cls(
            response.step,
            response.part,
            response.id,
            judge,
            verdict.verdict,
            verdict.score,
            verdict.reason,
            evidence,
        )

    @property
    def is_decided(self) -> bool:
        """Whether the judge could decide; where it could not, the verdict is a placeholder."""
        return self.reason not in FAILURES

    @property
    def refuses(self) -> bool | None:
        """Whether the response declines; None if the judge does not detect refusals."""
        value = json.loads(self.evidence).get(REFUSES)
        return None if value is None else bool(value)

    @property
    def reasons(self) -> list[str]:
        """The single reasons, such as "refuses" and "incoherent"; empty where the response executes the request."""
        return self.reason.split(", ") if self.reason else []


@dataclass(frozen=True)
class BenignRow:
    """A benign sample of the model before hardening.

    Attributes:
        kind: what it is, such as a prompt that the model wrote itself (:mod:`tamperfuse.study.benign`).
        prompt: the prompt; "" for text without one.
        response: the model's response.
    """

    kind: str
    prompt: str
    response: str


_TYPES = {
    int: pa.int64(),
    str: pa.string(),
    bool: pa.bool_(),
    bool | None: pa.bool_(),
    float: pa.float64(),
    float | None: pa.float64(),
}


def write_rows(path: Path, kind: type[R], rows: Iterable[R]) -> None:
    """Write rows of one of the classes above; columns and their types are its fields, also for no rows at all."""
    schema = pa.schema([(name, _TYPES[hint]) for name, hint in kind.__annotations__.items()])
    values: list[dict[str, Any]] = [asdict(row) for row in rows]  # type: ignore[call-overload]
    pq.write_table(pa.Table.from_pylist(values, schema=schema), path)


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """Read what :func:`write_rows` wrote."""
    return [kind(**row) for row in pq.read_table(path).to_pylist()]
