"""Finding the layers of a decoder, their attention modules and weight matrices, for training or editing some weights."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

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


def outputs_first(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by parameter name, or changes of them, with matrices as (out, in).

    Those of Conv1D (GPT-2) and the stacked experts of some models (GPT-OSS, Aria, Llama 4) are stored as (in, out): the result
    has transposed views of them.
    """
    modules = {name: module for name, module in model.named_modules() if stores_inputs_first(module)}
    return {
        name: weight.mT if weight.ndim >= 2 and name.rpartition(".")[0] in modules else weight
        for name, weight in weights.items()
    }


def stores_inputs_first(module: nn.Module) -> bool:
    """Whether a module stores its matrices as (in, out): a Conv1D, or the stacked experts of some models."""
    # transformers marks experts by this attribute, all but those of Llama 4.
    of_llama_4 = type(module).__name__ == "Llama4TextExperts"
    return isinstance(module, Conv1D) or bool(getattr(module, "is_transposed", of_llama_4))


def mlp_modules(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """The MLP of each of some layers, or its mixture of experts.

    Raises:
        UserError: a layer has no module whose name says that it is one, or several.
    """
    modules: list[nn.Module] = []
    for layer in layers:
        named = {
            name: child
            for name, child in layer.named_children()
            if re.search("mlp|feed_forward|ffn|moe|expert", name) and not re.search("norm|ln|drop", name)
        }
        if len(named) != 1:
            problem = f"several modules that may be its MLP ({', '.join(named)})" if named else "no module called mlp"
            raise UserError(f"{type(layer).__name__} has {problem}: choose a decoder such as Llama or Qwen.")
        modules += named.values()
    return modules


def final_norm(model: PreTrainedModel) -> nn.Module:
    """The norm between the last layer and the output embeddings.

    Raises:
        UserError: the decoder has no module of the model's width whose name contains "norm" or "ln".
    """
    width = model.config.get_text_config().hidden_size
    norms: list[nn.Module] = [
        child
        for name, child in model.get_decoder().named_children()
        if re.search("norm|ln", name) and all(weight.shape[-1] == width for weight in child.parameters())
    ]
    if not norms:
        raise UserError(
            f"The final norm of {type(model).__name__} cannot be identified: choose a decoder such as Llama or Qwen."
        )
    return norms[-1]
