"""Finding the layers of a decoder, their attention modules and weight matrices, for training or editing some weights."""

import re

from torch import nn
from transformers import PreTrainedModel

from tamperfuse.records.errors import UserError


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The transformer blocks, in order.

    Raises:
        UserError: the architecture does not store them in one list.
    """
    count = int(model.config.get_text_config().num_hidden_layers)
    for module in model.get_decoder().modules():  # outer modules come first, so lists of experts are not returned
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise UserError(
        f"The layers of {type(model).__name__} cannot be identified: choose a decoder such as Llama or Qwen."
    )


def attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The attention module of every layer: its projections and, if there are any, the norms inside it.

    Raises:
        UserError: no module in the layers has a name that contains "attn" or "attention".
    """
    modules = [
        child
        for layer in decoder_layers(model)
        for name, child in layer.named_children()
        if re.search("attn|attention", name) and not re.search("norm|ln", name)
    ]
    if not modules:
        raise UserError(f"The layers of {type(model).__name__} have no module called attention: choose another method.")
    return modules


def layer_matrices(model: PreTrainedModel) -> list[nn.Parameter]:
    """The weight matrices of all layers, including stacked matrices of experts; no embeddings, norms or biases."""
    return [weight for layer in decoder_layers(model) for weight in layer.parameters() if weight.ndim >= 2]
