"""What `harden` and `attack` share: the resume state of a training, and what a component reports about its choices."""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tamperfuse.training.checkpoints import resumable

log = logging.getLogger("tamperfuse")


def print_notes(notes: Sequence[str]) -> None:
    """Print the choices that a component made by itself, with their reasons."""
    for note in notes:
        log.info("%s", note)


@contextmanager
def resumable_beside(out: Path, report_to: Sequence[str]) -> Iterator[Path]:
    """Keep the resume state of trainings in the folder `OUT.unfinished`, which is removed once the block ends well.

    Args:
        out: the folder of results, beside which it lies.
        report_to: trackers that trainings report to; their files go to `OUT.logs`.
    """
    unfinished = out.with_name(f"{out.name}.unfinished")
    with resumable(unfinished, report_to, out.with_name(f"{out.name}.logs")):
        yield unfinished
    shutil.rmtree(unfinished, ignore_errors=True)
