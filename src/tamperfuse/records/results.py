"""`results.parquet`: one row per measurement."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tamperfuse.records.errors import UserError, shown
from tamperfuse.records.files import staged
from tamperfuse.records.reading import check_file, path_exists

#: The defense that all others are compared with: the same model after plain refusal training, safe until it is attacked.
UNDEFENDED = "refusal"
#: The `defense` of rows about the model before hardening.
AS_SHIPPED = "as shipped"
RESULTS = "results.parquet"

COLUMNS = pa.schema(
    [
        ("model", pa.string()),  # as the study names it
        ("threat", pa.string()),
        (
            "part",
            pa.string(),
        ),  # the prompts' part: evaluation, attacker_dev, harmless, …; "" for measures without prompts
        ("defense", pa.string()),  # AS_SHIPPED for the model before hardening
        ("attack", pa.string()),  # "" before any attack; "name#003" for a trial of a search
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
        ("n", pa.int64()),  # number of items behind the value
        ("censored", pa.bool_()),  # the value is a lower bound
        ("node", pa.string()),  # key of the node that measured it
    ]
)


#: Columns that have a value in every row.
REQUIRED = (
    "model",
    "threat",
    "part",
    "defense",
    "attack",
    "malicious",
    "step",
    "seed",
    "judge",
    "task",
    "metric",
    "node",
)
LARGEST_TABLE = 10_000_000  # rows


def write_results(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write `results.parquet`: rows sorted by every column, so that equal results are equal files.

    Raises:
        UserError: the rows are not those of a results table, which is a mistake of this package, or the disk is full.
    """
    unknown = sorted({name for row in rows for name in row} - set(COLUMNS.names))
    table = pa.Table.from_pylist(rows, schema=COLUMNS)
    problem = f"has the unknown columns {', '.join(unknown)}" if unknown else _problem(table)
    if problem:
        raise UserError(f"{folder / RESULTS} is not written, since it {problem}: this is a bug, please report it.")
    table = table.sort_by([(name, "ascending") for name in COLUMNS.names if name not in ("value", "low", "high")])
    with staged(folder / RESULTS) as staging:
        pq.write_table(table, staging)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Read `results.parquet`.

    Raises:
        UserError: there is none, or it is no results table.
    """
    path = folder / RESULTS
    if not path_exists(path):
        raise UserError(f"{shown(folder)} holds no {RESULTS}: name the folder of a finished run.")
    check_file(path)
    try:
        count = pq.read_metadata(path).num_rows
        if count > LARGEST_TABLE:
            raise UserError(f"{path} has {count:,} rows, more than a study writes: run the study again.")
        table = pq.read_table(path)
        rows: list[dict[str, Any]] = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path} cannot be read ({shown(' '.join(str(error).split()))}): run the study again."
        ) from error
    if problem := _problem(table):
        raise UserError(f"{path} {problem}: run the study again.")
    return rows


def different_columns(folder: Path) -> str:
    """How the columns of a `results.parquet` differ from those that this version writes.

    Returns:
        In words; "" if they do not, if there is no such file, or if it is damaged.

    Raises:
        UserError: it is not an ordinary file.
    """
    path = folder / RESULTS
    if not path_exists(path):
        return ""
    check_file(path)
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError, ValueError, OverflowError):
        return ""
    return "" if schema.equals(COLUMNS) else _difference(schema)


def _problem(table: pa.Table) -> str:
    """What is wrong with a results table, in words that follow its name; "" if nothing is."""
    if not table.schema.equals(COLUMNS):
        return f"has other columns than this version writes ({_difference(table.schema)})"
    for name in REQUIRED:
        if table.column(name).null_count:
            return f"has rows without a value for {name!r}"
    for name in ("value", "low", "high"):
        if any(number is not None and not math.isfinite(number) for number in table.column(name).to_pylist()):
            return f"has a value of {name!r} that is not finite"
    return ""


def _difference(schema: pa.Schema) -> str:
    """How the columns of a table differ from those of a results table."""
    missing = [name for name in COLUMNS.names if name not in schema.names]
    unknown = [name for name in schema.names if name not in COLUMNS.names]
    if missing or unknown:
        parts = (("without", missing), ("with", unknown))
        return shown(", ".join(f"{word} {', '.join(names)}" for word, names in parts if names))
    other = [name for name in COLUMNS.names if schema.field(name).type != COLUMNS.field(name).type]
    return f"of another type: {', '.join(other)}" if other else "in another order"
