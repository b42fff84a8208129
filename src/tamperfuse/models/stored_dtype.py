"""The dtype in which a checkpoint stores its weights. Models are loaded in float32; a hardened one is saved as it came in."""

import torch

from tamperfuse.models.adapter import base_of
from tamperfuse.models.checks import is_adapter, stored_values
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
        values = stored_values(folder)
    return _HALF.get(max(values, key=lambda kind: values[kind]), torch.float32) if values else torch.float32
