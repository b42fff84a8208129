"""A stand-in on real models for the feature model's overlap counts n_vo and n_so.

In the feature model two models share a feature if both masks have it. A network has no mask, but an update of a weight
matrix W (out × in) reads certain directions of its input: the right singular vectors of ΔW, the largest first. Two updates
that read the same directions share features; how much of each other's span they cover is their overlap.

Invariant features serve the general task, spurious ones do not. Here the input directions that benign text's gradient reads
most strongly stand for the invariant side, and all others for the spurious side: both updates are cut to one side, then
compared. This is a definition, not a theorem: it makes the assumption measurable, it does not make the model apply.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tamperfuse.evaluation.diagnose import OUTSIDE, Alignment, Trace, layer_of

RANK = 8  # directions of each update that are compared
GENERAL = 64  # input directions that stand for the invariant side
SPARE = 8  # directions computed beyond those asked for, so that the last of them is accurate


@dataclass(frozen=True)
class Overlap:
    """How much of two updates' leading input directions coincides, above chance.

    Attributes:
        layer: from 0.
        invariant: within the directions that benign text's gradient reads; the stand-in for n_vo. At most 1 (the same
            span), 0 what random spans give, a little below 0 where they avoid each other.
        spurious: within all others; the stand-in for n_so.
    """

    layer: int
    invariant: float
    spurious: float


@dataclass(frozen=True)
class Diagnosis:
    """What was found on one model.

    Attributes:
        name: the model, as it is called in figures.
        traces: one a step.
        alignments: one a step at which gradients were compared, and layer.
        overlaps: hardening's update against the attack's, by layer; empty where nothing was hardened.
        capability: accuracy by task, before and after.
        seconds: of the attack itself, and of the diagnosis (capability apart).
    """

    name: str
    traces: list[Trace]
    alignments: list[Alignment]
    overlaps: list[Overlap]
    capability: dict[str, tuple[float, float]]
    seconds: tuple[float, float]


def feature_overlap(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], benign: Mapping[str, Tensor], *, seed: int = 0
) -> list[Overlap]:
    """Overlap of two updates, layer by layer (mean over the layer's matrices).

    Args:
        first: change of each weight, by name; matrices are (out, in). For instance what hardening changed.
        second: likewise, for instance what the attack changed.
        benign: gradient of the benign loss, by the same names.
        seed: of the randomised decompositions.
    """
    by_layer: dict[int, list[tuple[float, float]]] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in sorted(first.keys() & second.keys() & benign.keys()):
            layer = layer_of(name)
            if layer == OUTSIDE or first[name].ndim != 2 or not (first[name].any() and second[name].any()):
                continue
            changes = first[name].float(), second[name].float()
            by_layer.setdefault(layer, []).append(_of_matrix(*changes, benign[name].float()))
    return [
        Overlap(layer, *(sum(side) / len(side) for side in zip(*found, strict=True)))
        for layer, found in sorted(by_layer.items())
    ]


def _of_matrix(first: Tensor, second: Tensor, benign: Tensor) -> tuple[float, float]:
    size = benign.shape[1]
    general = min(GENERAL, size // 2)
    used = read_directions(benign, general)  # (in, general)
    rank = min(RANK, general // 2)
    invariant = subspace_overlap(*(read_directions(change @ used, rank) for change in (first, second)))
    rest = [change - (change @ used) @ used.T for change in (first, second)]
    spurious = subspace_overlap(*(read_directions(change, rank) for change in rest))
    return _above_chance(invariant, rank / general), _above_chance(spurious, rank / (size - general))


def read_directions(matrix: Tensor, rank: int) -> Tensor:
    """The `rank` leading right singular vectors of a matrix (out, in), as columns: (in, rank)."""
    wanted = min(rank + SPARE, *matrix.shape)
    _, _, right = torch.svd_lowrank(matrix, q=wanted, niter=4)
    return right[:, :rank]


def subspace_overlap(first: Tensor, second: Tensor) -> float:
    """‖UᵀV‖²/k for orthonormal columns U, V, (n, k): 1 for the same span, 0 for orthogonal ones, k/n for random ones."""
    return float((first.T @ second).square().sum() / first.shape[1])


def _above_chance(value: float, chance: float) -> float:
    return (value - chance) / (1 - chance)
