"""Proposes the settings that a search tries, with optuna's multi-objective TPE; finished trials are stored in SQLite.

TPE: Bergstra et al. (2011, NeurIPS 24); with several objectives: Ozaki et al. (2022, JAIR 73). The state of a sampler is not
stored. Therefore every proposal has a new sampler, seeded with the search's seed and the trial's number, so it depends on the
finished trials alone. An interrupted trial is not stored and is proposed again.
"""

from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from tamperfuse.attacks.base import SearchValue
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import content_hash
from tamperfuse.records.registry import Parameters
from tamperfuse.study.search.space import DECADE, Search, is_range
from tamperfuse.study.search.trials import Trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

# Objectives: harmful execution rate on attacker_dev, capability lost.
DIRECTIONS: tuple[Literal["maximize"], Literal["minimize"]] = ("maximize", "minimize")
RANDOM_TRIALS = 5  # drawn at random before TPE is used; the same for every defense


def check_optuna() -> None:
    """Check that optuna is installed.

    Raises:
        UserError: it is not.
    """
    if find_spec("optuna") is None:
        raise UserError("A `search` needs optuna, which is not installed: pip install 'tamperfuse[search]'.")


class Proposals:
    """The trials of one search, in optuna's storage.

    Args:
        path: the SQLite file; created if it does not exist.
        search: the search space.
        start: the attack's parameters in the study; the first trial uses them, except those outside the search space.
        seed: of the samplers.
    """

    def __init__(self, path: Path, search: Search, start: Parameters, seed: int) -> None:
        import optuna  # a second to import: only where a search runs

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.path, self.seed = path, seed
        self.space = {name: _distribution(values) for name, values in search.over.items()}
        defaults = start.model_dump(include=set(search.over))
        self.start = {name: value for name, value in defaults.items() if _within(value, search.over[name])}
        self._storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
        self._study = optuna.create_study(
            study_name="search", storage=self._storage, directions=DIRECTIONS, load_if_exists=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._storage.remove_session()
        self._storage.engine.dispose()

    @property
    def done(self) -> int:
        """Number of finished trials."""
        return len(self._study.get_trials(deepcopy=False))

    def next(self) -> dict[str, Any]:
        """Parameters of the next trial."""
        import optuna

        number = self.done
        sampler = optuna.samplers.TPESampler(
            seed=int(content_hash([self.seed, number])[:8], 16),
            n_startup_trials=RANDOM_TRIALS,
            multivariate=True,
            constant_liar=False,  # no trials run in parallel
        )
        # In memory, so that a proposal is not stored before its trial has finished.
        proposing = optuna.create_study(directions=DIRECTIONS, sampler=sampler)
        proposing.add_trials(self._study.get_trials(deepcopy=False))
        if number == 0 and self.start:
            proposing.enqueue_trial(self.start)
        return dict(proposing.ask(self.space).params)

    def add(self, trial: Trial) -> None:
        """Store a finished trial; one that was stopped early or measured no checkpoint is stored as pruned.

        What a trial measured before it diverged counts: its settings are fast ones, which the attacker only has to stop in time.

        Raises:
            UserError: the file cannot be written.
        """
        import optuna

        best = trial.best()
        complete = best is not None and (trial.diverged or not trial.stopped)
        frozen = optuna.trial.create_trial(
            state=optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.PRUNED,
            params=trial.parameters,
            distributions=self.space,
            values=[best.rate, best.lost] if best and complete else None,
            user_attrs={"checkpoints": [c.model_dump() for c in trial.checkpoints], "stopped": trial.stopped},
        )
        try:
            self._study.add_trial(frozen)
        except optuna.exceptions.StorageInternalError as error:
            raise UserError(f"{self.path} cannot be written: free some space and run again.") from error


def _distribution(values: tuple[SearchValue, ...]) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not is_range(values):
        return CategoricalDistribution(values)
    low, high = values
    log = low > 0 and high / low >= DECADE  # type: ignore[operator]
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)  # type: ignore[arg-type]


def _within(value: Any, values: tuple[SearchValue, ...]) -> bool:
    return bool(values[0] <= value <= values[1]) if is_range(values) else value in values
