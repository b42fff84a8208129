"""What a training run did."""

from dataclasses import dataclass, field


@dataclass
class FitResult:
    """What a training run did.

    Attributes:
        precision: the dtype computed in, and why.
        losses: mean loss of every step, nats a response token.
        tokens: tokens trained on, prompts included, shared prefixes counted for every sample.
        seconds: spent training, hooks and checkpoints left out; over all parts of an interrupted run.
        resumed_at: the step that this run went on from; 0 where it began anew.
        steps: optimizer steps, all of them.
        work: floating-point operations of all of them (:func:`tamperfuse.training.telemetry.useful_work`).
    """

    precision: str
    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    resumed_at: int = 0
    steps: int = 0
    work: float = 0.0
