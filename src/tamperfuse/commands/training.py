"""What `harden` and `attack` share: how a model is loaded, the resume state of a training, and a component's notes."""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tamperfuse.models.finite import Diverged
from tamperfuse.records.files import LOGS, UNFINISHED, beside
from tamperfuse.records.process import world_size
from tamperfuse.records.registry import Budget, Component, Parameters
from tamperfuse.training.checkpoints import resumable
from tamperfuse.training.distributed import sharding

log = logging.getLogger("tamperfuse")


def print_notes(notes: Sequence[str]) -> None:
    """Print the choices that a component made by itself, with their reasons."""
    for note in notes:
        log.info("%s", note)


def work_of(component: Component[Any, Any], parameters: Parameters, seed: int) -> dict[str, Any]:
    """What identifies the training of a defense or an attack: the component, its parameters and the seed, JSON-able."""
    return {"component": [*component.identity, seed], "parameters": parameters.model_dump(mode="json")}


def in_shards(budget: Budget) -> bool:
    """Whether to load a model in shards: FSDP2 is configured for several processes, and what is done to the model is a training.

    What changes weights without training, such as pruning, works on whole matrices.
    """
    return budget.trains and world_size() > 1 and sharding() == "fsdp"


@contextmanager
def resumable_beside(out: Path, report_to: Sequence[str], work: Mapping[str, Any], budget: Budget) -> Iterator[Path]:
    """Keep the resume state of trainings in `OUT.unfinished`, which is removed when the block succeeds or a training diverges.

    Args:
        out: the folder of results, beside which it lies; inside it where it is a mount point or the current directory.
        report_to: trackers that trainings report to; their files go to `OUT.logs`.
        work: what the result depends on beyond the trainings, as :func:`work_of` returns it. A resume state of other work is
            refused.
        budget: of the training.
    """
    unfinished = beside(out, UNFINISHED)
    with resumable(unfinished, report_to, beside(out, LOGS), work, budget.memory_copies):
        try:
            yield unfinished
        except Diverged:  # it would diverge again, and lie in the way of the same work with other parameters
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    shutil.rmtree(unfinished, ignore_errors=True)
