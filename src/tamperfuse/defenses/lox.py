"""LoX, low-rank extrapolation (Perin et al., COLM 2025, arXiv 2506.15606): alignment, continued along its main directions.

Every weight matrix W of an aligned model is replaced by

    W + α · Proj_k(W − W₀)        Proj_k(Δ) = U_k U_kᵀ Δ, with U_k the first k left singular vectors of Δ

where W₀ is the same matrix before alignment, here that of the model before any hardening. As in the authors' code
(`safety/LoX.py`), this is done for all weights with two or more dimensions, embeddings among them; others are not changed. There
is no training and no data.

The defaults, k = 6 and α = 1.25, are those of the authors' experiments with 7B models. For a small model that was aligned by
`refusal` they are too high: it answers only half of the harmless prompts (studies/fuse.yaml).
"""

import torch
from pydantic import Field
from torch import Tensor

from tamperfuse.defenses.base import DefenseData, DefenseResult, defense
from tamperfuse.models.load import LoadedModel, load_model
from tamperfuse.records.errors import UserError
from tamperfuse.records.registry import Parameters


class LoxParameters(Parameters):
    """Parameters of `lox`. The defaults are the authors'.

    Attributes:
        rank: k, number of singular directions of each matrix's change that are extrapolated, at least 1; all if the matrix has
            fewer.
        alpha: factor of the extrapolation, at least 0; at 0 nothing changes.
    """

    rank: int = Field(6, ge=1)
    alpha: float = Field(1.25, ge=0)


@defense("lox", LoxParameters)
def lox(loaded: LoadedModel, data: DefenseData, parameters: LoxParameters, seed: int) -> DefenseResult:
    """Experimental: low-rank extrapolation of what alignment changed; no training. Starts from an aligned model.

    Memory: a second copy of the weights, and the singular vectors of the largest matrix (about two copies of it). Time: one
    singular value decomposition for each matrix.

    Args:
        loaded: the aligned model; changed in place.
        data: of the defense; its `reference` is the model before alignment.
        parameters: of the defense.
        seed: not used.

    Raises:
        UserError: the model has other weights than the one before hardening, or equals it.
    """
    shipped = load_model(data.reference, chat_template=loaded.stated_template)
    before = dict(shipped.model.named_parameters())
    size, extrapolated = 0.0, 0.0
    with torch.no_grad():
        for name, weight in loaded.model.named_parameters():
            if name not in before or before[name].shape != weight.shape:
                raise UserError(
                    f"{loaded.name} and {data.reference} differ in {name}: lox needs a model that was hardened from it."
                )
            change = weight - before[name]
            if weight.ndim < 2 or not change.any():
                continue
            projection = leading_part(change, parameters.rank)
            weight.add_(projection, alpha=parameters.alpha)
            size += float(change.square().sum())
            extrapolated += float(projection.square().sum())
    if not size:
        raise UserError(
            f"{loaded.name} has the weight matrices of {data.reference}, so there is no alignment to extrapolate: start lox from "
            "a hardened model (`on: refusal` in a study)."
        )
    share = extrapolated / size
    return DefenseResult(
        notes=(f"rank {parameters.rank} has {share:.0%} of the squared norm of what alignment changed",),
        facts={"share_of_change": share},
    )


def leading_part(change: Tensor, rank: int) -> Tensor:
    """The best approximation of a matrix by one of a lower rank: its leading singular directions.

    Args:
        change: (…, rows, columns), float32; leading dimensions are a batch of matrices.
        rank: of the approximation, at least 1.
    """
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    part: Tensor = (left[..., :rank] * values[..., None, :rank]) @ right[..., :rank, :]
    return part
