"""Checks of a checkpoint: its files before they are read, and the model after. What cannot be trained or measured is refused."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from tamperfuse.models.sharded import gather_objects, is_sharded, local_shard
from tamperfuse.records.errors import UserError, shown
from tamperfuse.records.files import read_json
from tamperfuse.records.reading import check_files_of

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_PLAIN_TYPES = {"F64", "F32", "F16", "BF16"}
#: Sizes in config.json, and the largest that is believed: larger ones would take all memory before a library refuses them.
_SIZES = {
    "hidden_size": 10**6,
    "num_hidden_layers": 1_000,
    "num_attention_heads": 10_000,
    "num_key_value_heads": 10_000,
    "head_dim": 10**5,
    "intermediate_size": 10**7,
    "vocab_size": 10**7,
    "max_position_embeddings": 10**9,
}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_MOST_EXPERTS = 100_000  # in all layers together
_SLACK = 10**8  # parameters that a configuration may have beyond twice those in the files: 400 MB


def check_files(folder: Path) -> None:
    """Check that a folder has weights in safetensors, and that an index names files of the folder only.

    Raises:
        UserError: it has none, pickled ones only, a damaged index, or a pipe or a device in place of a file.
    """
    check_files_of(folder)
    stored = sorted(path.name for path in folder.glob("*.safetensors"))
    if is_adapter(folder) and any(name != ADAPTER_WEIGHTS for name in stored):
        raise UserError(
            f"{folder} contains both a model and a peft adapter ({ADAPTER_CONFIG}): move one of them to a folder of its own."
        )
    if weight_files(folder):
        return
    if stored:
        raise UserError(
            f"{folder} has weights in {listed(stored)}, but neither {WEIGHTS} nor {INDEX}, which transformers reads: rename the "
            "file of a model of transformers, or convert the model to that format."
        )
    if any(path for pattern in _PICKLES for path in folder.glob(pattern)):
        raise UserError(
            f"{folder} has only pickled weights, which can run code when they are loaded: convert them to safetensors first."
        )
    raise UserError(f"{folder} contains no weights (*.safetensors): name a directory written by save_pretrained.")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a peft adapter instead of a model."""
    return (folder / ADAPTER_CONFIG).exists()


def weight_files(folder: Path) -> list[Path]:
    """The files from which transformers reads the weights of a model, or peft those of an adapter; others may lie beside them.

    Raises:
        UserError: the index of a model in several files is damaged.
    """
    if is_adapter(folder):
        names = [ADAPTER_WEIGHTS]
    else:
        names = [WEIGHTS] if (folder / WEIGHTS).exists() or not (folder / INDEX).exists() else _indexed(folder)
    return [path for name in names if (path := folder / name).exists()]


def _indexed(folder: Path) -> list[str]:
    """Names of the files of a checkpoint in several.

    Raises:
        UserError: it is damaged, or names anything but safetensors files in its own folder.
    """
    index = read_json(folder / INDEX)
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not files:
        raise UserError(f"{folder / INDEX} has no `weight_map`: download or save the checkpoint again.")
    names = sorted(set(map(str, files.values())))
    for file in names:
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise UserError(
                f"{folder / INDEX} names {file!r}, which is not a safetensors file in the same folder: download or save the "
                "checkpoint again."
            )
        if not (folder / file).is_file():
            raise UserError(f"{folder} lacks {file}, which its index names: download or copy the checkpoint again.")
    return names


def check_types(folder: Path) -> None:
    """Check that the weights are stored as floating-point numbers of at least 16 bits.

    Raises:
        UserError: some are not; such weights are quantized, and the configuration does not say how.
    """
    names = []
    for path in weight_files(folder):
        with safe_open(path, "pt") as tensors:
            names += [name for name in tensors.keys() if tensors.get_slice(name).get_dtype() not in _PLAIN_TYPES]  # noqa: SIM118
    # Buffers such as attention masks and positions may be integers.
    names = [name for name in names if name.endswith(("weight", "bias"))]
    if names:
        raise UserError(
            f"{folder} stores {listed(names)} as integers or 8-bit numbers, but its config.json has no quantization_config: "
            "save the model in float32, float16 or bfloat16."
        )


def check_config(config: PretrainedConfig, place: str) -> None:
    """Check the numbers of a configuration.

    Raises:
        UserError: a size is not a positive integer (or a list of them, one for each layer) or absurdly large, or a number is NaN
            or infinite.
    """
    text = config.get_text_config()
    for name, largest in _SIZES.items():
        value = getattr(text, name, None)
        if value is None:
            continue
        sizes = value if isinstance(value, list | tuple) and value else [value]
        if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 1 for size in sizes):
            raise UserError(f"The config.json of {place} has {name} = {shown(repr(value))}: give a positive integer.")
        if max(sizes) > largest:
            raise UserError(f"The config.json of {place} has {name} = {shown(repr(value))}: give at most {largest:,}.")
    for name in _EXPERTS:
        experts = getattr(text, name, None)
        if isinstance(experts, int) and experts * _largest(getattr(text, "num_hidden_layers", None)) > _MOST_EXPERTS:
            limit = f"{_MOST_EXPERTS:,} in all layers together"
            raise UserError(f"The config.json of {place} has {name} = {shown(experts)}: give at most {limit}.")
    for name, number in _numbers(config.to_dict()):
        # The limits of Mamba 2's time steps, from 0 to infinity, are the one place where infinity is a value.
        if not math.isfinite(number) and not (number == math.inf and name.endswith("time_step_limit")):
            raise UserError(f"The config.json of {place} has {name} = {number}: give a finite number.")


