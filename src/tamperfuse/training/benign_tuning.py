"""A simulated benign fine-tuning: whether a model that is being hardened still learns from benign text."""

from collections.abc import Sequence
from functools import partial

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
        drawn = [samples[(step * batch + i) % len(samples)] for i in range(batch)]
        with tuning.applied():
            gradient = gradients(parameters, partial(_backward, loaded, drawn))
        tuning.step(gradient)
        del gradient  # before the next one is computed
    with tuning.applied():
        return mean_nll(loaded, samples)


def _backward(loaded: LoadedModel, samples: Sequence[Sample]) -> None:
    """Accumulate the gradient of the mean over samples of the NLL a token."""
    packed = pack_samples(samples, loaded.model.device)
    counts = torch.tensor(packed.counts, device=loaded.model.device)
    torch.autograd.backward((response_nll(loaded.model, packed) / counts).mean())
