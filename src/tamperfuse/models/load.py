"""Loading and saving models: a Hub id, a local directory, a .gguf file or a bundled name.

A GGUF file is converted once, into a cache. The conversion holds a lock, writes to a temporary folder that is renamed when it
is complete, and records the checksum of the weights. Two processes may request it at the same time, and an interrupted
conversion leaves nothing behind.
"""

import errno
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from tamperfuse.models.adapter import base_of, merged
from tamperfuse.models.bundled import MODELS
from tamperfuse.models.chat import Chat
from tamperfuse.models.checks import check_config, check_files, check_loading, check_model, check_types, is_adapter
from tamperfuse.models.device import own_device
from tamperfuse.models.gguf_file import read_gguf
from tamperfuse.models.packed import use_packed_attention
from tamperfuse.models.quantized import dequantized, prepare_dequantization
from tamperfuse.records.errors import UserError, unknown_name
from tamperfuse.records.files import clear_staging, content_hash, read_json, sha256_of, staged, write_json
from tamperfuse.records.process import is_main
from tamperfuse.records.provenance import FILE, Provenance, read_provenance, write_provenance

log = logging.getLogger("tamperfuse")

WEIGHTS = "model.safetensors"
CHECKSUM = "sha256.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


@dataclass
class LoadedModel:
    """A model that is ready to run, with its chat template.

    Attributes:
        name: the name it was loaded by.
        model: the model on its device, in float32, in evaluation mode, with packed attention.
        chat: its chat template.
        origin: name of the model before hardening, from its tamperfuse.json; `name` if it has none.
        provenance: the defense or attack that changed the weights since the model was loaded; None if none did.
        base: if `name` is a peft adapter, the model that it was merged into; "" otherwise.
    """

    name: str
    model: PreTrainedModel
    chat: Chat
    origin: str
    provenance: Provenance | None = None
    base: str = ""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer."""
        return self.chat.tokenizer

    @property
    def window(self) -> int:
        """Maximum sequence length, in tokens."""
        return context_window(self.model.config)


def context_window(config: PretrainedConfig) -> int:
    """Maximum sequence length of a model, in tokens; a large number if its configuration has none."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 20)


def load_model(name: str, *, trust_remote_code: bool = False) -> LoadedModel:
    """Load a causal language model with its tokenizer.

    Args:
        name: a bundled name, a local directory, a .gguf file, or a Hub id.
        trust_remote_code: whether to run code from the model's repository; only if the user allowed it for this model.

    Returns:
        The model in float32, on this process's device.

    Raises:
        UserError: the model does not exist, cannot be read, has only pickled weights, or has no chat template; its weights are
            not those of its architecture, or not finite; its tokenizer has tokens without embeddings.
    """
    folder = resolve_model(name)
    with quiet(), errors_explained(name, folder):
        model = _read_model(name, folder, trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_source(name), trust_remote_code=trust_remote_code)
        check_model(model, tokenizer, str(folder or name))
        model.to(own_device())
        model.eval()
        chat = Chat.of(tokenizer, _end_tokens(model))
        if (
            tokenizer.pad_token_id is None
        ):  # packed batches need none, but other programs that load the saved checkpoint may
            tokenizer.pad_token_id = chat.end
        use_packed_attention(model)
    provenance = read_provenance(folder) if folder else None
    return LoadedModel(
        name=name,
        model=model,
        chat=chat,
        origin=provenance.origin if provenance else name,
        base=base_of(folder) if folder and is_adapter(folder) else "",
    )


def _read_model(name: str, folder: Path | None, trust_remote_code: bool) -> PreTrainedModel:
    """The model in float32 on the CPU; of a peft adapter, its base model with the adapter merged."""
    if folder and is_adapter(folder):
        return merged(folder, lambda base: _read_base(base, trust_remote_code))
    source = place = str(folder or name)
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    prepare_dequantization(config, place)
    check_config(config, place)
    if folder and getattr(config, "quantization_config", None) is None:
        check_types(folder)
    model, info = AutoModelForCausalLM.from_pretrained(
        source,
        config=config,
        # A configuration may name an attention implementation that is not installed; packed attention replaces it.
        attn_implementation="eager" if getattr(config, "_attn_implementation", None) else None,
        dtype=torch.float32,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # so that the names are known
        output_loading_info=True,
        trust_remote_code=trust_remote_code,
    )
    check_loading(info, place)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(f"{name} is a peft adapter on the Hub: download it, and name its folder.")
    return dequantized(model, place)


