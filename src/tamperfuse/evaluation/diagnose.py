"""Following an attack from inside: does it take the road that SDD's argument assumes?

The argument (Chen et al., ACL 2025, section 3) reads malicious fine-tuning as raising the preference for the attacker's answer
y_c over the model's own answer y_o. SDD makes y_o good prose, so that pushing it down should push general ability down.
A :class:`Follower` is called as an attack's hook. After every step it records, on held-out prompts, how likely both answers
are and how likely benign text is; at some steps it compares three gradients, layer by layer: the attacker's, that of the
own answers' loss, and that of benign text's loss.
"""

import re
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from tamperfuse.evaluation.score import score
from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel
from tamperfuse.training.objectives import SupervisedObjective

# Of the implicit reward β log π/π_before: DPO's usual value (Rafailov et al., 2023, arXiv 2305.18290).
BETA = 0.1
OUTSIDE = -1  # the "layer" of embeddings, output and final norm
WHOLE = -2  # all parameters together


@dataclass(frozen=True)
class Probes:
    """What a model is looked at with. `own` and `compliant` answer the same held-out prompts, in the same order.

    Attributes:
        own: y_o, the model's own answers before the attack.
        compliant: y_c, the answers an attacker wants.
        benign: harmless prompts with answers, of sources no training used.
        attacker: samples that the attack trains on; its gradient is taken on them.
    """

    own: Sequence[Sample]
    compliant: Sequence[Sample]
    benign: Sequence[Sample]
    attacker: Sequence[Sample]


@dataclass(frozen=True)
class Trace:
    """One step of an attack.

    Attributes:
        step: 0 is before it.
        own: log π(y_o | x), nats a token, over the held-out prompts.
        compliant: log π(y_c | x), likewise.
        preference: mean of σ(β (log π(y_c)/π₀(y_c) − log π(y_o)/π₀(y_o))), (0, 1); ½ at step 0, where π = π₀. The
            Bradley–Terry form of the paper's section 3, with DPO's implicit reward: equation (15) of docs/theory.md.
        benign: NLL of benign text, nats a token.
    """

    step: int
    own: float
    compliant: float
    preference: float
    benign: float


@dataclass(frozen=True)
class Alignment:
    """Cosines between gradients of losses (all losses are NLLs), each in [−1, 1], NaN where a gradient vanishes.

    Attributes:
        step: of the attack.
        layer: from 0; −1 for what lies outside the layers, −2 for all parameters together.
        attacker_own: negative where the attacker's step makes the model's own answers less likely.
        attacker_benign: negative where the attacker's step makes benign text less likely.
        own_benign: positive where own answers and benign text rise and fall together, as SDD's argument needs.
    """

    step: int
    layer: int
    attacker_own: float
    attacker_benign: float
    own_benign: float


@dataclass
class Follower:
    """The hook. Memory while gradients are compared: three copies of the trained weights, in their dtype.

    Attributes:
        loaded: the model under attack.
        probes: what it is looked at with.
        gradients_at: steps at which gradients are compared.
        seconds: spent here, all in all.
    """

    loaded: LoadedModel
    probes: Probes
    gradients_at: Collection[int]
    traces: list[Trace] = field(default_factory=list)
    alignments: list[Alignment] = field(default_factory=list)
    seconds: float = 0.0
    _before: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, step: int) -> None:
        """Look at the model as this step left it."""
        began = time.perf_counter()
        self.traces.append(self._trace(step))
        if step in self.gradients_at:
            self.alignments += self._align(step)
        self.seconds += time.perf_counter() - began

    def _trace(self, step: int) -> Trace:
        probes = self.probes
        groups = (probes.own, probes.compliant, probes.benign)
        values = iter(score(self.loaded, [s for group in groups for s in group], what=f"diagnosis, step {step}"))
        own, compliant, benign = (np.array([next(values)[0] for _ in group]) for group in groups)
        if self._before is None:
            self._before = own, compliant
        raised = (compliant - self._before[1]) - (own - self._before[0])
        tokens = [sum(sample.response_tokens for sample in group) for group in groups]
        return Trace(
            step=step,
            own=float(own.sum() / tokens[0]),
            compliant=float(compliant.sum() / tokens[1]),
            preference=float(expit(BETA * raised).mean()),
            benign=float(-benign.sum() / tokens[2]),
        )

    def _align(self, step: int) -> list[Alignment]:
        probes = self.probes
        taken = [gradient(self.loaded, samples) for samples in (probes.attacker, probes.own, probes.benign)]
        return [Alignment(step, layer, *cosines) for layer, cosines in gradient_cosines(*taken).items()]


def gradient(loaded: LoadedModel, samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Gradient of the mean NLL (a response token) of samples, by the name of each trained parameter, in its dtype.

    What was in the parameters' `grad` is lost.
    """
    model = loaded.model
    model.zero_grad(set_to_none=True)
    with torch.enable_grad():
        total = sum(sample.response_tokens for sample in samples)
        SupervisedObjective().backward(model, samples, total, torch.autograd.backward, model.device)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def gradient_cosines(
    attacker: dict[str, Tensor], own: dict[str, Tensor], benign: dict[str, Tensor]
) -> dict[int, tuple[float, float, float]]:
    """Cosines (attacker, own), (attacker, benign), (own, benign) by layer, as :class:`Alignment` numbers them."""
    products: dict[int, np.ndarray] = defaultdict(lambda: np.zeros((3, 3)))
    for name in attacker.keys() & own.keys() & benign.keys():
        rows = torch.stack([taken[name].flatten().float() for taken in (attacker, own, benign)])
        gram = (rows @ rows.T).double().cpu().numpy()
        products[layer_of(name)] += gram
        products[WHOLE] += gram
    found = {}
    for layer, gram in sorted(products.items()):
        lengths = np.sqrt(np.diag(gram))
        with np.errstate(invalid="ignore", divide="ignore"):
            cosines = np.clip(gram / np.outer(lengths, lengths), -1, 1)
        found[layer] = (float(cosines[0, 1]), float(cosines[0, 2]), float(cosines[1, 2]))
    return found


def layer_of(name: str) -> int:
    """Which layer a parameter belongs to, by its name (`…layers.7.mlp…` → 7, GPT-2's `…h.7.…` as well); −1 for none."""
    found = re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.", name)
    return int(found[1]) if found else OUTSIDE
