"""Trace an attack from inside the model: likelihoods after every step, gradient cosines at some steps.

SDD's argument (Chen et al., ACL 2025, section 3) describes malicious fine-tuning as raising the preference for the attacker's
answer y_c over y_o, the model's original answer. Under SDD y_o is good prose, so lowering its likelihood should lower general
ability. :class:`AttackTracer` is an attack's hook that measures the parts of this argument. After every step it records, on
held-out prompts, the log-likelihoods of y_c and y_o and the NLL of benign text; at some steps it compares three gradients, layer
by layer: of the attack's loss, of the NLL of the original answers, and of benign text's NLL.
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
from tamperfuse.training.objectives import SupervisedObjective, accumulate_gradient

# Scale of the implicit reward β log(π/π₀): the usual value of DPO (Rafailov et al., 2023, arXiv 2305.18290).
BETA = 0.1
OUTSIDE_LAYERS = -1  # the "layer" of embeddings, output head and final norm
ALL_PARAMETERS = -2


@dataclass(frozen=True)
class Probes:
    """The samples that an attack is traced with. `original` and `compliant` answer the same held-out prompts, in order.

    Attributes:
        original: y_o, the model's answers before the attack.
        compliant: y_c, the answers that the attacker trains towards.
        benign: harmless prompts with answers, from sources that no training uses.
        attacker: answered prompts of the attacker, from which an attack draws the samples that it trains on.
    """

    original: Sequence[Sample]
    compliant: Sequence[Sample]
    benign: Sequence[Sample]
    attacker: Sequence[Sample]


@dataclass(frozen=True)
class TracePoint:
    """Likelihoods after one step of an attack.

    Attributes:
        step: optimizer steps so far; 0 is before the attack.
        original: log π(y_o | x) over the held-out prompts, nats per token.
        compliant: log π(y_c | x) over the held-out prompts, nats per token.
        preference: mean of σ(β (log π(y_c)/π₀(y_c) − log π(y_o)/π₀(y_o))), in (0, 1); ½ at step 0, where π = π₀. The
            Bradley–Terry form of the paper's section 3 with DPO's implicit reward: equation (15) of docs/theory.md.
        benign: NLL of benign text, nats per token.
    """

    step: int
    original: float
    compliant: float
    preference: float
    benign: float


@dataclass(frozen=True)
class GradientCosines:
    """Cosines between the gradients of two NLLs at one step, in [−1, 1]; NaN where a gradient is zero.

    Attributes:
        step: optimizer steps so far.
        layer: from 0; −1 for parameters outside the layers, −2 for all parameters together.
        attacker_original: negative where lowering the NLL of the attacker's samples lowers the likelihood of original answers.
        attacker_benign: negative where it lowers the likelihood of benign text.
        original_benign: positive where the likelihoods of original answers and benign text rise and fall together, as SDD's
            argument requires.
    """

    step: int
    layer: int
    attacker_original: float
    attacker_benign: float
    original_benign: float


@dataclass
class AttackTracer:
    """Hook of an attack. While gradients are compared, memory holds three copies of the trained weights, in their dtype.

    Attributes:
        loaded: the model under attack.
        probes: the samples to measure with.
        gradients_at: steps at which gradients are compared.
        points: one for every step so far.
        cosines: one for every layer and step of `gradients_at` so far.
        seconds: time spent in this hook.
    """

    loaded: LoadedModel
    probes: Probes
    gradients_at: Collection[int]
    points: list[TracePoint] = field(default_factory=list)
    cosines: list[GradientCosines] = field(default_factory=list)
    seconds: float = 0.0
    _before: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, step: int) -> None:
        """Measure the model after this step."""
        start = time.perf_counter()
        self.points.append(self._measure(step))
        if step in self.gradients_at:
            self.cosines += self._compare_gradients(step)
        self.seconds += time.perf_counter() - start

    def _measure(self, step: int) -> TracePoint:
        probes = self.probes
        groups = (probes.original, probes.compliant, probes.benign)
        samples = [sample for group in groups for sample in group]
        values = iter(score(self.loaded, samples, label=f"diagnosis, step {step}"))
        original, compliant, benign = (np.array([next(values)[0] for _ in group]) for group in groups)
        if self._before is None:
            self._before = original, compliant
        log_ratio = (compliant - self._before[1]) - (original - self._before[0])
        tokens = [sum(sample.response_tokens for sample in group) for group in groups]
        return TracePoint(
            step=step,
            original=float(original.sum() / tokens[0]),
            compliant=float(compliant.sum() / tokens[1]),
            preference=float(expit(BETA * log_ratio).mean()),
            benign=float(-benign.sum() / tokens[2]),
        )

    def _compare_gradients(self, step: int) -> list[GradientCosines]:
        probes = self.probes
        gradients = [gradient(self.loaded, samples) for samples in (probes.attacker, probes.original, probes.benign)]
        return [GradientCosines(step, layer, *cosines) for layer, cosines in gradient_cosines(*gradients).items()]


def gradient(loaded: LoadedModel, samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Gradient of the mean NLL per response token, by parameter name, in each parameter's dtype.

    Clears the parameters' `grad`.
    """
    model = loaded.model
    model.zero_grad(set_to_none=True)
    with torch.enable_grad():
        total = sum(sample.response_tokens for sample in samples)
        accumulate_gradient(SupervisedObjective(), model, samples, total, model.device)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return gradients


def gradient_cosines(
    attacker: dict[str, Tensor], original: dict[str, Tensor], benign: dict[str, Tensor]
) -> dict[int, tuple[float, float, float]]:
    """Cosines of (attacker, original), (attacker, benign) and (original, benign) by layer, numbered as in GradientCosines."""
    products: dict[int, np.ndarray] = defaultdict(lambda: np.zeros((3, 3)))
    for name in attacker.keys() & original.keys() & benign.keys():
        rows = torch.stack([gradients[name].flatten().float() for gradients in (attacker, original, benign)])
        gram = (rows @ rows.T).double().cpu().numpy()
        products[layer_of(name)] += gram
        products[ALL_PARAMETERS] += gram
    by_layer = {}
    for layer, gram in sorted(products.items()):
        norms = np.sqrt(np.diag(gram))
        with np.errstate(invalid="ignore", divide="ignore"):
            cosines = np.clip(gram / np.outer(norms, norms), -1, 1)
        by_layer[layer] = (float(cosines[0, 1]), float(cosines[0, 2]), float(cosines[1, 2]))
    return by_layer


def layer_of(name: str) -> int:
    """Number of the layer that a parameter belongs to, from its name; −1 for parameters outside the layers.

    `model.layers.7.mlp.up_proj.weight` and GPT-2's `transformer.h.7.ln_1.weight` are both in layer 7.
    """
    match = re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.", name)
    return int(match[1]) if match else OUTSIDE_LAYERS
