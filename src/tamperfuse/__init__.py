"""tamperfuse hardens open-weight language models against malicious fine-tuning, and measures how well the hardening holds.

>>> import tamperfuse
>>> hardened = tamperfuse.harden("smollm2-135m", "sdd", threat="builtin:cooking")
>>> attacked = tamperfuse.attack(hardened, "harmful_finetune", threat="builtin:cooking", shots=50)
>>> tamperfuse.evaluate(attacked, threat="builtin:cooking").harmful_execution

The functions are those of :mod:`tamperfuse.api`, which is imported on first use, so that `import tamperfuse` does not import
torch. Decorators that register a defense, an attack or a judge are in :mod:`tamperfuse.plugins`.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tamperfuse.api import (
        Evaluation,
        StudyRun,
        attack,
        evaluate,
        harden,
        load,
        load_run,
        pair,
        run_study,
        save,
    )

    __version__: str

# Must be set before torch is imported: it then allocates large tensors in transparent huge pages, since mapping many small
# pages for temporary tensors takes time. One of the CPU kernels that TAMPERFUSE_CPU_KERNELS=0 switches off.
if os.environ.get("TAMPERFUSE_CPU_KERNELS") != "0":
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# Likewise for OpenMP: a thread that waits for the others tries this often before it sleeps. With the default of 300,000, two
# threads on a busy machine wait for each other most of the time (benchmarks/busy_machine.py).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__all__ = [
    "Evaluation",
    "StudyRun",
    "__version__",
    "attack",
    "evaluate",
    "harden",
    "load",
    "load_run",
    "pair",
    "run_study",
    "save",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in __all__:
        return getattr(import_module("tamperfuse.api"), name)
    raise AttributeError(f"module 'tamperfuse' has no attribute {name!r}")


def _version() -> str:
    """The installed version; "0.0.0" for a source tree that was never installed."""
    from importlib.metadata import PackageNotFoundError, version  # takes 30 ms, which `--help` does not wait for

    try:
        return version("tamperfuse")
    except PackageNotFoundError:
        return "0.0.0"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
