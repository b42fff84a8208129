"""Libraries and techniques that make a training smaller or faster; chosen automatically and logged with the reason.

None of them changes the result beyond rounding, except for the 8-bit optimizer, which is used only when memory would not
suffice otherwise. On a CPU only gradient checkpointing applies. Trainings without any of these have run on a GPU. **None of the
three has run on one**: tests cover the rule with simulated hardware, and the libraries are called as their documentation says.

    gradient checkpointing   if memory does not suffice: the backward pass recomputes activations, a third more work
    8-bit optimizer          on a GPU, if memory still does not suffice and bitsandbytes is installed: AdamW's moments in 2 bytes
    Liger kernels            on a GPU, if liger-kernel is installed: fused norms, rotary embeddings and MLPs

torch.compile is not used: on a GPU, compiling for rows of any length had not ended after five minutes (docs/training.md).
"""

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from tamperfuse.models.load import LoadedModel
from tamperfuse.models.sharded import is_sharded
from tamperfuse.records.memory import machine_memory
from tamperfuse.records.registry import PLAIN_COPIES
from tamperfuse.training.checkpoints import current_block
from tamperfuse.training.distributed import sharding
from tamperfuse.training.parameters import Training
from tamperfuse.training.rows import ROW_TOKENS

log = logging.getLogger("tamperfuse")

USABLE_MEMORY = 0.9  # share; the rest is for the system and the allocator
MASTER, GRADIENT, MOMENTS, EIGHT_BIT_MOMENTS = 4, 2, 8, 2  # bytes per trained weight, computed with in bfloat16


@dataclass(frozen=True)
class Machine:
    """The hardware and software that the choice depends on.

    Attributes:
        device: "cpu" or "cuda".
        memory: of the device, in bytes.
        installed: optional packages that are installed.
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
class MemoryEstimate:
    """Estimated memory of a training, in bytes.

    Attributes:
        weights: of the model in its compute dtype, and the float32 masters of frozen weights.
        trained: number of trained parameters.
        activations: of one row, all layers.
        checkpointed: activations of one row with gradient checkpointing: those of one layer, and each layer's input.
        training: bytes for each trained weight beside the moments: its gradient, if it is another its float32 master, and
            what the objective holds.
    """

    weights: int
    trained: int
    activations: int
    checkpointed: int
    training: int = MASTER + GRADIENT

    @classmethod
    def of(
        cls, module: nn.Module, loaded: LoadedModel, dtype: torch.dtype, copies: int = PLAIN_COPIES
    ) -> "MemoryEstimate":
        """Estimate for a module whose trained weights require gradients.

        A layer stores about twelve vectors of the hidden size and five of the MLP's size per token.

        Args:
            module: the model, or an adapter around it.
            loaded: the model.
            dtype: to compute in.
            copies: of the weights that the training holds, in float32: weights, gradients, moments, and those of its objective.
        """
        config = loaded.model.config.get_text_config()
        size = dtype.itemsize
        master = MASTER if dtype != torch.float32 else 0  # see reduced_precision
        inner = getattr(config, "intermediate_size", 4 * config.hidden_size)
        inner = max(inner) if isinstance(inner, list | tuple) else int(inner)  # Gemma 3n has one for each layer
        layer = ROW_TOKENS * size * (12 * config.hidden_size + 5 * inner)
        layers = int(config.num_hidden_layers)
        return cls(
            weights=sum(p.numel() * (size if p.requires_grad else size + master) for p in module.parameters()),
            trained=sum(p.numel() for p in module.parameters() if p.requires_grad),
            activations=layers * layer,
            checkpointed=layer + layers * ROW_TOKENS * size * config.hidden_size,
            training=size + master + MASTER * (copies - PLAIN_COPIES),
        )

    def total(self, checkpointing: bool, moments: int) -> int:
        """Bytes in total.

        Args:
            checkpointing: whether activations are recomputed.
            moments: bytes of the optimizer's state per trained weight.
        """
        row = self.checkpointed if checkpointing else self.activations
        return self.weights + row + self.trained * (self.training + moments)


@dataclass(frozen=True)
class Acceleration:
    """What is used; `reasons` holds a sentence for each."""

    checkpointing: bool = False
    eight_bit: bool = False
    liger: bool = False
    reasons: tuple[str, ...] = ()


def choose(machine: Machine, estimate: MemoryEstimate, training: Training) -> Acceleration:
    """Choose accelerations.

    Args:
        machine: hardware and installed packages.
        estimate: memory of the training.
        training: training parameters; only AdamW has an 8-bit version.
    """
    reasons, adam = [], training.optimizer == "adamw"
    moments = MOMENTS if adam else MOMENTS // 2
    usable = int(USABLE_MEMORY * machine.memory)
    checkpointing = estimate.total(False, moments) > usable
    if checkpointing:
        reasons.append(
            f"gradient checkpointing: about {estimate.total(False, moments) / 2**30:.1f} GiB are needed without it, "
            f"{usable / 2**30:.1f} GiB are usable"
        )
    gpu = machine.device == "cuda"
    too_large = checkpointing and estimate.total(True, moments) > usable
    eight_bit = gpu and adam and too_large and "bitsandbytes" in machine.installed
    if eight_bit:
        reasons.append(
            f"8-bit optimizer: {estimate.total(True, moments) / 2**30:.1f} GiB are needed with gradient checkpointing"
        )
    liger = gpu and "liger_kernel" in machine.installed
    if liger:
        reasons.append("Liger kernels: liger-kernel is installed")
    return Acceleration(checkpointing, eight_bit, liger, tuple(reasons))


@contextmanager
def accelerated(
    module: nn.Module, loaded: LoadedModel, training: Training, dtype: torch.dtype
) -> Iterator[Acceleration]:
    """Choose accelerations for this machine, log the reasons and set the module up.

    The optimizer is not created here: its caller reads `eight_bit`. With sharding nothing is chosen, since the accelerate
    configuration decides (`fsdp_activation_checkpointing`). Gradient checkpointing is switched off again at the end of the block.

    Args:
        module: the model, or an adapter around it, with its trained weights marked.
        loaded: the model.
        training: training parameters.
        dtype: to compute in.
    """
    if sharding():
        # accelerate recomputes activations of what it shards; a model that was loaded in shards is not known to it.
        configured = os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "").lower() == "true"
        acceleration = Acceleration(checkpointing=configured and is_sharded(module))
    else:
        estimate = MemoryEstimate.of(module, loaded, dtype, current_block().memory_copies)
        acceleration = choose(Machine.of(loaded.model.device), estimate, training)
    for reason in acceleration.reasons:
        log.info("      %s", reason)
    if acceleration.checkpointing:
        loaded.model.activation_checkpointing_enable({"use_reentrant": False})
    if acceleration.liger:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        # Not Liger's loss: training/cross_entropy.py forms logits at response positions only.
        _apply_liger_kernel_to_instance(loaded.model, fused_linear_cross_entropy=False, cross_entropy=False)
    try:
        yield acceleration
    finally:
        if acceleration.checkpointing:
            loaded.model.activation_checkpointing_disable()
