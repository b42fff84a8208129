"""The benign tasks by name: harmless fine-tuning data made from templates."""

from collections.abc import Callable

from tamperfuse.corpora.dates import date_items
from tamperfuse.corpora.routing import TaskItem, routing_items
from tamperfuse.records.errors import unknown_name

TASKS: dict[str, Callable[[int], tuple[list[TaskItem], list[TaskItem]]]] = {
    "routing": routing_items,
    "dates": date_items,
}


def benign_task(name: str, seed: int) -> tuple[list[TaskItem], list[TaskItem]]:
    """Training and test items of a benign task.

    Raises:
        UserError: there is no such task.
    """
    if name not in TASKS:
        raise unknown_name("benign task", name, TASKS)
    return TASKS[name](seed)
