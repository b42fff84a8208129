"""What the layers of a decoder compute on some samples: their predictions through the logit lens, and their MLPs' outputs.

The logit lens (nostalgebraist, 2020) applies the final norm and the output embeddings to the hidden states after any layer:

    layer 1 ──┬─▶ layer 2 ──┬─▶ … ─▶ last layer ─▶ final norm ─▶ output embeddings ─▶ loss
              └─▶ norm, embeddings ─▶ loss         (the same norm and embeddings everywhere)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from tamperfuse.models.chat import Sample
from tamperfuse.models.layers import decoder_layers, final_norm, mlp_modules
from tamperfuse.models.packed import is_packed, packed_logits
from tamperfuse.records.errors import UserError
from tamperfuse.training.batches import pack_samples
from tamperfuse.training.cross_entropy import sequence_nll


def evenly_spaced(layers: Sequence[nn.Module], count: int) -> list[nn.Module]:
    """At most `count` layers at equal distances, the last one among them."""
    count = min(count, len(layers))
    return [layers[(i + 1) * len(layers) // count - 1] for i in range(count)]


def layer_nll(
    model: nn.Module, samples: Sequence[Sample], device: torch.device, count: int
) -> tuple[Tensor, list[list[Tensor]]]:
    """The NLL of responses as some layers predict them, and what these layers' MLPs return.

    The logits are those of the model for the last layer, and those of the logit lens for others, without what a model does to its
    logits besides (such as scaling them). Memory: the logits of one layer's response tokens at a time.

    Args:
        model: a decoder that runs on packed batches, or a wrapper of one (DDP).
        samples: at least one.
        device: of the model.
        count: number of layers, at least 1.

    Returns:
        −log p(response | prompt) of each sample in nats a response token, a mean over layers: (samples,). And for each layer,
        for each sample, the output of its MLP where the next token is one of the response: (response tokens, hidden).

    Raises:
        UserError: the model does not run on packed batches, or its layers, norm or MLPs cannot be identified.
    """
    inner: Any = model.module if isinstance(model, DistributedDataParallel) else model
    if not is_packed(inner):
        raise UserError(
            f"{type(inner).__name__} cannot be run on packed batches, which losses on layers need: choose a defense without such "
            "losses, for example sdd, or a decoder such as Llama or Qwen."
        )
    layers = evenly_spaced(decoder_layers(inner), count)
    norm, head = final_norm(inner), inner.get_output_embeddings()
    batch = pack_samples(samples, device)

    def lens(states: Tensor) -> Tensor:
        return sequence_nll(head(norm(states)), batch.targets, batch.counts)

    with outputs_of([*layers[:-1], *mlp_modules(layers)]) as outputs:
        logits = packed_logits(model, batch.row, batch.layout, batch.positions)
    states = [output[0, batch.positions] for output in outputs]
    losses = [sequence_nll(logits, batch.targets, batch.counts)]
    losses += [checkpoint(lens, state, use_reentrant=False) for state in states[: len(layers) - 1]]
    nll = torch.stack(losses).mean(0) / torch.tensor(batch.counts, device=device)
    return nll, [list(torch.split(state, list(batch.counts))) for state in states[len(layers) - 1 :]]


@contextmanager
def outputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Within the block a list receives what each module returns in a forward pass, in the order of the modules."""
    outputs = [torch.empty(0)] * len(modules)

    def hook(index: int) -> Any:
        def store(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs[index] = output[0] if isinstance(output, tuple) else output

        return store

    handles = [module.register_forward_hook(hook(index)) for index, module in enumerate(modules)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