def check_parameters(config: PretrainedConfig, folder: Path) -> None:
    """Check, before memory is taken, that a configuration does not describe a far larger model than the files hold.

    Raises:
        UserError: it does; transformers would create the weights before it finds that their shapes differ.
    """
    text, stored = config.get_text_config(), sum(stored_values(folder).values())
    hidden, layers, heads, size, inner = (
        _largest(getattr(text, name, None))
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "intermediate_size")
    )
    tables = sum(_largest(getattr(text, name, None)) for name in ("vocab_size", "max_position_embeddings"))
    rough = hidden * (tables + layers * (hidden + inner + heads * size))
    if rough <= 2 * stored + _SLACK:
        return
    with torch.device("meta"):
        described = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if described > 2 * stored + _SLACK:
        raise UserError(
            f"The config.json of {folder} describes a model of {described:,} parameters, but its files hold {stored:,}: correct "
            "its sizes, or download the checkpoint again."
        )


def stored_values(folder: Path) -> Counter[str]:
    """Number of values by dtype, as safetensors names it; only the headers of the files are read."""
    values: Counter[str] = Counter()
    for path in weight_files(folder):
        with safe_open(path, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (not a mapping)
                part = tensors.get_slice(key)
                values[str(part.get_dtype())] += math.prod(part.get_shape())
    return values


def _largest(value: Any) -> int:
    """A size, or the largest of those of all layers; 0 where there is none."""
    sizes = value if isinstance(value, list | tuple) else [value]
    return max((size for size in sizes if isinstance(size, int)), default=0)


def check_loading(info: Mapping[str, Any], place: str) -> None:
    """Check that the weights of a checkpoint are those of its architecture; a tied weight needs to be stored once only.

    Args:
        info: `output_loading_info` of transformers' from_pretrained.
        place: of the checkpoint, for the message.

    Raises:
        UserError: weights are missing, unexpected or of another shape, or a file cannot be read.
    """
    mismatched = [str(key[0] if isinstance(key, tuple | list) else key) for key in info.get("mismatched_keys", ())]
    problems = [
        f"{words} {listed(names)}"
        for words, names in (
            ("it lacks", sorted(map(str, info.get("missing_keys", ())))),
            ("it has, but the architecture does not,", sorted(map(str, info.get("unexpected_keys", ())))),
            ("of another shape are", sorted(mismatched)),
        )
        if names
    ]
    if not problems:
        return
    unexpected = list(map(str, info.get("unexpected_keys", ())))
    advice = "download it again, or save it with save_pretrained and its own configuration"
    for prefix, wrapper in (("_orig_mod.", "torch.compile"), ("base_model.model.", "peft"), ("module.", "DDP")):
        if unexpected and all(name.startswith(prefix) for name in unexpected):
            advice = (
                f"it was saved inside the wrapper of {wrapper}: save the model that is wrapped, with save_pretrained"
            )
    raise UserError(f"The weights of {place} are not those of its config.json ({'; '.join(problems)}): {advice}.")


def check_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, place: str) -> None:
    """Check that all weights are finite, and that each token that texts can have has an embedding.

    A text-only model may have special tokens for images, which neither texts nor its chat template contain.

    Raises:
        UserError: some are not, or a token has none.
    """
    damaged = weights_not_finite(model)
    if damaged:
        raise UserError(
            f"Weights of {place} are NaN or infinite, in {listed(damaged)}: use a checkpoint from before training diverged, or "
            "merge and save it in float32 or bfloat16 instead of float16."
        )
    embeddings = model.get_input_embeddings()
    rows = int(embeddings.weight.shape[0])
    highest = max(set(tokenizer.get_vocab().values()) - _never_used(tokenizer), default=-1)
    if highest >= rows:
        raise UserError(
            f"The tokenizer of {place} has tokens up to id {highest}, but the model has {rows} embeddings: use the model's own "
            "tokenizer, or save the model after resize_token_embeddings and training."
        )


def _never_used(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Special tokens without a role that the chat template does not name."""
    roles = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id}
    template = str(tokenizer.chat_template)
    return {
        int(index)
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special and index not in roles and token.content not in template
    }


def weights_not_finite(model: nn.Module, dtype: torch.dtype | None = None) -> list[str]:
    """Names of the weights and buffers that have NaN or infinite values. A collective operation if the model is sharded.

    Args:
        model: the model.
        dtype: in which the values are looked at; None for their own.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    floating = [(name, local_shard(x)) for name, x in tensors if x.is_floating_point()]
    names = [name for name, x in floating if not bool(torch.isfinite(x.to(dtype or x.dtype)).all())]
    if not is_sharded(model):
        return names
    return sorted({name for part in gather_objects(names) for name in part})


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item, name)


def listed(names: Iterable[str], most: int = 3) -> str:
    """Names for a message: the first ones, and how many there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")
