"""Checkpoints from which an interrupted training resumes.

Code that trains as part of a larger piece of work opens a block; every `fit` within it writes its checkpoints there, so
defenses and attacks need no code of their own for resuming:

    with resumable(folder) as block:         folder/fit-0.json            first fit: its identity, step and state file
        component.run(...)                   folder/fit-0-step-120.pt     its state
                                             folder/fit-1.json …          second fit

Each file is written under a temporary name and renamed, the state before the JSON file that refers to it, so a `kill -9` at
any time leaves the last checkpoint intact. The state is loaded with `weights_only=True` after its SHA-256 was verified. In the
same environment and with the same number of threads, a resumed training ends with bit-identical weights.
"""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from tamperfuse.models.load import LoadedModel
from tamperfuse.models.sharded import gather_objects, is_sharded, local_shard
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import clear_staging, content_hash, read_json, sha256_of, staged, write_json
from tamperfuse.records.process import is_main
from tamperfuse.records.registry import PLAIN_COPIES
from tamperfuse.training.parameters import Trainable
from tamperfuse.training.result import FitResult

#: Seconds of wall time between two checkpoints.
INTERVAL = 300.0


@dataclass
class TrainingBlock:
    """The trainings of one block.

    Attributes:
        folder: where their checkpoints are written; None for no checkpoints.
        work: what the block's result depends on, JSON-able; part of the identity of every training.
        memory_copies: copies of the weights in float32 that a training holds, as in :class:`~tamperfuse.records.registry.Budget`.
        report_to: trackers that they report to.
        logs: log folder for trackers that write files.
        results: the results of the completed trainings, in order.
        started: number of trainings started.
    """

    folder: Path | None = None
    report_to: Sequence[str] = ()
    logs: Path | None = None
    work: Mapping[str, Any] = field(default_factory=dict)
    memory_copies: int = PLAIN_COPIES
    results: list[FitResult] = field(default_factory=list)
    started: int = 0


_current: ContextVar[TrainingBlock | None] = ContextVar("training_block", default=None)


@contextmanager
def resumable(
    folder: Path | None,
    report_to: Sequence[str] = (),
    logs: Path | None = None,
    work: Mapping[str, Any] | None = None,
    memory_copies: int = PLAIN_COPIES,
) -> Iterator[TrainingBlock]:
    """Within the block, every fit writes checkpoints to `folder` and resumes from the one it finds there.

    Args:
        folder: created with the first checkpoint; the caller removes it when the work is complete. It must belong to one
            piece of work, since trainings are identified by their order in it. None for no checkpoints.
        report_to: trackers that trainings report to (:data:`tamperfuse.training.telemetry.REPORTERS`).
        logs: log folder for trackers that write files.
        work: what the block's result depends on beyond its trainings, JSON-able, such as the parameters of a defense. A
            checkpoint of other work is refused.
        memory_copies: copies of the weights in float32 that a training holds, by which gradient checkpointing is chosen.
    """
    block = TrainingBlock(folder, report_to, logs, work or {}, memory_copies)
    token = _current.set(block)
    try:
        yield block
    finally:
        _current.reset(token)


def current_block() -> TrainingBlock:
    """The innermost open block; outside of any, a new one without a folder."""
    return _current.get() or TrainingBlock()


