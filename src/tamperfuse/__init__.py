"""tamperfuse: harden open weights against malicious fine-tuning, and measure how far that holds."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("tamperfuse")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
