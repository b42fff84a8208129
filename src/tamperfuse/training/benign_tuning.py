"""A simulated benign fine-tuning: whether a model that is being hardened still learns from benign text."""

from collections.abc import Sequence

import torch

from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.precision import Masters
from tamperfuse.training.batches import pack_samples
from tamperfuse.training.objectives import response_nll
from tamperfuse.training.trap import mean_nll
from tamperfuse.training.weights import SimulatedAttacker, gradients


def tuned_nll(
    loaded: LoadedModel,
    masters: Masters,
    samples: Sequence[Sample],
    *,
    steps: int,
    learning_rate: float,
    batch: int = 4,
) -> float:
    """NLL of benign samples after a few steps of AdamW on these samples, in nats a token.

    The weights are afterwards what they were, bit by bit, and no random number is drawn. With several processes each computes
    the same; not for sharded weights.

    Time: `steps` forward and backward passes over `batch` samples, as many steps of AdamW, a forward pass over all samples.
    Memory: four copies of the weights in float32 while it runs: the change, AdamW's two moments, the gradient.

    Args:
        loaded: the model, as a hook of a training receives it.
        masters: its weights.
        samples: benign, at least one; used in turn.
        steps: of the fine-tuning.
        learning_rate: of AdamW, greater than 0.
        batch: samples in a step.
    """
    tuning = SimulatedAttacker(masters, learning_rate)
    parameters = [parameter for parameter, _ in masters.trainable()]
    for step in range(steps):
        packed = pack_samples(
            [samples[(step * batch + i) % len(samples)] for i in range(batch)], loaded.model.device
        )
        counts = torch.tensor(packed.counts, device=loaded.model.device)
        with tuning.applied():
            gradient = gradients(
                parameters, lambda: (response_nll(loaded.model, packed) / counts).mean().backward()
            )
        tuning.step(gradient)
    with tuning.applied():
        return mean_nll(loaded, samples)