@dataclass
class Checkpoints:
    """The checkpoints of one training; a new one replaces the last.

    Attributes:
        folder: where they are written.
        name: of the training within the folder.
        identity: what the training's result depends on, JSON-able; a checkpoint with another identity is refused.
    """

    folder: Path
    name: str
    identity: dict[str, Any]
    _last_save: float = field(default_factory=time.monotonic)

    def load(self) -> dict[str, Any] | None:
        """The last state, with tensors on the CPU; None if there is no checkpoint.

        Raises:
            UserError: the checkpoint belongs to another training, model or version, or is damaged.
        """
        if is_main():
            clear_staging(self.folder)  # left by a process that was killed while it wrote its first checkpoint
        record_file = self.folder / f"{self.name}.json"
        if not record_file.exists():
            return None
        record = read_json(record_file)
        if not isinstance(record, dict) or not isinstance(record.get("of"), dict):
            raise _damaged(record_file)
        check_same(record_file, record["of"], self.identity)
        file = record.get("file")
        path = self.folder / (file if isinstance(file, str) and Path(file).name == file else "")
        if not path.is_file() or sha256_of(path) != record.get("sha256"):
            raise _damaged(path)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # the unpickler raises various exceptions
            raise _damaged(path) from error
        if not isinstance(state, dict):
            raise _damaged(path)
        return state

    @property
    def due(self) -> bool:
        """Whether the interval has passed since the last checkpoint."""
        return time.monotonic() - self._last_save >= INTERVAL

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Replace the checkpoint. Only the main process writes. Disk: the old and the new checkpoint at the same time.

        Raises:
            UserError: the disk is full; the old checkpoint remains.
        """
        if is_main():
            path = self.folder / f"{self.name}-step-{step}.pt"
            with staged(path) as staging, staging.open("wb") as stream:
                torch.save(state, stream)
            record = {"step": step, "file": path.name, "sha256": sha256_of(path), "of": self.identity}
            write_json(self.folder / f"{self.name}.json", record)
            for old in self.folder.glob(f"{self.name}-step-*.pt"):
                if old != path:
                    old.unlink()
        self._last_save = time.monotonic()


def _damaged(path: Path) -> UserError:
    return UserError(f"The checkpoint {path} is damaged: remove {path.parent} to start from the beginning.")


def check_same(place: Path, recorded: dict[str, Any], current: dict[str, Any]) -> None:
    """Check that a record belongs to the current work.

    Args:
        place: the file or folder of the record, for the message.
        recorded: the identity in the record.
        current: the identity of the current work.

    Raises:
        UserError: they differ; the message names the first difference.
    """
    before, now = _flat(recorded), _flat(current)
    for name in [*now, *before]:
        if before.get(name) != now.get(name):
            raise UserError(
                f"{place} belongs to other work ({name} was {before.get(name)!r} and is {now.get(name)!r}): "
                f"repeat the command that wrote it, or remove {place.parent} to start from the beginning."
            )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names; tuples become lists, as in JSON."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def fingerprint(loaded: LoadedModel, samples: Sequence[Trainable]) -> dict[str, str]:
    """Hashes of a model's weights, in all shards if it is sharded, and of its training samples. Takes about 0.1 s per gigabyte.

    Of a sample that is a dataclass every field counts, apart from real numbers and tensors: these are computed with a model,
    such as the margin of a preference, so they follow from the weights and the tokens, up to rounding.
    """
    weights, data = xxhash.xxh3_128(), xxhash.xxh3_128()
    for parameter in loaded.model.parameters():
        weights.update(local_shard(parameter).cpu().contiguous().flatten().numpy().data)
    for sample in samples:
        data.update(np.asarray([sample.response_tokens, *sample.tokens], dtype=np.int64).data)
        data.update(repr(discrete_values(sample)).encode())
    shards = gather_objects(weights.hexdigest()) if is_sharded(loaded.model) else []
    return {"weights": content_hash(shards) if shards else weights.hexdigest(), "samples": data.hexdigest()}


def discrete_values(value: Any) -> Any:
    """The integers, booleans and strings in a value, in nested tuples: dataclasses by field, sequences by item."""
    if isinstance(value, bool | int | str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return tuple((part.name, discrete_values(getattr(value, part.name))) for part in fields(value))
    if isinstance(value, list | tuple):
        return tuple(value) if all(isinstance(item, int) for item in value) else tuple(map(discrete_values, value))
    return None


def random_state() -> dict[str, Any]:
    """The state of every random number generator that training may use."""
    algorithm, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [algorithm, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore a state that :func:`random_state` returned."""
    random.setstate(state["python"])
    algorithm, keys, *rest = state["numpy"]
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
