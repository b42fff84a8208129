"""Loading and saving models: a Hub id, a local directory, a .gguf file or a bundled name."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tamperfuse.models.adapter import base_of, merged
from tamperfuse.models.bundled import MODELS
from tamperfuse.models.chat import Chat
from tamperfuse.models.checks import (
    check_config,
    check_files,
    check_loading,
    check_model,
    check_parameters,
    check_types,
    is_adapter,
    listed,
    weights_not_finite,
)
from tamperfuse.models.conversion import absolute_name, convert_gguf, quiet, save_weights
from tamperfuse.models.device import own_device
from tamperfuse.models.hub_ids import check_hub_id, is_unreachable
from tamperfuse.models.packed_check import prepare_forward
from tamperfuse.models.quantized import dequantized, prepare_dequantization
from tamperfuse.models.sharded import check_on_every_process, is_sharded
from tamperfuse.models.sharded_loading import can_be_sharded, distribution, prepare_shards, read_shards
from tamperfuse.models.window import context_window
from tamperfuse.records.errors import HubUnreachable, UserError, first_line, is_out_of_memory, is_panic, unknown_name
from tamperfuse.records.files import staged
from tamperfuse.records.process import is_main
from tamperfuse.records.provenance import FILE, LEFT_OUT, Provenance, read_provenance, write_provenance

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


@dataclass
class LoadedModel:
    """A model that is ready to run, with its chat template.

    Attributes:
        name: the name it was loaded by.
        model: the model on its device, in float32, in evaluation mode, with packed attention; this process's shards of it if it
            was loaded so.
        chat: its chat template.
        origin: name of the model before hardening, from its tamperfuse.json; `name` if it has none.
        provenance: the defense or attack that changed the weights since the model was loaded; None if none did.
        base: if `name` is a peft adapter, the model that it was merged into; "" otherwise.
        stated_template: text of the chat template that was stated for this model, or for the model before its hardening; "" if
            the tokenizer's own is used. Models that are compared with this one are loaded with it.
    """

    name: str
    model: PreTrainedModel
    chat: Chat
    origin: str
    provenance: Provenance | None = None
    base: str = ""
    stated_template: str = ""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer."""
        return self.chat.tokenizer

    @property
    def window(self) -> int:
        """Maximum sequence length, in tokens."""
        return context_window(self.model.config)


def load_model(name: str, *, chat_template: str = "", sharded: bool = False) -> LoadedModel:
    """Load a causal language model with its tokenizer.

    Args:
        name: a bundled name, a local directory, a .gguf file, or a Hub id.
        chat_template: text of a chat template in place of the tokenizer's; "" for that.
        sharded: whether each of several processes holds a part of every weight (:mod:`tamperfuse.models.sharded`); all of them
            call this function. A model that cannot be sharded is loaded whole, and the log says why. The checks are those of a
            complete model: for missing, unexpected and misshapen weights and values that are NaN or infinite in all shards, and
            for packed attention in float32; each error is raised on every process.

    Returns:
        The model in float32, on this process's device.

    Raises:
        UserError: the model does not exist, cannot be read, has only pickled weights, or has no chat template; its weights are
            not those of its architecture, or not finite; its tokenizer has tokens without embeddings.
    """
    folder = resolve_model(name)
    with quiet(), errors_explained(name, folder):
        sharded = sharded and can_be_sharded(name, folder)
        read = partial(_read_model, name, folder)
        model = read_shards(read) if sharded else read()
        tokenizer = load_tokenizer(name, chat_template)
        check_model(model, tokenizer, str(folder or name))
        if not sharded:
            model.to(own_device())
        model.eval()
        chat = Chat.of(tokenizer, _end_tokens(model))
        if tokenizer.pad_token_id is None:  # packed batches need none, but other programs that load the checkpoint may
            tokenizer.pad_token_id = chat.end
        prepare_shards(model, read) if sharded else prepare_forward(model)
    provenance = read_provenance(folder) if folder else None
    return LoadedModel(
        name=name,
        model=model,
        chat=chat,
        origin=provenance.origin if provenance else name,
        base=base_of(folder) if folder and is_adapter(folder) else "",
        stated_template=chat_template or (provenance.chat_template if provenance else ""),
    )