def _read_base(name: str, trust_remote_code: bool) -> PreTrainedModel:
    """The base model of an adapter, which must not be an adapter itself."""
    folder = resolve_model(name)
    if folder and is_adapter(folder):
        raise UserError(f"{folder} is itself a peft adapter")
    with errors_explained(name, folder):
        return _read_model(name, folder, trust_remote_code)


def tokenizer_source(name: str) -> str:
    """The folder or Hub id of a model's configuration and tokenizer: of a peft adapter without a tokenizer, its base model's."""
    folder = resolve_model(name)
    if folder and is_adapter(folder):
        has_tokenizer = any((folder / file).exists() for file in TOKENIZER_FILES)
        return str(folder) if has_tokenizer else tokenizer_source(base_of(folder))
    return str(folder or name)


def _end_tokens(model: PreTrainedModel) -> set[int]:
    """The tokens that end generation, of generation_config.json and of config.json."""
    entries: set[Any] = set()
    for config in (model.generation_config, model.config.get_text_config()):
        value = getattr(config, "eos_token_id", None)
        entries |= set(value if isinstance(value, list | tuple) else [value])
    return {token for token in entries if isinstance(token, int) and token >= 0}


def save_model(loaded: LoadedModel, folder: Path, provenance: Provenance) -> None:
    """Write a checkpoint that transformers can load: safetensors, tokenizer, chat template, tamperfuse.json.

    The folder is written completely or not at all. Weights are written in float32.
    """
    with staged(folder, directory=True) as staging:
        write_checkpoint(loaded, staging, provenance)


def write_checkpoint(loaded: LoadedModel, folder: Path, provenance: Provenance) -> None:
    """As :func:`save_model`, into an existing folder that the caller stages. Only the main process writes."""
    if not is_main():
        return
    with quiet():
        _save_weights(loaded.model, folder, "5GB")
        loaded.tokenizer.save_pretrained(folder)
    names = {"origin": absolute_name(provenance.origin), "base": absolute_name(provenance.base or loaded.base)}
    write_provenance(folder, provenance.model_copy(update=names))


def absolute_name(name: str) -> str:
    """A model's name that means the same from any folder: a local path made absolute, other names as they are."""
    if name in MODELS or not Path(name).exists() or not name:
        return name
    return str(Path(name).resolve())


ORIGIN_ADVICE = "put the model back there, or write its new path into that file"


def reference_name(
    loaded: LoadedModel, reference: str | None, advice: str = "name the model before hardening with --reference"
) -> str:
    """The model before hardening: as the user names it, or the origin of a checkpoint.

    Args:
        loaded: the model.
        reference: the name that the user gave; None for the model's origin.
        advice: how to mend an origin that does not exist.

    Raises:
        UserError: the origin is a local path that does not exist (any more).
    """
    return reference if reference is not None else _existing_origin(loaded.name, loaded.origin, advice)


def origin_of(name: str) -> str:
    """The model before hardening of a checkpoint, from its tamperfuse.json; the name itself if it has none.

    Raises:
        UserError: it is a local path that does not exist (any more), or there is no model of that name.
    """
    folder = resolve_model(name)
    provenance = read_provenance(folder) if folder else None
    if provenance is None:
        return name
    return _existing_origin(name, provenance.origin, ORIGIN_ADVICE)


def _existing_origin(name: str, origin: str, advice: str) -> str:
    if Path(origin).is_absolute() and not Path(origin).exists():
        raise UserError(f"{name} was made from {origin} (see its {FILE}), which does not exist: {advice}.")
    return origin


def resolve_model(name: str) -> Path | None:
    """The directory with a model's weights, after converting a GGUF if necessary; None for a Hub id.

    Raises:
        UserError: no model of that name exists.
    """
    if name in MODELS:
        return convert_gguf(MODELS[name].path(), name)
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"{name} does not exist: check the path of the .gguf file.")
        return convert_gguf(path, name)
    if path.is_dir():
        check_files(path)
        return path
    if path.exists() or name.startswith((".", "/", "~")):
        raise UserError(f"{name} is not a model directory or a .gguf file: name one, or a Hub id.")
    if "/" not in name:
        raise unknown_name("model", name, MODELS)
    return None


def model_fingerprint(name: str) -> str:
    """A hash that changes with a model's weights: of the checksums of local files, or of the Hub id.

    Raises:
        UserError: no model of that name exists.
    """
    folder = resolve_model(name)
    if folder is None:
        return content_hash(name)
    if (
        folder.parent == cache_folder()
    ):  # a conversion, whose checksum was verified; that of a user's folder may be out of date
        return str(read_json(folder / CHECKSUM)["weights"])
    rest = [path for pattern in ("*.json", "*.jinja", "tokenizer.model") for path in folder.glob(pattern)]
    files = sorted([*folder.glob("*.safetensors"), *(path for path in rest if path.name != FILE)])
    hashes: list[Any] = [[path.name, sha256_of(path)] for path in files]
    return content_hash([*hashes, model_fingerprint(base_of(folder))] if is_adapter(folder) else hashes)


