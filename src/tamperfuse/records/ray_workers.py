"""What every use of Ray checks and sets before it connects to a cluster."""

import os
from importlib.util import find_spec

from tamperfuse.records.errors import UserError


def prepare_ray() -> None:
    """Check that Ray is installed, and let the workers that it starts on this machine have the priority of this process.

    With Ray's own setting, a niceness of 15, they starve beside other work.

    Raises:
        UserError: Ray is not installed.
    """
    if find_spec("ray") is None:
        raise UserError("--executor ray needs Ray: pip install 'tamperfuse[ray]'.")
    os.environ.setdefault("RAY_worker_niceness", "0")