def load_tokenizer(name: str, chat_template: str = "") -> PreTrainedTokenizerBase:
    """A model's tokenizer, with a chat template in place of its own unless that is ""."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_source(name), trust_remote_code=False)
    if chat_template:
        tokenizer.chat_template = chat_template
    return tokenizer


def _read_model(name: str, folder: Path | None, sharded: torch.dtype | None = None) -> PreTrainedModel:
    """The model in float32 on the CPU; of a peft adapter, its base model with the adapter merged.

    Args:
        name: of the model.
        folder: with its files; None for one on the Hub.
        sharded: None for the whole model; the dtype to compute in for shards of it, on this process's device.
    """
    if folder and is_adapter(folder):
        return merged(folder, _read_base)
    source = place = str(folder or name)
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    prepare_dequantization(config, place)
    check_config(config, place)
    if folder and getattr(config, "quantization_config", None) is None:
        check_types(folder)
        check_parameters(config, folder)
    model, info = AutoModelForCausalLM.from_pretrained(
        source,
        config=config,
        # A configuration may name an attention implementation that is not installed; packed attention replaces it.
        attn_implementation="eager" if getattr(config, "_attn_implementation", None) else None,
        dtype=torch.float32,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # so that the names are known
        output_loading_info=True,
        **({"distributed_config": distribution(config, sharded)} if sharded else {}),
        trust_remote_code=False,
    )
    check_on_every_process(lambda: check_loading(info, place)) if sharded else check_loading(info, place)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(f"{name} is a peft adapter on the Hub: download it, and name its folder.")
    return dequantized(model, place)


def _read_base(name: str) -> PreTrainedModel:
    """The base model of an adapter."""
    folder = resolve_model(name)
    with errors_explained(name, folder):
        return _read_model(name, folder)


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

    The folder is written completely or not at all. Weights are written in the model's dtype: float32, unless it was changed.

    Raises:
        UserError: weights are NaN or infinite in that dtype.
    """
    with staged(folder, directory=True) as staging:
        write_checkpoint(loaded, staging, provenance)


def write_checkpoint(
    loaded: LoadedModel, folder: Path, provenance: Provenance, dtype: torch.dtype | None = None
) -> None:
    """As :func:`save_model`, into an existing folder that the caller stages. Only the main process writes.

    A collective operation if the model is sharded: every process must call it.

    Args:
        loaded: the model.
        folder: to write to.
        provenance: what made it.
        dtype: to write weights in, to which a model that is not sharded is converted; None for the one that they have.

    Raises:
        UserError: weights are NaN or infinite in that dtype; nothing is written then.
    """
    sharded = is_sharded(loaded.model)
    if not sharded and not is_main():
        return
    if dtype is not None and not sharded:
        loaded.model.to(dtype)
    if damaged := weights_not_finite(loaded.model, dtype):
        name = str(dtype or loaded.model.dtype).removeprefix("torch.")
        raise UserError(
            f"The checkpoint of {provenance.made_by} is not saved, since weights are NaN or infinite in {name}, in "
            f"{listed(damaged)}: lower its learning rate or strength"
            + (", or start from a model in bfloat16." if name == "float16" else ".")
        )
    with quiet():
        save_weights(loaded.model, folder, "5GB", dtype)
    if not is_main():
        return
    with quiet():
        loaded.tokenizer.save_pretrained(folder)
    names = {"origin": absolute_name(provenance.origin), "base": absolute_name(provenance.base or loaded.base)}
    update = {**names, "chat_template": loaded.stated_template}
    write_provenance(folder, provenance.model_copy(update=update))


ORIGIN_ADVICE = "write the path that it has now into that file"


