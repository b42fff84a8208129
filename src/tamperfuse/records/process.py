"""Rank of this process among several, from the environment that torchrun and `accelerate launch` set.

Several processes run the same program on the same data. All of them compute; only the main process prints and keeps the files
that it writes (:func:`tamperfuse.records.files.staged`).
"""

import os


def rank() -> int:
    """Number of this process, from 0; 0 if there is only one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes, at least 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes and prints."""
    return rank() == 0