def cache_folder() -> Path:
    """The folder for conversions: $TAMPERFUSE_CACHE, or tamperfuse/ in the user's cache folder.

    Raises:
        UserError: none of them is known.
    """
    if os.environ.get("TAMPERFUSE_CACHE"):
        return Path(os.environ["TAMPERFUSE_CACHE"]).expanduser()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if caches.parts[:1] == ("~",):
        raise UserError("The home folder is unknown: set TAMPERFUSE_CACHE to a folder for converted models.")
    return caches / "tamperfuse"


def convert_gguf(path: Path, name: str) -> Path:
    """Convert a GGUF into a safetensors directory in the cache, unless it is there already.

    Args:
        path: the .gguf file.
        name: the origin to record in tamperfuse.json.

    Raises:
        UserError: the file cannot be read as a GGUF of a supported architecture, or the cache cannot be written.
    """
    status = path.stat()
    key = content_hash([str(path.resolve()), status.st_size, status.st_mtime_ns])[:16]
    folder = cache_folder() / f"{path.stem}-{key}"
    with locked_cache(folder.with_suffix(".lock")):
        if not _is_complete(folder):
            clear_staging(folder.parent, folder.name)  # left by a conversion that was killed
            log.info(
                "Converting %s into the cache %s; this is done once and takes about half a minute …", path.name, folder
            )
            with staged(folder, directory=True) as staging:
                _convert(path, name, staging)
    return folder


def _convert(path: Path, name: str, staging: Path) -> None:
    with quiet():
        model, tokenizer = read_gguf(path)
        _save_weights(model, staging, "100GB")
        tokenizer.save_pretrained(staging)
    write_provenance(
        staging, Provenance(origin=absolute_name(name), made_by="gguf conversion", source=absolute_name(name))
    )
    weights = staging / WEIGHTS
    write_json(staging / CHECKSUM, {"weights": sha256_of(weights), "bytes": weights.stat().st_size})


def _save_weights(model: PreTrainedModel, folder: Path, shard: str) -> None:
    """Save weights; an error of safetensors is raised as an OSError with its errno, so a full disk is reported as such."""
    try:
        model.save_pretrained(folder, max_shard_size=shard)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error


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


@contextmanager
def errors_explained(name: str, folder: Path | None) -> Iterator[None]:
    """Turn the exceptions of libraries that read a checkpoint into a UserError; damaged files raise exceptions of any kind."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SafetensorError) as error:
        raise UserError(_load_error(name, folder, error)) from error


def _load_error(name: str, folder: Path | None, error: Exception) -> str:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    reason = re.sub(r"[\x00-\x1f\x7f-\x9f]", "", first)[:300].rstrip(". ")
    if isinstance(error, MemoryError) or re.search(r"(can't|cannot) allocate memory|out of memory", str(error), re.I):
        return f"The model {name!r} does not fit into memory ({reason}): use a smaller model or a larger machine."
    if folder is None:
        return (
            f"The model {name!r} cannot be loaded from the Hub ({reason}): check the id, the network and, for a gated "
            "model, your login; a model with pickled weights only is refused."
        )
    return f"The model in {folder} cannot be loaded ({reason}): save it again with save_pretrained."


@contextmanager
def locked_cache(path: Path) -> Iterator[None]:
    """Hold a lock, a file in the cache; waits while another process holds it.

    Raises:
        UserError: the cache cannot be written.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise UserError(
            f"The cache {path.parent} cannot be written ({error.strerror}): set TAMPERFUSE_CACHE to another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and log messages."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()


def read_config(name: str) -> PretrainedConfig:
    """A model's configuration; of a peft adapter, its base model's. No weights are read."""
    folder = resolve_model(name)
    if folder and is_adapter(folder):
        return read_config(base_of(folder))
    with errors_explained(name, folder):
        config = AutoConfig.from_pretrained(str(folder or name), trust_remote_code=False)
        check_config(config, str(folder or name))
        return config


def parameter_count(name: str) -> int:
    """Number of parameters of a model, from its configuration; no weights are read."""
    config = read_config(name)
    with errors_explained(name, resolve_model(name)), torch.device("meta"):
        return int(sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters()))
