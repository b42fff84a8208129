"""Rank of this process among several, from the environment that torchrun and `accelerate launch` set.

Several processes run the same program on the same data. All of them compute; only the main process prints and keeps the files
that it writes (:func:`tamperfuse.records.files.staged`).
"""

import os

from tamperfuse.records.errors import UserError


def rank() -> int:
    """Number of this process, from 0; 0 if there is only one.

    Raises:
        UserError: RANK is no number from 0 to WORLD_SIZE - 1.
    """
    number, processes = environment_number("RANK", 0, 0), world_size()
    if number >= processes:
        raise UserError(
            f"The environment variable RANK is {number}, but WORLD_SIZE says that there are {processes} processes: unset "
            "RANK, or start with `accelerate launch`."
        )
    return number


def world_size() -> int:
    """Number of processes, at least 1.

    Raises:
        UserError: WORLD_SIZE is no such number.
    """
    return environment_number("WORLD_SIZE", 1, 1)


def is_main() -> bool:
    """Whether this process writes and prints.

    Raises:
        UserError: RANK or WORLD_SIZE is not usable.
    """
    return rank() == 0


def environment_number(name: str, default: int, least: int) -> int:
    """An integer from the environment.

    Raises:
        UserError: the variable is no integer, or is less than `least`.
    """
    text = os.environ.get(name) or str(default)
    if not text.isascii() or not text.strip().isdigit() or len(text) > 9 or int(text) < least:
        raise UserError(
            f"The environment variable {name} is {text[:40]!r}, and must be a whole number from {least} on: unset or correct it."
        )
    return int(text)
