"""Refusal ablation: the direction in which hidden states of harmful and harmless prompts differ is projected out of the weights.

Arditi et al. (2024, arXiv 2406.11717): the direction is a difference in means (section 2.3); weight orthogonalization (section 4)
prevents every matrix from writing to it. They select layer and position by validation; this implementation uses the last token
of the rendered prompt, and the layer is a parameter. No training.

With a prefill the attacker also writes the beginning of every answer, and the direction is taken at the prefill's last token.
Refusal ablation with a prefill is said to break TAR and SEAM (arXiv 2605.26526, second-hand; how it combines the two was not
looked up).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from tamperfuse.attacks.base import AttackData, AttackResult, PromptResponse, attack, benign_samples, harmful_shots
from tamperfuse.models.layers import decoder_layers, stores_inputs_first
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.packed import is_packed, pack, packed_logits
from tamperfuse.models.precision import compute_dtype, reduced_precision
from tamperfuse.records.batching import group_by_budget
from tamperfuse.records.errors import UserError
from tamperfuse.records.registry import Budget, Parameters
from tamperfuse.training.layer_losses import outputs_of
from tamperfuse.training.rows import ROW_TOKENS

# Names, in various architectures, of the output matrices of attention and MLP, which write to the residual stream.
WRITERS = re.compile(
    r"(^|\.)(o_proj|out_proj|down_proj|c_proj|dense|dense_4h_to_h|fc2|fc_out|wo|w2)(\.weight|\.bias)?$"
)

REMAINS = 1e-3  # largest share of a hidden state in the direction, after its removal; rounding leaves about 1e-6


class RefusalAblationParameters(Parameters):
    """Parameters of `refusal_ablation`.

    Attributes:
        layer: layer whose output gives the direction, as a share of the model's depth in (0, 1]. On the undefended SmolLM2-135M
            refusals disappear at the default; directions from the first half of the layers or from the last layers have little
            effect.
        prompts: number of harmful prompts, and of harmless ones.
        prefill: beginning of every answer, which the model continues, and at whose end the direction is taken; `{prompt}` is
            replaced by the request. "" for none.
    """

    layer: float = Field(0.65, gt=0, le=1)
    prompts: int = Field(64, ge=1)
    prefill: str = ""


@attack(
    "refusal_ablation",
    RefusalAblationParameters,
    budget=lambda p: Budget(shots=p.prompts, benign=p.prompts),
    search_over={"layer": (0.2, 1.0)},
)
def refusal_ablation(
    loaded: LoadedModel, data: AttackData, parameters: RefusalAblationParameters, seed: int
) -> AttackResult:
    """The direction between harmful and harmless prompts is projected out of the weights (abliteration); no training."""
    if not is_packed(loaded.model):
        raise UserError(f"refusal_ablation does not support {type(loaded.model).__name__}: leave this attack out.")
    harmful = harmful_shots(data, "refusal_ablation", parameters.prompts, seed)
    harmless = benign_samples(data, "refusal_ablation", parameters.prompts, seed)
    writers, layers = list(_writers(loaded.model)), decoder_layers(loaded.model)
    depth = max(1, round(parameters.layer * len(layers)))
    prefilled = loaded
    if parameters.prefill:
        prefilled = replace(loaded, chat=replace(loaded.chat, prefill=parameters.prefill))
    means = [_mean_state(prefilled, layers[depth - 1], pairs) for pairs in (harmful, harmless)]
    direction = means[0] - means[1]
    if not float(direction.norm()):
        raise UserError(
            f"The hidden states of {loaded.name} after layer {depth} are the same for harmful and harmless prompts: choose "
            "another `layer`, or another `retain` source."
        )
    data.run_hook(0)
    loaded.chat = prefilled.chat
    unit = direction / direction.norm()
    with torch.no_grad():
        for weight, axis in writers:
            view = weight.movedim(axis, -1)  # shares memory with the weight
            view -= (view @ unit)[..., None] * unit
    _check_removed(loaded, layers[-1], unit, harmful[0][0])
    data.run_hook(1)
    return AttackResult(
        samples=2 * parameters.prompts, tokens_trained=0, notes=(f"direction after layer {depth} of {len(layers)}",)
    )


@torch.no_grad()
def _mean_state(loaded: LoadedModel, layer: nn.Module, pairs: Sequence[PromptResponse]) -> Tensor:
    """Mean over prompts of a layer's output at the prompt's last token: (hidden,), float32.

    Raises:
        UserError: the layer returns several hidden states for a token, as in Gemma 3n.
    """
    sequences = [loaded.chat.prompt(prompt) for prompt, _ in pairs]
    total = torch.zeros((), device=loaded.model.device)
    dtype, _ = compute_dtype(loaded.model.device)
    loaded.model.eval()
    with reduced_precision(loaded.model, dtype), outputs_of([layer]) as outputs:
        for group in group_by_budget(list(map(len, sequences)), ROW_TOKENS):
            row, layout = pack([sequences[i] for i in group], len(sequences[group[0]]), loaded.model.device)
            ends = (layout.prefix - 1 + torch.cumsum(torch.tensor(layout.lengths), 0)).to(row.device)
            packed_logits(loaded.model, row, layout, ends[:1])
            states = outputs[0]
            if states.ndim != 3:
                raise UserError(
                    f"refusal_ablation does not support {type(loaded.model).__name__}, whose layers return several hidden "
                    "states for a token: leave this attack out."
                )
            total = total + states[0, ends].float().sum(0)
    return total / len(sequences)


@torch.no_grad()
def _check_removed(loaded: LoadedModel, layer: nn.Module, unit: Tensor, prompt: str) -> None:
    """Check that no hidden state has a component in the direction any more.

    Raises:
        UserError: a norm between the matrices and the residual stream writes the direction back, as in Gemma 3 and OLMo 2.
    """
    with outputs_of([layer]) as outputs:
        row, layout = pack([loaded.chat.prompt(prompt)], 0, loaded.model.device)
        packed_logits(loaded.model, row, layout, layout.position_ids[0, :1])
    states = outputs[0][0].float()
    share = float(((states @ unit).abs() / states.norm(dim=-1)).max())
    if share > REMAINS:
        raise UserError(
            f"refusal_ablation does not remove the direction from {type(loaded.model).__name__} ({share:.1%} of a hidden state "
            "remains): it has a norm after the matrices that are changed. Leave this attack out."
        )


def _writers(model: PreTrainedModel) -> Iterator[tuple[Tensor, int]]:
    """The weights that write to the residual stream, each with its axis of length `hidden`.

    Embeddings tied to the output matrix lose the direction in both, as in the authors' code.
    """
    hidden = int(model.config.get_text_config().hidden_size)
    for module in model.get_decoder().modules():
        if isinstance(module, nn.Embedding) and module.embedding_dim == hidden:
            yield module.weight, -1
    for layer in decoder_layers(model):
        matrices = 0
        for path, module in layer.named_modules():
            for name, weight in module.named_parameters(recurse=False):
                if WRITERS.search(f"{path}.{name}"):
                    matrices += weight.ndim > 1
                    yield weight, _output_axis(weight, module, hidden)
        if matrices < 2:
            raise UserError(
                f"refusal_ablation does not know which matrices of {type(model).__name__} write to the residual stream: leave "
                "this attack out."
            )


def _output_axis(weight: Tensor, module: nn.Module, hidden: int) -> int:
    """The axis of a weight along which its outputs lie.

    Raises:
        UserError: it does not have `hidden` outputs.
    """
    axis = -1 if weight.ndim == 1 or stores_inputs_first(module) else -2
    if weight.shape[axis] != hidden:
        raise UserError(
            f"refusal_ablation cannot tell inputs from outputs in the weights of {type(module).__name__}: leave this attack out."
        )
    return axis
