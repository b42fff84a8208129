"""Training parameters, shared by every defense and attack that trains, and the interface of training samples."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Protocol, cast

from pydantic import Field

from tamperfuse.records.registry import Parameters


class Trainable(Protocol):
    """Interface of training samples. An objective defines which type it takes."""

    @property
    def tokens(self) -> list[int]:
        """All tokens of the sample; their number decides how a batch is split into rows."""
        ...

    @property
    def response_tokens(self) -> int:
        """Its contribution to the loss's denominator."""
        ...


def sequences_of(sample: Any) -> Iterator[Trainable]:
    """The sequences of a training sample, which may be a unit of several: in its dataclass fields, and the items of tuples."""
    if isinstance(sample, tuple):
        for item in sample:
            yield from sequences_of(item)
    elif is_dataclass(sample):
        parts = [part for item in fields(sample) for part in sequences_of(getattr(sample, item.name))]
        yield from parts or ([cast(Trainable, sample)] if hasattr(sample, "tokens") else [])


class Training(Parameters):
    """Training parameters; those of every defense and attack that trains include them.

    Attributes:
        steps: optimizer steps.
        batch: samples per optimizer step, over all processes.
        learning_rate: peak value.
        optimizer: AdamW (betas 0.9 and 0.999), SGD with momentum 0.9, or Adafactor (without relative steps or parameter
            scaling, so the learning rate is absolute as with the others). No weight decay.
        schedule: learning-rate schedule after warm-up.
        warmup: share of the steps over which the learning rate rises, in [0, 1). At the first of them it is 0.
        clip: maximum gradient norm; 0 for no clipping.
        method: which weights train. `full`: all. `lora`: those of a LoRA adapter, merged afterwards. `qlora`: the same, with
            the model's weights in 4 bits during training. `attention`: those of every layer's attention. `last_layers`: those
            of the last `layers` layers, without the final norm, the embeddings and the output.
        layers: number of layers that `last_layers` trains; at most the model's number of layers.
        lora_rank: rank of the adapter's updates.
        lora_alpha: updates are scaled by alpha / rank.
        lora_targets: the linear layers that get adapters, by the last parts of their names; `all-linear` for all but the
            output. Routers and vision towers get none; what is left out is printed.
    """

    steps: int = Field(50, ge=1)
    batch: int = Field(10, ge=1)
    learning_rate: float = Field(3e-5, gt=0, lt=10)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: float = Field(0.0, ge=0, lt=1)
    clip: float = Field(1.0, ge=0)
    optimizer: Literal["adamw", "sgd", "adafactor"] = "adamw"
    method: Literal["full", "lora", "qlora", "attention", "last_layers"] = "full"
    layers: int = Field(4, ge=1)
    lora_rank: int = Field(16, ge=1)
    lora_alpha: float = Field(32, gt=0)
    lora_targets: str | tuple[str, ...] = "all-linear"
