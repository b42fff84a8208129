"""Capability C: the mean over tasks of (accuracy − chance) / (accuracy as shipped − chance)."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from tamperfuse.records.errors import UserError
from tamperfuse.records.summary import Measure
from tamperfuse.study.results.intervals import Floats, Statistic, bootstrap
from tamperfuse.study.results.measurements import Measurements
from tamperfuse.study.tables import ItemRow


@dataclass(frozen=True)
class CapabilityItems:
    """Items that several model states answered; the first state is the model as shipped.

    Attributes:
        right: (states, items), 1 or 0.
        task: (items,), number of the task.
        chance: (items,), probability of a right guess.
        groups: (items,), number of the template; items without one are groups of their own.
    """

    right: Floats
    task: NDArray[np.int64]
    chance: Floats
    groups: NDArray[np.int64]

    @classmethod
    def align(cls, answers: Sequence[Sequence[ItemRow]], steps: Sequence[int]) -> "CapabilityItems":
        """Items that all states answered, each state at its own step.

        Args:
            answers: of each state; the first are those of the model as shipped.
            steps: one for each state.
        """
        tables = [
            {(i.task, i.item): float(i.correct) for i in rows if i.step == step}
            for rows, step in zip(answers, steps, strict=True)
        ]
        shared = sorted(set.intersection(*(set(table) for table in tables)))
        rows = {(i.task, i.item): i for i in answers[0]}
        tasks = sorted({task for task, _ in shared})
        names = [f"{task}/{rows[task, item].group or item}" for task, item in shared]
        numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
        return cls(
            right=np.array([[table[key] for key in shared] for table in tables], dtype=np.float64),
            task=np.array([tasks.index(task) for task, _ in shared], dtype=np.int64),
            chance=np.array([rows[key].chance for key in shared], dtype=np.float64),
            groups=np.array([numbers[name] for name in names], dtype=np.int64),
        )

    def table(self) -> Floats:
        """(items, states × tasks): right − chance in the columns of the item's task, 0 in the others."""
        return self._by_task((self.right - self.chance).T)

    def capability(self, sums: Floats) -> Floats:
        """(…, states × tasks) column sums of :meth:`table` → (…, states) C; not-a-number if the model as shipped guesses."""
        above = sums.reshape(*sums.shape[:-1], len(self.right), -1)
        shipped = above[..., :1, :]
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.where(shipped > 0, above / shipped, np.nan)
        return np.asarray(shares.mean(axis=-1))

    def extremes(self, signs: Sequence[int]) -> tuple[Floats, Floats]:
        """Column sums of :meth:`table` that make a statistic smallest and largest, for :func:`bootstrap`.

        Args:
            signs: for each state +1 if the statistic rises with its C, −1 if it falls, 0 to leave the state as measured.
        """
        direction = np.array(signs)[:, None]
        smallest, largest = (
            self._by_task((np.where(sign * direction == 0, self.right, sign * direction < 0) - self.chance).T)
            for sign in (1, -1)
        )
        return smallest.sum(axis=0), largest.sum(axis=0)

    def measure(self, statistic: Statistic, signs: Sequence[int], *, difference: bool) -> Measure:
        """A statistic of the states' C with its interval, clustered by template.

        Args:
            statistic: (…, states) C → (…).
            signs: see :meth:`extremes`.
            difference: see :func:`bootstrap`.
        """
        return bootstrap(
            self.table(),
            lambda sums: statistic(self.capability(sums)),
            difference=difference,
            groups=self.groups,
            extremes=self.extremes(signs),
        )

    def _by_task(self, values: Floats) -> Floats:
        """(items, states) → (items, states × tasks)."""
        tasks = int(self.task.max(initial=-1)) + 1
        member = self.task[:, None] == np.arange(tasks)
        return np.asarray((values[:, :, None] * member[:, None, :]).reshape(len(values), -1))


def capability(states: Sequence[Measurements], steps: Sequence[int], shipped: Measurements) -> Measure:
    """C of one model state.

    Args:
        states: the same state with every seed.
        steps: at which capability was measured, one for each.
        shipped: the model as shipped, measured on the same items.
    """
    items = CapabilityItems.align([state.items for state in (shipped, *states)], [0, *steps])
    return items.measure(lambda c: c[..., 1:].mean(axis=-1), [0, *(1 for _ in states)], difference=False)


def capability_value(states: Sequence[Measurements], steps: Sequence[int], shipped: Measurements) -> float:
    """C of one model state without an interval; arguments as for :func:`capability`."""
    items = CapabilityItems.align([state.items for state in (shipped, *states)], [0, *steps])
    return float(items.capability(items.table().sum(axis=0))[1:].mean())


def guessed_tasks(shipped: Sequence[ItemRow]) -> tuple[str, ...]:
    """A sentence for each task at which the model as shipped is no better than guessing, so that C is undefined."""
    sentences = []
    for task in sorted({item.task for item in shipped}):
        items = [item for item in shipped if item.task == task]
        accuracy, chance = fmean(float(item.correct) for item in items), fmean(item.chance for item in items)
        if accuracy <= chance:
            sentences.append(
                f"Capability is undefined, since the model as shipped is no better than guessing at the task {task!r} "
                f"({accuracy:.1%} of {len(items)} items, guessing {chance:.1%}): leave it out, or raise `capability_items`."
            )
    return tuple(sentences)


def capability_lost(
    items: Sequence[ItemRow], step: int, shipped: Sequence[ItemRow], undefended: Sequence[ItemRow]
) -> float:
    """1 − C / C(undefended before any attack), on the items that all three answered.

    Raises:
        UserError: the model as shipped is no better than guessing at a task, or the undefended model at all of them.
    """
    aligned = CapabilityItems.align([shipped, undefended, items], [0, 0, step])
    _, reference, attacked = aligned.capability(aligned.table().sum(axis=0))
    if not reference > 0:
        raise UserError(
            " ".join(guessed_tasks(shipped))
            or "The undefended model is no better than guessing at the capability tasks, so no loss of capability can be "
            "measured: use easier tasks, or more `capability_items`."
        )
    return float(1 - attacked / reference)
