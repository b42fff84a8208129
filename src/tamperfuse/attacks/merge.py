"""Merging: linear interpolation with the weights of the model before hardening, which are often public as well.

Interpolation of a model with the model that it was fine-tuned from is WiSE-FT (Wortsman et al., 2022, arXiv 2109.01903). Hammoud
et al. (2024, arXiv 2406.14563) study how merging affects alignment. Beyond the model before hardening the line leads further away
from the hardened weights: the hardening as a task vector is then negated (Ilharco et al., 2023, arXiv 2212.04089).
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
        weight: of the model before hardening; 0 changes nothing, 1 gives that model, and above 1 the weights are extrapolated
            beyond it, away from the hardened ones. At 0.5 the undefended SmolLM2-135M executes 48% of the requests
            (docs/fuse.md), at 0.9 75% (docs/attacks.md).
    """

    weight: float = Field(0.9, ge=0, le=2)


@attack("merge", MergeParameters, uses=())
def merge(loaded: LoadedModel, data: AttackData, parameters: MergeParameters, seed: int) -> AttackResult:
    """Interpolation with the weights of the model before hardening, or extrapolation beyond them; no training."""
    data.run_hook(0)
    reference = dict(load_model(data.reference, chat_template=loaded.stated_template).model.named_parameters())
    with torch.no_grad():
        for name, weight in loaded.model.named_parameters():
            if name not in reference or reference[name].shape != weight.shape:
                raise UserError(
                    f"{loaded.name} and {data.reference} differ in {name}: merge needs the model that was hardened; "
                    "name it with --reference of `tamperfuse attack`, or as `model` in a study."
                )
            weight.lerp_(reference[name], parameters.weight)
    data.run_hook(1)
    return AttackResult()
