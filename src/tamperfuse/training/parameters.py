"""How weights are trained: the parameters that every defense and attack shares, and what can be trained on."""

from typing import Literal, Protocol

from pydantic import Field

from tamperfuse.records.registry import Parameters


class Trainable(Protocol):
    """What a step can be given: a sample, a preference, whatever has tokens and a weight."""

    @property
    def tokens(self) -> list[int]:
        """All tokens that a step has to carry."""
        ...

    @property
    def response_tokens(self) -> int:
        """How much it counts in the loss's denominator."""
        ...


class Training(Parameters):
    """How weights are trained; part of the parameters of every defense and attack that trains.

    Attributes:
        steps: optimizer steps.
        batch: samples a step, over all processes.
        learning_rate: peak.
        optimizer: AdamW (betas .9 and .999), SGD with momentum .9, or Adafactor (its learning rate absolute, as with the
            others: neither relative steps nor parameter scaling); none decays weights.
        schedule: what the learning rate does after warm-up.
        warmup: share of the steps over which it rises from 0, in [0, 1).
        clip: largest gradient norm; 0 for none.
        method: which weights change: all, a LoRA adapter's that is merged afterwards (`qlora`: trained against weights in
            4 bits), those of every layer's attention, or those of the last layers (without the final norm, the embeddings
            and the output).
        layers: how many layers `last_layers` trains, at most as many as there are.
        lora_rank: rank of the adapter's updates.
        lora_alpha: the update is scaled by alpha / rank.
        lora_targets: which linear layers get adapters, by the end of their names; `all-linear` for all but the output.
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
