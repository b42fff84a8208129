"""The dtype in which a checkpoint stores its weights. Models are loaded in float32; a hardened one is saved as it came in."""

import math
from collections import Counter
from pathlib import Path

import torch
from safetensors import safe_open

from tamperfuse.models.adapter import base_of
from tamperfuse.models.checks import is_adapter
from tamperfuse.models.load import errors_explained, read_config, resolve_model

_HALF = {"F16": torch.float16, "BF16": torch.bfloat16}


def stored_dtype(name: str) -> torch.dtype:
    """The dtype of most of a checkpoint's weights: float16, bfloat16, or else float32, also for quantized weights.

    Args:
        name: the model, as of :func:`tamperfuse.models.load.load_model`. Of a peft adapter it is that of its base model; of a
            Hub id, what its configuration says.

    Raises:
        UserError: no model of that name exists, or its configuration or weights cannot be read.
    """
    folder = resolve_model(name)
    if folder is None:
        config = read_config(name)
        is_quantized = getattr(config, "quantization_config", None) is not None
        dtype: torch.dtype | None = getattr(config, "dtype", None)
        return dtype if dtype is not None and dtype in _HALF.values() and not is_quantized else torch.float32
    if is_adapter(folder):
        return stored_dtype(base_of(folder))
    with errors_explained(name, folder):
        sizes = _sizes(folder)
    return _HALF.get(max(sizes, key=lambda kind: sizes[kind]), torch.float32) if sizes else torch.float32


def _sizes(folder: Path) -> Counter[str]:
    """Number of values by dtype, as safetensors names it; only the headers of the files are read."""
    sizes: Counter[str] = Counter()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (not a mapping)
                part = tensors.get_slice(key)
                sizes[str(part.get_dtype())] += math.prod(part.get_shape())
    return sizes
