"""Magnitude pruning: the weights of smallest magnitude in every matrix are set to 0, which makes models cheaper to serve.

Han et al. (2015, arXiv 1506.02626); layer by layer, it is the baseline in the papers on SparseGPT (Frantar and Alistarh, 2023,
arXiv 2301.00774) and Wanda (Sun et al., 2024, arXiv 2306.11695).
"""

import torch
from pydantic import Field

from tamperfuse.attacks.base import AttackData, AttackResult, attack
from tamperfuse.models.layers import layer_matrices
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.registry import Parameters


class PruneParameters(Parameters):
    """Parameters of `prune`.

    Attributes:
        share: share of each matrix's weights that are set to 0, in (0, 1).
    """

    share: float = Field(0.2, gt=0, lt=1)


@attack("prune", PruneParameters, malicious=False, uses=())
def prune(loaded: LoadedModel, data: AttackData, parameters: PruneParameters, seed: int) -> AttackResult:
    """Magnitude pruning: a share of the weights of every matrix is set to 0; no training."""
    data.run_hook(0)
    with torch.no_grad():
        for weight in layer_matrices(loaded.model):
            for matrix in weight if weight.ndim == 3 else [weight]:  # stacked matrices of experts, one by one
                sizes = matrix.abs().flatten()
                if count := round(parameters.share * len(sizes)):
                    matrix[matrix.abs() <= sizes.kthvalue(count).values] = 0
    data.run_hook(1)
    return AttackResult()
