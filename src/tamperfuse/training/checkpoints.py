"""What an interrupted training goes on from.

Whoever trains as part of something larger opens a block; every `fit` within it keeps a checkpoint there by itself, so that
an attack that trains once, or twice in a row, need not know of it:

    with resumable(folder) as fits:          folder/fit-0.json            the first fit: of what, at which step, which file
        component.run(...)                   folder/fit-0-step-120.pt     its state
                                             folder/fit-1.json …          the second

Each file is written aside and renamed, the state before the json that names it, so a `kill -9` at any moment leaves the
last checkpoint whole. The state is read with `weights_only` after its SHA-256 was checked. In the same environment and with
as many threads, what is resumed ends with the same weights to the bit.
"""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import clear_staging, read_json, sha256_of, staged, write_json
from tamperfuse.records.process import is_main
from tamperfuse.training.parameters import Trainable
from tamperfuse.training.result import FitResult

#: Seconds of wall time between two checkpoints.
INTERVAL = 300.0


@dataclass
class Fits:
    """The trainings of one block.

    Attributes:
        folder: where their checkpoints lie; None to keep none.
        report_to: trackers that they report to.
        logs: where those trackers write that write files.
        results: what each did, in order.
        begun: how many have begun.
    """

    folder: Path | None = None
    report_to: Sequence[str] = ()
    logs: Path | None = None
    results: list[FitResult] = field(default_factory=list)
    begun: int = 0


_current: ContextVar[Fits | None] = ContextVar("fits", default=None)


@contextmanager
def resumable(folder: Path | None, report_to: Sequence[str] = (), logs: Path | None = None) -> Iterator[Fits]:
    """Within the block every fit keeps its checkpoint in `folder` and goes on from the one that it finds there.

    Args:
        folder: made when the first checkpoint is written; its owner removes it when the work is done. It belongs to one
            piece of work: fits are told apart by their order.
        report_to: trackers that fits report to (:data:`tamperfuse.training.telemetry.REPORTERS`).
        logs: where those trackers write that write files.
    """
    fits = Fits(folder, report_to, logs)
    token = _current.set(fits)
    try:
        yield fits
    finally:
        _current.reset(token)


def current() -> Fits:
    """The block that the caller is in; one without a folder if in none."""
    return _current.get() or Fits()


@dataclass
class Checkpoints:
    """The checkpoint of one fit.

    Attributes:
        folder: where it lies.
        name: of the fit within the folder.
        of: what the fit depends on, JSON-able; a checkpoint of anything else is refused.
    """

    folder: Path
    name: str
    of: dict[str, Any]
    _last: float = field(default_factory=time.monotonic)

    def load(self) -> dict[str, Any] | None:
        """The state that was kept last, its tensors on the CPU; None where there is none.

        Raises:
            UserError: it is of another training, model or version, or damaged.
        """
        if is_main():
            clear_staging(self.folder)  # a kill in the first checkpoint leaves a part of it and no record
        record = self.folder / f"{self.name}.json"
        if not record.exists():
            return None
        found = read_json(record)
        check_same(record, found["of"], self.of)
        path = self.folder / found["file"]
        if not path.is_file() or sha256_of(path) != found["sha256"]:
            raise UserError(f"The checkpoint {path} is damaged: remove {self.folder} to begin anew.")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return state

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is an interval old."""
        return time.monotonic() - self._last >= INTERVAL

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Replace the checkpoint; on the main process alone. Disk: the old one and the new one together.

        Raises:
            UserError: the disk is full; the old checkpoint is whole.
        """
        if is_main():
            path = self.folder / f"{self.name}-step-{step}.pt"
            with staged(path) as staging, staging.open("wb") as stream:
                torch.save(state, stream)
            about = {"step": step, "file": path.name, "sha256": sha256_of(path), "of": self.of}
            write_json(self.folder / f"{self.name}.json", about)
            for old in self.folder.glob(f"{self.name}-step-*.pt"):
                if old != path:
                    old.unlink()
        self._last = time.monotonic()


def check_same(place: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """What was begun must be what is asked for now.

    Raises:
        UserError: they differ; the first difference is named.
    """
    before, now = _flat(found), _flat(wanted)
    for name in [*now, *before]:
        if before.get(name) != now.get(name):
            raise UserError(
                f"{place} was kept by other work ({name} was {before.get(name)!r} and is {now.get(name)!r}): "
                f"run the command that began it, or remove {place.parent} to begin anew."
            )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def fingerprint(loaded: LoadedModel, samples: Sequence[Trainable]) -> dict[str, str]:
    """Hashes of a model's weights and of what it is trained on. Takes a tenth of a second a gigabyte."""
    weights, data = xxhash.xxh3_128(), xxhash.xxh3_128()
    for parameter in loaded.model.parameters():
        weights.update(memoryview(parameter.detach().cpu().contiguous().flatten().numpy()))
    for sample in samples:
        data.update(np.asarray([sample.response_tokens, *sample.tokens], dtype=np.int64).data)
    return {"weights": weights.hexdigest(), "samples": data.hexdigest()}


def random_state() -> dict[str, Any]:
    """The state of every generator that training may draw from."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Go back to what :func:`random_state` gave."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
