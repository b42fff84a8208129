"""The result of a training run."""

from dataclasses import dataclass, field


@dataclass
class FitResult:
    """The result of a training run.

    Attributes:
        precision: the compute dtype, and why it was chosen.
        losses: loss of every step; for supervised fine-tuning in nats per response token.
        tokens: tokens trained on, prompts included; a shared prefix counts for every sample.
        seconds: training time without hooks and checkpoints, over all parts of an interrupted run.
        seconds_before: of them, those of the parts before this run.
        resumed_at: the step of the checkpoint that this run resumed from; 0 if none.
        steps: total number of optimizer steps; fewer than planned where a hook ended the training.
        work: floating-point operations of all steps (:func:`tamperfuse.training.telemetry.useful_work`).
    """

    precision: str
    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    seconds_before: float = 0.0
    resumed_at: int = 0
    steps: int = 0
    work: float = 0.0
