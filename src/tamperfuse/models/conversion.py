"""GGUF files are converted once, into the cache.

The conversion holds a lock, writes to a temporary folder that is renamed when it is complete, and records the checksum of the
weights. Two processes may request it at the same time, and an interrupted conversion leaves nothing behind.
"""

import errno
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from tamperfuse.models.bundled import MODELS
from tamperfuse.models.checks import WEIGHTS
from tamperfuse.models.gguf_file import read_gguf
from tamperfuse.models.sharded import is_sharded
from tamperfuse.models.sharded_saving import save_sharded
from tamperfuse.records.cache import cache_folder, locked_cache
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import clear_staging, content_hash, read_json, sha256_of, staged, write_json
from tamperfuse.records.process import is_main
from tamperfuse.records.provenance import FILE, Provenance, write_provenance

log = logging.getLogger("tamperfuse")

WAIT = 600  # seconds that other processes wait for the main one
VERSION = 2  # of the conversion: raise it when its weights or its tokenizer change
CHECKSUM = "sha256.json"


def convert_gguf(path: Path, name: str) -> Path:
    """Convert a GGUF into a safetensors directory in the cache, unless it is there already.

    Args:
        path: the .gguf file.
        name: the origin to record in tamperfuse.json.

    Raises:
        UserError: the file cannot be read as a GGUF of a supported architecture, or the cache cannot be written.
    """
    status = path.stat()
    key = content_hash([str(path.resolve()), status.st_size, status.st_mtime_ns, VERSION])[:16]
    folder = cache_folder() / f"{path.stem}-{key}"
    if not is_main():
        _wait_for_main(folder, path)
    with locked_cache(folder.with_name(f"{folder.name}.lock")):
        if not _is_complete(folder):
            clear_staging(folder.parent, folder.name)  # left by a conversion that was killed
            log.info(
                "Converting %s into the cache %s; this is done once and takes about half a minute …", path.name, folder
            )
            with staged(folder, directory=True) as staging:
                _convert(path, name, staging)
    return folder


def _wait_for_main(folder: Path, path: Path) -> None:
    """Wait until the main process has converted a file: the others write nothing.

    Raises:
        UserError: it has not within :data:`WAIT` seconds, as on another machine, where the cache is another folder.
    """
    deadline = time.monotonic() + WAIT
    while not _is_complete(folder):
        if time.monotonic() > deadline:
            raise UserError(
                f"The main process has not converted {path} into the cache {folder.parent}: convert it first on each machine, by "
                "a command in a single process, or use a safetensors checkpoint."
            )
        time.sleep(0.2)


def _convert(path: Path, name: str, staging: Path) -> None:
    with quiet():
        model, tokenizer = read_gguf(path)
        save_weights(model, staging, "100GB")
        tokenizer.save_pretrained(staging)
    write_provenance(
        staging, Provenance(origin=absolute_name(name), made_by="gguf conversion", source=absolute_name(name))
    )
    weights = staging / WEIGHTS
    write_json(staging / CHECKSUM, {"weights": sha256_of(weights), "bytes": weights.stat().st_size})


def converted_fingerprint(folder: Path) -> str:
    """The checksum of a conversion's weights, which was verified when it was made; "" of any other folder."""
    return str(read_json(folder / CHECKSUM)["weights"]) if folder.parent == cache_folder() else ""


def _is_complete(folder: Path) -> bool:
    """Whether a conversion is complete: all files exist and the weights have the recorded size."""
    if not all((folder / file).exists() for file in (WEIGHTS, CHECKSUM, FILE)):
        return False
    try:
        record = read_json(folder / CHECKSUM)
    except UserError:  # damaged: the conversion is repeated
        return False
    size = (folder / WEIGHTS).stat().st_size
    return isinstance(record, dict) and isinstance(record.get("weights"), str) and record.get("bytes") == size


def save_weights(model: PreTrainedModel, folder: Path, shard: str, dtype: torch.dtype | None = None) -> None:
    """Save weights and configuration, with the permissions of new files.

    safetensors lets only the owner read its files; the weights receive the mode of config.json, which the umask decides. An error
    of safetensors is raised as an OSError with its errno, so a full disk is reported as such.

    Args:
        model: the model. If it is sharded, every process calls this function, and the main one writes.
        folder: to write to.
        shard: most bytes of a file, such as "5GB"; that of a sharded model is fixed.
        dtype: of the weights that are written of a sharded model; None for the model's, which it is otherwise.
    """
    try:
        if is_sharded(model):
            save_sharded(model, folder, dtype or model.dtype)
        else:
            model.save_pretrained(folder, max_shard_size=shard)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error
    if is_sharded(model) and not is_main():
        return
    mode = (folder / "config.json").stat().st_mode
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)


def absolute_name(name: str) -> str:
    """A model's name that means the same from any folder: a local path made absolute, other names as they are."""
    if name in MODELS or not Path(name).exists() or not name:
        return name
    return str(Path(name).resolve())


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and log messages."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
