"""CPU kernels: code that replaces a plain PyTorch, transformers or peft path because it is faster, or needs less memory.

    short_attention   attention over few keys in training, as two products      F.scaled_dot_product_attention
    kv_cache          packed prefill, one shared prefix, rows that leave        transformers' DynamicCache, padded batches
    packed_tree       what several sequences share is computed once             every sequence by itself
    lora_linear       a LoRA layer's products added in place                    peft's Linear
    cross_entropy     gradient formed in slices during the forward pass         F.cross_entropy

The environment variable `TAMPERFUSE_CPU_KERNELS` selects them: unset or `1` for all, `0` for none (the plain paths), or the
names of those to use, separated by commas. `0` also leaves the allocation of large pages as it is (`tamperfuse/__init__.py`).
Results are equal up to rounding: tests compare both paths, and `benchmarks/cpu_kernels.py` measures what each kernel gains.
`kv_cache`, `packed_tree` and `cross_entropy` run on GPUs as well.
"""

import os

from tamperfuse.records.errors import unknown_name

VARIABLE = "TAMPERFUSE_CPU_KERNELS"
KERNELS = (
    "short_attention",
    "kv_cache",
    "packed_tree",
    "lora_linear",
    "cross_entropy",
)


def enabled(kernel: str) -> bool:
    """Whether a kernel is to be used.

    Args:
        kernel: one of `KERNELS`.

    Raises:
        UserError: the environment variable names a kernel that does not exist.
    """
    value = os.environ.get(VARIABLE, "1")
    if value in ("", "0", "1"):
        return value != "0"
    selected = [name.strip() for name in value.split(",")]
    for name in selected:
        if name not in KERNELS:
            raise unknown_name(f"CPU kernel ({VARIABLE})", name, KERNELS)
    return kernel in selected
