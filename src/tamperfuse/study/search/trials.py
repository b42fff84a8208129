"""The files of a trial of a search: `trial.json` and the tables of measurements, in its own folder."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tamperfuse.attacks.base import SearchValue
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import read_json

TRIAL = "trial.json"


class TrialCheckpoint(BaseModel):
    """A checkpoint of an attack, as the attacker sees it.

    Attributes:
        step: of the attack.
        rate: harmful execution rate on attacker_dev, in [0, 1].
        lost: capability lost, as a share of the undefended model's before any attack; negative for a gain.
    """

    model_config = ConfigDict(frozen=True)

    step: int
    rate: float
    lost: float


class Trial(BaseModel):
    """One run of the attack, with one setting.

    Attributes:
        number: from 0.
        parameters: the values of the parameters that the search varies.
        checkpoints: the measured checkpoints, in order of their steps.
        stopped: why it ended early; "" if it did not.
        diverged: whether it ended early because it diverged, and not because an earlier trial was far ahead.
        samples: number of samples that the attack used; None if it ended early.
        trained: number of tokens trained; an estimate if it ended early.
        generated: number of tokens generated.
        scored: number of tokens scored.
        seconds: that it took.
    """

    model_config = ConfigDict(frozen=True)

    number: int
    parameters: dict[str, SearchValue]
    checkpoints: tuple[TrialCheckpoint, ...]
    stopped: str
    samples: int | None
    trained: int
    generated: int
    scored: int
    seconds: float
    diverged: bool

    def best(self, until: int | None = None) -> TrialCheckpoint | None:
        """The checkpoint that the attacker prefers: highest rate, then least capability lost, then the earliest.

        Args:
            until: only checkpoints up to this step are considered; None for all.

        Returns:
            None if no checkpoint was measured.
        """
        candidates = [c for c in self.checkpoints if until is None or c.step <= until]
        return max(candidates, key=lambda c: (c.rate, -c.lost, -c.step), default=None)


def trial_folder(folder: Path, number: int) -> Path:
    """The folder of a trial within a search's folder."""
    return folder / f"trial-{number:03d}"


def read_trials(folder: Path) -> list[Trial]:
    """All trials of a search, in order.

    Raises:
        UserError: one is damaged.
    """
    trials = [_read_trial(path) for path in folder.glob(f"trial-*/{TRIAL}")]
    return sorted(trials, key=lambda trial: trial.number)


def _read_trial(path: Path) -> Trial:
    try:
        return Trial.model_validate(read_json(path))
    except (UserError, ValidationError) as error:
        raise UserError(f"{path} is damaged: remove {path.parent.parent} to search from the beginning.") from error
