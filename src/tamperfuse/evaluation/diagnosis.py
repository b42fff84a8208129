"""The result of a diagnosis: one model under one attack, traced from inside."""

from dataclasses import asdict, dataclass
from typing import Any

from tamperfuse.evaluation.attack_trace import GradientCosines, TracePoint
from tamperfuse.evaluation.feature_overlap import FeatureOverlap


@dataclass(frozen=True)
class BeforeAfter:
    """A value before and after the attack."""

    before: float
    after: float


@dataclass(frozen=True)
class Diagnosis:
    """What an attack does inside one model.

    Attributes:
        name: name of the model in tables and figures.
        points: likelihoods, one entry for every step.
        cosines: gradient cosines, one entry for every layer and step at which gradients were compared.
        overlaps: feature overlap of the updates by hardening and by the attack, by layer; empty if the model was not hardened.
        capability: accuracy in [0, 1] by task.
        attack_seconds: time of the attack itself.
        diagnosis_seconds: time of the measurements, without the capability tasks.
    """

    name: str
    points: list[TracePoint]
    cosines: list[GradientCosines]
    overlaps: list[FeatureOverlap]
    capability: dict[str, BeforeAfter]
    attack_seconds: float
    diagnosis_seconds: float

    def to_record(self) -> dict[str, Any]:
        """A JSON-serialisable dictionary; null stands for NaN (the cosine with a gradient that is zero)."""
        record: dict[str, Any] = _without_nan(asdict(self))
        return record

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Diagnosis":
        """The inverse of :meth:`to_record`."""
        fields = {
            "points": [TracePoint(**point) for point in record["points"]],
            "cosines": [GradientCosines(**_with_nan(entry)) for entry in record["cosines"]],
            "overlaps": [FeatureOverlap(**overlap) for overlap in record["overlaps"]],
            "capability": {task: BeforeAfter(**values) for task, values in record["capability"].items()},
        }
        return cls(**{**record, **fields})


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    return None if value != value else value


def _with_nan(record: dict[str, Any]) -> dict[str, Any]:
    return {key: float("nan") if value is None else value for key, value in record.items()}
