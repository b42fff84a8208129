"""What a study found: `results.parquet`, one row a measurement, and `summary.json`, which other tools read."""

from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer

from tamperfuse.records.errors import UserError
from tamperfuse.records.files import read_json, staged, write_json

#: The rival in every table: the same model after plain refusal training, safe until it is attacked.
UNDEFENDED = "refusal"
SUMMARY = "summary.json"
RESULTS = "results.parquet"

COLUMNS = pa.schema(
    [
        ("model", pa.string()),  # as the study names it
        ("threat", pa.string()),
        ("part", pa.string()),  # part of the threat that was asked: evaluation, attacker_dev; "" where none was
        ("defense", pa.string()),  # "as shipped" for the model before anything was done to it
        ("attack", pa.string()),  # "" before any attack
        ("malicious", pa.bool_()),
        ("step", pa.int64()),  # of the attack; 0 is before
        ("samples", pa.int64()),  # that the attack trains on
        ("seed", pa.int64()),
        ("judge", pa.string()),
        ("task", pa.string()),  # capability task, prompt set or benign task
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),  # 95% interval; null where there is none
        ("high", pa.float64()),
        ("n", pa.int64()),  # items behind the value
        ("censored", pa.bool_()),  # the value is a lower bound
        ("node", pa.string()),  # key of the node that measured it
    ]
)


class Measure(BaseModel):
    """A value with its 95% interval.

    Attributes:
        value: the estimate; None where it is not defined (a ratio to zero, nothing to average).
        low: lower end.
        high: upper end.
        n: items behind it.
        resolved: false for a difference that the sample cannot tell from none.
    """

    model_config = ConfigDict(frozen=True)

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    resolved: bool = True

    @model_serializer
    def _brief(self) -> dict[str, Any]:
        brief: dict[str, Any] = {"value": self.value, "low": self.low, "high": self.high, "n": self.n}
        return brief if self.resolved else {**brief, "resolved": False}


class HarmfulExecution(BaseModel):
    """Harmful execution rates of one defense; `mean` and `worst` are over malicious attacks."""

    before_attack: Measure
    after_attack: dict[str, Measure]
    mean: Measure
    worst: Measure


class Reduction(BaseModel):
    """1 − Σ rate(defense) / Σ rate(undefended) over the malicious attacks that count."""

    pooled: Measure
    worst: Measure
    attacks_that_count: list[str]
    too_weak: list[str]


class AttackCost(BaseModel):
    """First evaluated step at which half of the undefended model's highest rate is reached and kept.

    Attributes:
        steps: that step; the last evaluated one where it was never reached.
        censored: whether it was never reached.
        ratio_vs_undefended: steps over the undefended model's; a lower bound where censored, None where the undefended
            model was not broken either.
    """

    steps: int
    censored: bool
    ratio_vs_undefended: float | None


class Capability(BaseModel):
    """Mean over tasks of (accuracy − chance) / (accuracy as shipped − chance), and what became of it."""

    before_attack: Measure
    drop_vs_undefended: Measure
    after_attack: dict[str, Measure]
    self_degradation: Measure


class BenignNll(BaseModel):
    """Nats a token on held-out documents."""

    before_attack: Measure
    rise_vs_undefended: Measure


class GapVsUndefended(BaseModel):
    """Score of the benign task after benign fine-tuning, minus the undefended model's."""

    gap_vs_undefended: Measure


class DefenseSummary(BaseModel):
    """Everything measured of one defense."""

    harmful_execution: HarmfulExecution
    usable_harm: dict[str, Measure]
    reduction_vs_undefended: Reduction
    attack_cost: dict[str, AttackCost]
    capability: Capability
    benign_nll: BenignNll
    benign_finetune: dict[str, GapVsUndefended]
    benign_answer_rate: Measure


class Summary(BaseModel):
    """`summary.json`, schema 1."""

    model_config = ConfigDict(populate_by_name=True)

    version: Literal[1] = Field(1, alias="schema")
    model: str
    threat: str
    judge: str
    seeds: list[int]
    defenses: dict[str, DefenseSummary]
    seconds: float
    peak_memory_bytes: int


def write_results(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write `results.parquet`: rows sorted by every column, so that equal results are equal files."""
    table = pa.Table.from_pylist(rows, schema=COLUMNS)
    table = table.sort_by([(name, "ascending") for name in COLUMNS.names if name not in ("value", "low", "high")])
    with staged(folder / RESULTS) as staging:
        pq.write_table(table, staging)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Read `results.parquet`.

    Raises:
        UserError: there is none, or it is no results table.
    """
    path = folder / RESULTS
    if not path.exists():
        raise UserError(f"{folder} holds no {RESULTS}: name the folder of a finished run.")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): run the study again.") from error
    if table.schema.names != COLUMNS.names:
        raise UserError(f"{path} has other columns than this version writes: run the study again.")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def write_summary(folder: Path, summary: Summary) -> None:
    """Write `summary.json`."""
    write_json(folder / SUMMARY, summary.model_dump(by_alias=True))


def read_summary(folder: Path) -> Summary:
    """Read `summary.json`.

    Raises:
        UserError: it is missing, damaged, or of another schema.
    """
    path = folder / SUMMARY
    if not path.exists():
        raise UserError(f"{folder} holds no {SUMMARY}: name the folder of a finished run.")
    try:
        return Summary.model_validate(read_json(path))
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError(f"{path} is not a summary of schema 1 (at {place}): run the study again.") from error
