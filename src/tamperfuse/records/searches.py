"""What adaptive attackers found: `searches.json`, there where a study has a `search`, read by the report."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tamperfuse.records.errors import UserError
from tamperfuse.records.files import read_json, write_json
from tamperfuse.records.results import Measure

SEARCHES = "searches.json"


class Tried(BaseModel):
    """One checkpoint of one trial.

    Attributes:
        seed: of the search.
        trial: its number, from 0.
        parameters: those that the search varies.
        stopped: whether the trial was ended early.
        step: of the attack.
        dev: rate on attacker_dev, by which the attacker chooses.
        evaluation: rate on evaluation.
        lost: capability lost, as a share of the undefended model's before any attack.
    """

    model_config = ConfigDict(frozen=True)

    seed: int
    trial: int
    parameters: dict[str, Any]
    stopped: bool
    step: int
    dev: float
    evaluation: Measure
    lost: float


class Climb(BaseModel):
    """One search against one defense, seeds averaged.

    Attributes:
        defense: as the study names it.
        attack: likewise.
        trials: settings tried, a seed.
        best_so_far: rate on evaluation of the attacker's choice after 1, 2, … trials.
        ceiling_vs_undefended: the undefended model's rate at the end minus this one's; above 0, the ceiling is lower.
        climb_vs_undefended: the same difference averaged over all numbers of trials; above 0, the climb is slower.
        half: first number of trials after which half of the undefended model's ceiling is reached; `trials` where it is not.
        censored: whether it is not reached.
        tried: every trial's checkpoint that the attacker prefers; trials that left none are missing.
        frontier: checkpoints than which none has a higher dev rate and loses no more capability, by capability lost.
    """

    model_config = ConfigDict(frozen=True)

    defense: str
    attack: str
    trials: int
    best_so_far: list[Measure]
    ceiling_vs_undefended: Measure
    climb_vs_undefended: Measure
    half: int
    censored: bool
    tried: list[Tried]
    frontier: list[Tried]


class Searches(BaseModel):
    """`searches.json`."""

    model_config = ConfigDict(frozen=True)

    searches: list[Climb] = []


def write_searches(folder: Path, searches: Searches) -> None:
    """Write `searches.json`; a study without any search leaves none."""
    if searches.searches:
        write_json(folder / SEARCHES, searches.model_dump())
    else:
        (folder / SEARCHES).unlink(missing_ok=True)


def read_searches(folder: Path) -> Searches:
    """Read `searches.json`; no search where there is none.

    Raises:
        UserError: it is damaged.
    """
    path = folder / SEARCHES
    if not path.exists():
        return Searches()
    try:
        return Searches.model_validate(read_json(path))
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError(f"{path} is damaged (at {place or 'the top'}): run the study again.") from error
