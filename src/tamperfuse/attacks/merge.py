"""Merging: the weights are averaged with those of the model before hardening, which is often public as well.

Linear interpolation of a model and its ancestor is WiSE-FT (Wortsman et al., 2022, arXiv 2109.01903); what
merging does to alignment is studied by Hammoud et al. (2024, arXiv 2406.14563).
"""

import torch
from pydantic import Field

from tamperfuse.attacks.base import AttackData, AttackResult, attack
from tamperfuse.models.load import LoadedModel, load_model
from tamperfuse.records.errors import UserError
from tamperfuse.records.registry import Parameters


class MergeParameters(Parameters):
    """Parameters of `merge`.

    Attributes:
        weight: of the model before hardening, in [0, 1]; 0 changes nothing. At .5 most refusals of an undefended SmolLM2 stay
            (docs/attacks.md), so the default is closer to the ancestor than an average.
    """

    weight: float = Field(0.9, ge=0, le=1)


@attack("merge", MergeParameters, uses=())
def merge(loaded: LoadedModel, data: AttackData, parameters: MergeParameters, seed: int) -> AttackResult:
    """The weights are averaged with those of the model before hardening; no training."""
    data.run_hook(0)
    other = dict(load_model(data.reference).model.named_parameters())
    with torch.no_grad():
        for name, weight in loaded.model.named_parameters():
            if name not in other or other[name].shape != weight.shape:
                raise UserError(
                    f"{loaded.name} and {data.reference} differ in {name}: merge needs the model that this one was made "
                    "from (--reference)."
                )
            weight.lerp_(other[name], parameters.weight)
    data.run_hook(1)
    return AttackResult()
