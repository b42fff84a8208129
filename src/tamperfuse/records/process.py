"""Which of several processes this is, as torchrun and `accelerate launch` say it in the environment.

Several processes run the same program on the same data. All of them compute; only the main one keeps what it writes
(:func:`tamperfuse.records.files.staged`) and prints.
"""

import os


def rank() -> int:
    """Number of this process, from 0; 0 where there is only one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes there are, at least 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0
