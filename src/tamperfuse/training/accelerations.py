"""What makes a training smaller or faster where it can be had, chosen by itself and said with the reason.

Nothing of it changes what is learned beyond rounding, but for the 8-bit optimizer, which is a last resort. On a CPU only
gradient checkpointing applies. **The choices for GPUs have never run on one**: the rule is tested, by faking what is there;
the libraries are called as their documentation says.

    gradient checkpointing   memory asks for it: every layer's activations are computed again on the way back, a third more work
    8-bit optimizer          memory asks for it even so, bitsandbytes is installed: AdamW's moments in a quarter of the bytes
    Liger kernels            on a GPU, liger-kernel is installed: norms, rotary embeddings and gates in one pass each
    torch.compile            on a GPU, in a training long enough to pay for compiling, nothing else rewriting the forward pass
"""

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from tamperfuse.models.load import LoadedModel
from tamperfuse.records.memory import machine_memory
from tamperfuse.training.distributed import sharding
from tamperfuse.training.parameters import Training
from tamperfuse.training.rows import ROW_TOKENS, rows_at_once

log = logging.getLogger("tamperfuse")

COMPILE_STEPS = 200  # compiling for rows of any length takes minutes
SPARE = 0.9  # of the memory; the rest is the system's and the allocator's
MASTER, GRADIENT, MOMENTS, EIGHT_BIT = 4, 2, 8, 2  # bytes a trained weight


@dataclass(frozen=True)
class Machine:
    """What the choice depends on.

    Attributes:
        device: "cpu" or "cuda".
        memory: bytes that the device has.
        installed: packages that are there.
    """

    device: str
    memory: int
    installed: frozenset[str]

    @classmethod
    def of(cls, device: torch.device) -> "Machine":
        """This machine."""
        memory = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else machine_memory()
        names = (name for name in ("bitsandbytes", "liger_kernel") if importlib.util.find_spec(name))
        return cls(device.type, memory, frozenset(names))


@dataclass(frozen=True)
class Need:
    """Bytes that a training takes, estimated.

    Attributes:
        weights: the model's, as it is computed with, and the float32 masters that frozen ones keep beside it.
        trained: parameters that train.
        activations: of one row, all layers'.
        layer: of one row, one layer's, and what is kept between layers.
        rows: how many run side by side.
    """

    weights: int
    trained: int
    activations: int
    layer: int
    rows: int = 1

    @classmethod
    def of(cls, module: nn.Module, loaded: LoadedModel, dtype: torch.dtype) -> "Need":
        """Of a module with its trained weights marked.

        A layer keeps about twelve vectors of the hidden size and five of the inner one a token.
        """
        config = loaded.model.config.get_text_config()
        size = dtype.itemsize
        kept = MASTER if dtype != torch.float32 else 0  # frozen weights have masters as well: reduced_precision
        inner = int(getattr(config, "intermediate_size", 4 * config.hidden_size))
        layer = ROW_TOKENS * size * (12 * config.hidden_size + 5 * inner)
        layers = int(config.num_hidden_layers)
        return cls(
            weights=sum(p.numel() * (size if p.requires_grad else size + kept) for p in module.parameters()),
            trained=sum(p.numel() for p in module.parameters() if p.requires_grad),
            activations=layers * layer,
            layer=layer + layers * ROW_TOKENS * size * config.hidden_size,
            rows=rows_at_once(module, loaded.model.device),
        )

    def total(self, checkpointing: bool, moments: int) -> int:
        """Bytes in all."""
        row = self.layer if checkpointing else self.activations
        return self.weights + self.rows * row + self.trained * (MASTER + self.rows * GRADIENT + moments)


@dataclass(frozen=True)
class Extras:
    """What was chosen; `reasons` has a sentence for each."""

    checkpointing: bool = False
    eight_bit: bool = False
    liger: bool = False
    compile: bool = False
    reasons: tuple[str, ...] = ()


def choose(machine: Machine, need: Need, training: Training) -> Extras:
    """Decide.

    Args:
        machine: what there is.
        need: what the training takes.
        training: how it is done; an optimizer other than AdamW has no 8-bit form.
    """
    reasons, adam = [], training.optimizer == "adamw"
    moments = MOMENTS if adam else MOMENTS // 2
    room = int(SPARE * machine.memory)
    checkpointing = need.total(False, moments) > room
    if checkpointing:
        reasons.append(
            f"gradient checkpointing: about {need.total(False, moments) / 2**30:.1f} GiB are needed without it, "
            f"{room / 2**30:.1f} can be had"
        )
    gpu = machine.device == "cuda"
    eight_bit = (
        gpu and adam and checkpointing and need.total(True, moments) > room and "bitsandbytes" in machine.installed
    )
    if eight_bit:
        reasons.append(f"8-bit optimizer: {need.total(True, moments) / 2**30:.1f} GiB are needed even so")
    liger = gpu and "liger_kernel" in machine.installed
    if liger:
        reasons.append("Liger kernels: liger-kernel is installed")
    compiled = gpu and not liger and not checkpointing and training.steps >= COMPILE_STEPS
    if compiled:
        reasons.append(f"torch.compile: {training.steps} steps repay it")
    return Extras(checkpointing, eight_bit, liger, compiled, tuple(reasons))


@contextmanager
def extras(module: nn.Module, loaded: LoadedModel, training: Training, dtype: torch.dtype) -> Iterator[Extras]:
    """Choose for this machine, say so, and set the module up; the optimizer is its maker's affair.

    Sharded models are left as they are: the accelerate file says what they do. Checkpointing ends with the block.
    """
    if sharding():
        yield Extras()
        return
    chosen = choose(Machine.of(loaded.model.device), Need.of(module, loaded, dtype), training)
    for reason in chosen.reasons:
        log.info("      %s", reason)
    if chosen.checkpointing:
        loaded.model.activation_checkpointing_enable({"use_reentrant": False})
    if chosen.liger:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        # The loss is ours: logits at response positions only, gradients formed in slices.
        _apply_liger_kernel_to_instance(loaded.model, fused_linear_cross_entropy=False, cross_entropy=False)
    if chosen.compile:
        module.compile(dynamic=True)
    try:
        yield chosen
    finally:
        if chosen.checkpointing:
            loaded.model.activation_checkpointing_disable()
