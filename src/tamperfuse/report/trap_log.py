"""What a defense with simulated attackers measured during its training, from the folders of a run's nodes.

results.parquet ─▶ the node that measured the hardened model ─▶ its first parent, the node that trained it ─▶ facts: trap
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamperfuse.records.files import NODE, NODES, read_json
from tamperfuse.records.reading import path_exists
from tamperfuse.records.results import AS_SHIPPED


@dataclass(frozen=True)
class TrapLog:
    """The checks of one training.

    Attributes:
        defense: as the study names it.
        seed: of the training.
        checks: by time: `step` and what was measured after it, by name; what was not finite is missing.
    """

    defense: str
    seed: int
    checks: list[dict[str, float]]


def read_trap_logs(folder: Path, rows: list[dict[str, Any]]) -> list[TrapLog]:
    """The logs of all defenses and seeds that have one; none where the run's nodes are missing.

    Args:
        folder: of the run.
        rows: of its results.parquet.

    Raises:
        UserError: the record of a node is damaged.
    """
    measured = {
        (row["defense"], row["seed"]): row["node"] for row in rows if not row["attack"] and row["defense"] != AS_SHIPPED
    }
    logs = []
    for (defense, seed), node in measured.items():
        parents = _record(folder, node).get("parents")
        trained = parents[0] if isinstance(parents, list) and parents else ""
        facts = _record(folder, str(trained)).get("facts")
        checks = list(_checks(facts.get("trap") if isinstance(facts, dict) else None))
        if checks:
            logs.append(TrapLog(defense, seed, checks))
    return logs


def _record(folder: Path, node: str) -> dict[str, Any]:
    """The record of a node; an empty one where it is missing."""
    path = folder / NODES / Path(node).name / NODE
    record = read_json(path) if node and path_exists(path) else {}
    return record if isinstance(record, dict) else {}


def _checks(records: Any) -> Iterator[dict[str, float]]:
    for record in records if isinstance(records, list) else []:
        if isinstance(record, dict):
            check = {name: float(value) for name, value in record.items() if isinstance(value, int | float)}
            if "step" in check and all(map(math.isfinite, check.values())):
                yield check