def reference_name(
    loaded: LoadedModel,
    reference: str | Path | None,
    advice: str = "name the model before hardening with --reference",
) -> str:
    """The model before hardening: as the user names it, or the origin of a checkpoint.

    Args:
        loaded: the model.
        reference: the name that the user gave; None for the model's origin.
        advice: how to mend an origin that does not exist.

    Raises:
        UserError: the origin is a local path that does not exist (any more), or was left out of a published checkpoint.
    """
    return str(reference) if reference is not None else _existing_origin(loaded.name, loaded.origin, advice)


def provenance_of(name: str) -> Provenance | None:
    """What the tamperfuse.json of a checkpoint says; None for other models.

    Raises:
        UserError: there is no model of that name.
    """
    folder = resolve_model(name)
    return read_provenance(folder) if folder else None


def origin_of(name: str) -> str:
    """The model before hardening of a checkpoint, from its tamperfuse.json; the name itself if it has none.

    Raises:
        UserError: it is a local path that does not exist (any more), or was left out of a published checkpoint; or there is no
            model of that name.
    """
    provenance = provenance_of(name)
    return name if provenance is None else _existing_origin(name, provenance.origin, ORIGIN_ADVICE)


def stated_template(name: str) -> str:
    """The chat template that was stated for the model before hardening of a checkpoint; "" if none was, or for other models.

    Raises:
        UserError: there is no model of that name.
    """
    provenance = provenance_of(name)
    return provenance.chat_template if provenance else ""


def _existing_origin(name: str, origin: str, advice: str) -> str:
    if origin.startswith(LEFT_OUT):
        folder = origin.removeprefix(LEFT_OUT)
        raise UserError(
            f"{name} was made from {folder}, a local model whose path a published {FILE} leaves out: {advice}."
        )
    if Path(origin).is_absolute() and not Path(origin).exists():
        raise UserError(f"{name} was made from {origin} (see its {FILE}), which does not exist: {advice}.")
    return origin


def resolve_model(name: str) -> Path | None:
    """The directory with a model's weights, after converting a GGUF if necessary; None for a Hub id, which is printed.

    Raises:
        UserError: no model of that name exists, or it is a path that does not exist (:mod:`tamperfuse.models.hub_ids`).
    """
    if name in MODELS:
        return convert_gguf(MODELS[name].path(), name)
    if not name.strip():
        raise UserError(
            f"The name of the model is empty: name a folder, a .gguf file, a Hub id, or {', '.join(MODELS)}."
        )
    path = Path(name)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise UserError(f"{name} does not exist: check the path of the .gguf file.")
        return convert_gguf(path, name)
    if path.is_dir():
        check_files(path)
        return path
    if path.exists() or name.startswith((".", "/", "~")):
        raise UserError(f"{name} is not a model directory or a .gguf file: name one, or a Hub id.")
    if "/" not in name:
        if get_close_matches(name, MODELS):
            raise unknown_name("model", name, MODELS)
        raise UserError(
            f"{name} is no folder here, and no Hub id, which has the form OWNER/NAME: name a folder, a .gguf file, a Hub id, or "
            f"{', '.join(MODELS)}."
        )
    check_hub_id(name)
    return None


@contextmanager
def errors_explained(name: str, folder: Path | None) -> Iterator[None]:
    """Turn any exception of a library that reads a checkpoint into a UserError."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, UserError) or not (isinstance(error, Exception) or is_panic(error)):
            raise
        kind = HubUnreachable if folder is None and is_unreachable(error) else UserError
        raise kind(_load_error(name, folder, error)) from error


def _load_error(name: str, folder: Path | None, error: BaseException) -> str:
    reason = first_line(error)
    if is_out_of_memory(error):
        return f"The model {name!r} does not fit into memory ({reason}): use a smaller model or a larger machine."
    if folder is None:
        return (
            f"There is no folder {name} here, and no model of that name can be loaded from the Hub ({reason}): check the path, "
            "or the id, the network and, for a gated model, your login; a model with pickled weights only is refused."
        )
    return f"The model in {folder} cannot be loaded ({reason}): download it or save it again with save_pretrained."


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
