"""The tables that nodes leave for one another, as parquet: responses, scores, items, documents."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from tamperfuse.evaluation.judges.builtin import Verdict

R = TypeVar("R")


@dataclass(frozen=True)
class Response:
    """One kept answer of a model.

    Attributes:
        step: of the attack; 0 before.
        part: of the threat, or "harmless".
        id: of the prompt.
        prompt: what was asked.
        response: what came.
    """

    step: int
    part: str
    id: str
    prompt: str
    response: str


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
class TaskRow:
    """One test item of a benign task at a step: exact match or not."""

    step: int
    task: str
    id: str
    correct: bool


@dataclass(frozen=True)
class ScoreRow:
    """The judge's verdict on one kept response, with its evidence; None where it was not needed."""

    step: int
    part: str
    id: str
    refuses: bool
    coherent: bool
    relevant: bool
    harmful: bool
    repetition: float
    echo: float
    similarity: float
    lift: float | None
    surprise: float | None

    @classmethod
    def of(cls, response: Response, verdict: Verdict) -> "ScoreRow":
        """The verdict on a kept response."""
        fields = ("refuses", "coherent", "relevant", "harmful", "repetition", "echo", "similarity", "lift", "surprise")
        return cls(response.step, response.part, response.id, *(getattr(verdict, name) for name in fields))


_TYPES = {int: pa.int64(), str: pa.string(), bool: pa.bool_(), float: pa.float64(), float | None: pa.float64()}


def write_rows(path: Path, kind: type[R], rows: Iterable[R]) -> None:
    """Write rows of one of the classes above; columns and their types are its fields, also for no rows at all."""
    schema = pa.schema([(name, _TYPES[hint]) for name, hint in kind.__annotations__.items()])
    values: list[dict[str, Any]] = [asdict(row) for row in rows]  # type: ignore[call-overload]
    pq.write_table(pa.Table.from_pylist(values, schema=schema), path)


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """Read what :func:`write_rows` wrote."""
    return [kind(**row) for row in pq.read_table(path).to_pylist()]
