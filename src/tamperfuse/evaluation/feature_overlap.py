"""A measure on real models that corresponds to the feature model's overlap counts n_vo and n_so.

In the feature model two models share a feature if both masks contain it. A network has no such mask, but an update of a weight
matrix W (out × in) depends on certain directions of its input: the right singular vectors of ΔW with the largest singular
values. Two updates that depend on the same directions share features; their overlap is how far these directions span the
same space.

Invariant features serve the general task, spurious ones do not. Here the leading input directions of benign text's gradient
represent the invariant features, and their orthogonal complement the spurious ones: both updates are projected onto one of the
two subspaces and then compared. This is a definition chosen because it can be computed, not a consequence of the theory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tamperfuse.evaluation.attack_trace import OUTSIDE_LAYERS, layer_of

RANK = 8  # leading directions of each update that are compared; fewer if one of them has fewer (LoRA of a lower rank)
NEGLIGIBLE = 1e-3  # of the largest singular value; smaller ones are rounding of the weights
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
    basis = leading_directions(benign, min(GENERAL_DIRECTIONS, size // 2))  # (in, general)
    general = basis.shape[1]
    rank = min(RANK, max(1, general // 2))
    within = [change @ basis for change in (first, second)]
    rest = [change - part @ basis.T for change, part in zip((first, second), within, strict=True)]
    return _overlap_above_chance(within, rank, general), _overlap_above_chance(rest, rank, size - general)


def _overlap_above_chance(changes: Sequence[Tensor], rank: int, size: int) -> float:
    """Overlap of as many leading directions as both changes have, at most `rank`, in a space of `size` dimensions."""
    first, second = (leading_directions(change, rank) for change in changes)
    common = min(first.shape[1], second.shape[1])
    chance = common / size
    return (subspace_overlap(first[:, :common], second[:, :common]) - chance) / (1 - chance)


def leading_directions(matrix: Tensor, rank: int) -> Tensor:
    """The `rank` leading right singular vectors of a matrix (out, in), as columns: (in, rank), or fewer if its rank is lower."""
    _, values, right = torch.svd_lowrank(matrix, q=min(rank + OVERSAMPLING, *matrix.shape), niter=4)
    considerable = max(1, int((values > NEGLIGIBLE * values[0]).sum()))
    return right[:, : min(rank, considerable)]


def subspace_overlap(first: Tensor, second: Tensor) -> float:
    """‖UᵀV‖²/k for orthonormal columns U, V of shape (n, k): 1 for equal, 0 for orthogonal, k/n on average for random spans."""
    return float((first.T @ second).square().sum() / first.shape[1])
