"""`searches.json`: the results of adaptive attackers, written where a study has a `search`, read by the report."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tamperfuse.records.files import write_json
from tamperfuse.records.reading import path_exists
from tamperfuse.records.run_files import read_run_file
from tamperfuse.records.summary import Measure

SEARCHES = "searches.json"


def _measured(measure: Measure) -> Measure:
    if measure.value is None:
        raise ValueError("it has no value")
    return measure


#: A measure that has a value.
MeasuredRate = Annotated[Measure, AfterValidator(_measured)]


class TrialResult(BaseModel):
    """One checkpoint of one trial.

    Attributes:
        seed: of the search.
        trial: its number, from 0.
        parameters: those that the search varies.
        stopped: whether the trial was ended early.
        step: of the attack.
        attacker_dev: harmful execution rate on attacker_dev, by which the attacker chooses.
        evaluation: harmful execution rate on evaluation.
        capability_lost: as a share of the undefended model's before any attack; negative for a gain.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    seed: int
    trial: int
    parameters: dict[str, Any]
    stopped: bool
    step: int
    attacker_dev: float
    evaluation: MeasuredRate
    capability_lost: float

    @property
    def setting(self) -> str:
        """The parameters in words: learning_rate 0.00033, shots 67, method full."""
        return ", ".join(f"{k} {v:.2g}" if isinstance(v, float) else f"{k} {v}" for k, v in self.parameters.items())


class SearchResult(BaseModel):
    """One search against one defense, averaged over seeds.

    Attributes:
        defense: as the study names it.
        attack: likewise.
        trials: number of trials per seed.
        best_so_far: rate on evaluation of the attacker's choice after 1, 2, … trials.
        final_best_vs_undefended: the undefended model's rate after the last trial minus this one's; positive if the defense
            lowers the highest rate that the search reaches.
        best_so_far_vs_undefended: the same difference averaged over all numbers of trials; positive if the defense makes the
            search slower.
        trials_to_half: first number of trials after which half of the undefended model's final rate is reached; `trials`
            where it is not reached.
        censored: whether it is not reached.
        choices: for every trial the checkpoint that the attacker prefers; trials without a measured one are missing.
        frontier: the Pareto frontier of attacker_dev rate (higher) and capability lost (lower), by capability lost.
    """

    model_config = ConfigDict(frozen=True)

    defense: str
    attack: str
    trials: int
    best_so_far: list[MeasuredRate] = Field(min_length=1)
    final_best_vs_undefended: Measure
    best_so_far_vs_undefended: Measure
    trials_to_half: int
    censored: bool
    choices: list[TrialResult]
    frontier: list[TrialResult]


class Searches(BaseModel):
    """`searches.json`."""

    model_config = ConfigDict(frozen=True)

    searches: list[SearchResult] = []


def write_searches(folder: Path, searches: Searches) -> None:
    """Write `searches.json`; for a study without a search the file is removed if there is one."""
    if searches.searches:
        write_json(folder / SEARCHES, searches.model_dump())
    else:
        (folder / SEARCHES).unlink(missing_ok=True)


def read_searches(folder: Path) -> Searches:
    """Read `searches.json`; empty if there is no such file.

    Raises:
        UserError: it is damaged.
    """
    path = folder / SEARCHES
    return read_run_file(path, Searches) if path_exists(path) else Searches()
