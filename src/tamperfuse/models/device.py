"""The device that a process computes on."""

import os

import torch

from tamperfuse.records.errors import UserError
from tamperfuse.records.process import environment_number


def own_device() -> torch.device:
    """This process's device: a GPU if there are any, otherwise the CPU.

    With several processes on a machine (LOCAL_RANK, LOCAL_WORLD_SIZE), each has its own GPU, or they share the CPU.

    Raises:
        UserError: there are more processes than GPUs, or than processor cores.
    """
    rank, processes = environment_number("LOCAL_RANK", 0, 0), environment_number("LOCAL_WORLD_SIZE", 1, 1)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    available, unit = (gpus, "GPUs") if gpus else (os.cpu_count() or 1, "processor cores")
    if processes > available:
        raise UserError(
            f"{processes} processes were started on a machine with {available} {unit}: lower num_processes in the "
            "accelerate configuration file."
        )
    return torch.device("cuda", rank) if gpus else torch.device("cpu")
