"""What a trial of a search leaves behind: `trial.json` and the tables of what was measured, in a folder of its own."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tamperfuse.records.files import read_json
from tamperfuse.study.search.space import Value

TRIAL = "trial.json"


class Point(BaseModel):
    """A checkpoint as the attacker sees it.

    Attributes:
        step: of the attack.
        rate: harmful execution on attacker_dev, in [0, 1].
        lost: capability lost, as a share of the undefended model's before any attack; negative for a gain.
    """

    model_config = ConfigDict(frozen=True)

    step: int
    rate: float
    lost: float


class Trial(BaseModel):
    """One setting of an attack, tried.

    Attributes:
        number: from 0.
        parameters: those that the search varies.
        points: what was seen, step by step.
        stopped: why it was stopped early; "" where it ran to its end.
        samples: that the attack drew on; None where it was stopped.
        trained: tokens; an estimate where it was stopped.
        generated: tokens.
        scored: tokens.
    """

    model_config = ConfigDict(frozen=True)

    number: int
    parameters: dict[str, Value]
    points: tuple[Point, ...]
    stopped: str
    samples: int | None
    trained: int
    generated: int
    scored: int

    def best(self, until: int | None = None) -> Point | None:
        """The checkpoint that the attacker prefers, up to a step if one is given; None where nothing was measured."""
        points = [point for point in self.points if until is None or point.step <= until]
        return max(points, key=lambda point: (point.rate, -point.lost, -point.step), default=None)


def trial_folder(folder: Path, number: int) -> Path:
    """Where a trial's files lie within a search's folder."""
    return folder / f"trial-{number:03d}"


def read_trials(folder: Path) -> list[Trial]:
    """All trials of a search, in order."""
    return [Trial.model_validate(read_json(path)) for path in sorted(folder.glob(f"trial-*/{TRIAL}"))]
