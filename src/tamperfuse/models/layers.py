"""The parts of a decoder by what they do: its layers, their attention. For training and editing some weights only."""

import re

from torch import nn
from transformers import PreTrainedModel

from tamperfuse.records.errors import UserError


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The transformer blocks, first to last.

    Raises:
        UserError: the architecture keeps them in no list of their own.
    """
    count = int(model.config.get_text_config().num_hidden_layers)
    for module in model.get_decoder().modules():  # outer modules come first, so lists of experts are not reached
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise UserError(
        f"The layers of {type(model).__name__} cannot be told apart: choose a decoder such as Llama or Qwen."
    )


def attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The attention of every layer: its projections and, where there are any, the norms inside it.

    Raises:
        UserError: the architecture names nothing in its layers attention.
    """
    found = [
        child
        for layer in decoder_layers(model)
        for name, child in layer.named_children()
        if re.search("attn|attention", name) and not re.search("norm|ln", name)
    ]
    if not found:
        raise UserError(f"The layers of {type(model).__name__} have no part called attention: choose another method.")
    return found


def layer_matrices(model: PreTrainedModel) -> list[nn.Parameter]:
    """The weight matrices of all layers (fused experts' stacks of them as well): no embeddings, norms or biases."""
    return [weight for layer in decoder_layers(model) for weight in layer.parameters() if weight.ndim >= 2]
