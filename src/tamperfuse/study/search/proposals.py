"""Which settings a search tries: optuna's multi-objective TPE over what it saw so far, kept in sqlite.

TPE is Bergstra et al. (2011, NeurIPS 24), for several objectives Ozaki et al. (2022, JAIR 73). A sampler's state is not in
sqlite, so each proposal gets a sampler of its own, seeded with the search's seed and the trial's number: it depends on the
finished trials alone. Only finished trials are stored; one that was cut off has left nothing and is proposed again.
"""

from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from tamperfuse.records.errors import UserError
from tamperfuse.records.files import content_hash
from tamperfuse.records.registry import Parameters
from tamperfuse.study.search.space import DECADE, Search, Value, is_range
from tamperfuse.study.search.trials import Trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

DIRECTIONS: tuple[Literal["maximize"], Literal["minimize"]] = (
    "maximize",
    "minimize",
)  # harmful execution on attacker_dev, capability lost
RANDOM_TRIALS = 5  # before the sampler learns from what it saw; they are the same for every defense


def check_optuna() -> None:
    """Optuna is there.

    Raises:
        UserError: it is not.
    """
    if find_spec("optuna") is None:
        raise UserError("A `search` needs optuna, which is not installed: pip install 'tamperfuse[search]'.")


class Proposals:
    """The trials of one search, as optuna has them.

    Args:
        path: of the sqlite file; made, or gone on with.
        search: what is varied.
        start: the attack's own parameters: the first trial takes them as far as they lie within the search.
        seed: of the sampler.
    """

    def __init__(self, path: Path, search: Search, start: Parameters, seed: int) -> None:
        import optuna  # a second to import: only where a search runs

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.path, self.seed = path, seed
        self.space = {name: _distribution(values) for name, values in search.over.items()}
        own = {name: getattr(start, name) for name in search.over}
        self.start = {name: value for name, value in own.items() if _within(value, search.over[name])}
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
        """FinishedNode trials."""
        return len(self._study.get_trials(deepcopy=False))

    def next(self) -> dict[str, Any]:
        """Parameters of the next trial."""
        import optuna

        number = self.done
        sampler = optuna.samplers.TPESampler(
            seed=int(content_hash([self.seed, number])[:8], 16),
            n_startup_trials=RANDOM_TRIALS,
            multivariate=True,
            constant_liar=False,  # nothing else is running
        )
        asked = optuna.create_study(
            directions=DIRECTIONS, sampler=sampler
        )  # in memory: what is proposed is not yet tried
        asked.add_trials(self._study.get_trials(deepcopy=False))
        if number == 0 and self.start:
            asked.enqueue_trial(self.start)
        return dict(asked.ask(self.space).params)

    def add(self, trial: Trial) -> None:
        """Keep a finished trial; one that was stopped, or measured nothing, counts as pruned.

        Raises:
            UserError: the file cannot be written.
        """
        import optuna

        best = trial.best()
        complete = best is not None and not trial.stopped
        kept = optuna.trial.create_trial(
            state=optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.PRUNED,
            params=trial.parameters,
            distributions=self.space,
            values=[best.rate, best.lost] if best and complete else None,
            user_attrs={"points": [point.model_dump() for point in trial.points], "stopped": trial.stopped},
        )
        try:
            self._study.add_trial(kept)
        except optuna.exceptions.StorageInternalError as error:
            raise UserError(f"{self.path} cannot be written: free some space and run again.") from error


def _distribution(values: tuple[Value, ...]) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not is_range(values):
        return CategoricalDistribution(values)
    low, high = values
    log = low > 0 and high / low >= DECADE  # type: ignore[operator]
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)  # type: ignore[arg-type]


def _within(value: Any, values: tuple[Value, ...]) -> bool:
    return bool(values[0] <= value <= values[1]) if is_range(values) else value in values
