"""tamperfuse: harden open weights against malicious fine-tuning, and measure how far that holds."""

import os
from importlib.metadata import PackageNotFoundError, version

# Must be set before torch is imported: it then allocates large tensors in transparent huge pages, since mapping many small
# pages for temporary tensors takes time. One of the CPU kernels that TAMPERFUSE_CPU_KERNELS=0 switches off.
if os.environ.get("TAMPERFUSE_CPU_KERNELS") != "0":
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

try:
    __version__ = version("tamperfuse")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
