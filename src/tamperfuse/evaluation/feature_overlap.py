"""A measure on real models that corresponds to the feature model's overlap counts n_vo and n_so.

In the feature model two models share a feature if both masks contain it. A network has no such mask, but an update of a weight
matrix W (out × in) depends on certain directions of its input: the right singular vectors of ΔW with the largest singular
values. Two updates that depend on the same directions share features; their overlap is how far these directions span the
same space.

Invariant features serve the general task, spurious ones do not. Here the leading input directions of benign text's gradient
represent the invariant features, and their orthogonal complement the spurious ones: both updates are projected onto one of the
two subspaces and then compared. This is a definition chosen because it can be computed, not a consequence of the theory.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tamperfuse.evaluation.attack_trace import OUTSIDE_LAYERS, layer_of

RANK = 8  # leading directions of each update that are compared
GENERAL_DIRECTIONS = 64  # input directions of benign text's gradient that represent invariant features
OVERSAMPLING = 8  # further directions of the randomised SVD, so that the last one returned is accurate


@dataclass(frozen=True)
class FeatureOverlap:
    """Overlap of two updates' leading input directions in one layer: 1 for the same span, 0 on average for random ones.

    Attributes:
        layer: from 0.
        invariant: within the leading directions of benign text's gradient; corresponds to n_vo. At most 1; negative values
            are possible and mean less overlap than random subspaces have.
        spurious: within their orthogonal complement; corresponds to n_so. Range as for `invariant`.
    """

    layer: int
    invariant: float
    spurious: float


def feature_overlap(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], benign: Mapping[str, Tensor], *, seed: int = 0
) -> list[FeatureOverlap]:
    """Overlap of two updates, layer by layer (mean over the matrices of a layer).

    Args:
        first: change of each weight by name, for instance by hardening; matrices are (out, in).
        second: another change of the same weights, for instance by the attack.
        benign: gradient of benign text's NLL, by the same names.
        seed: of the randomised SVD.

    Returns:
        One for every layer in which both updates changed a matrix.
    """
    by_layer: dict[int, list[tuple[float, float]]] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in sorted(first.keys() & second.keys() & benign.keys()):
            layer = layer_of(name)
            if layer == OUTSIDE_LAYERS or first[name].ndim != 2 or not (first[name].any() and second[name].any()):
                continue
            changes = first[name].float(), second[name].float()
            by_layer.setdefault(layer, []).append(_matrix_overlap(*changes, benign[name].float()))
    return [
        FeatureOverlap(layer, *(sum(values) / len(values) for values in zip(*overlaps, strict=True)))
        for layer, overlaps in sorted(by_layer.items())
    ]


def _matrix_overlap(first: Tensor, second: Tensor, benign: Tensor) -> tuple[float, float]:
    """Overlap of two updates (out, in) of one matrix: (invariant, spurious), as :class:`FeatureOverlap` defines them."""
    size = benign.shape[1]
    general = min(GENERAL_DIRECTIONS, size // 2)
    basis = leading_directions(benign, general)  # (in, general)
    rank = min(RANK, general // 2)
    invariant = subspace_overlap(*(leading_directions(change @ basis, rank) for change in (first, second)))
    rest = [change - (change @ basis) @ basis.T for change in (first, second)]
    spurious = subspace_overlap(*(leading_directions(change, rank) for change in rest))
    return _above_chance(invariant, rank / general), _above_chance(spurious, rank / (size - general))


def leading_directions(matrix: Tensor, rank: int) -> Tensor:
    """The `rank` leading right singular vectors of a matrix (out, in), as columns: (in, rank)."""
    _, _, right = torch.svd_lowrank(matrix, q=min(rank + OVERSAMPLING, *matrix.shape), niter=4)
    return right[:, :rank]


def subspace_overlap(first: Tensor, second: Tensor) -> float:
    """‖UᵀV‖²/k for orthonormal columns U, V of shape (n, k): 1 for equal, 0 for orthogonal, k/n on average for random spans."""
    return float((first.T @ second).square().sum() / first.shape[1])


def _above_chance(value: float, chance: float) -> float:
    return (value - chance) / (1 - chance)
