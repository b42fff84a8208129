"""Which device a process computes on."""

import os

import torch

from tamperfuse.records.errors import UserError


def own_device() -> torch.device:
    """The best device there is; of several processes on a machine each has a GPU of its own, or they share the CPU.

    Raises:
        UserError: more processes were started than there are GPUs, or cores.
    """
    place, processes = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there, what = (gpus, "GPUs") if gpus else (os.cpu_count() or 1, "processor cores")
    if processes > there:
        raise UserError(
            f"{processes} processes were started on a machine with {there} {what}: lower num_processes in the accelerate file."
        )
    return torch.device("cuda", place) if gpus else torch.device("cpu")
