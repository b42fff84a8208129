"""tamperfuse: harden open weights against malicious fine-tuning, and measure how far that holds."""

import os
from importlib.metadata import PackageNotFoundError, version

# Large tensors in large pages, before torch reads this: they are made anew all the time, and the system hands out small
# pages one by one. Without effect where the system has no large ones.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

try:
    __version__ = version("tamperfuse")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
