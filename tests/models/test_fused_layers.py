"""Fused layers give what the model's own code gives, forward and backward, and replace nothing else."""

import copy
from types import MethodType

import pytest
import torch
from torch import Tensor, nn
from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tamperfuse.models.cpu.fused_layers import SLICE, use_fused_layers

SIZES = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.2))
    for name, weight in model.named_parameters():
        if "norm" in name:  # as they come they are all ones, which hides mistakes
            nn.init.normal_(weight, 1.0, 0.2)
    return model


def gradients(model: PreTrainedModel, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    out = model(input_ids=tokens, labels=tokens)
    out.loss.backward()
    return out.logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def fused_modules(model: nn.Module) -> int:
    return sum(isinstance(vars(module).get("forward"), MethodType) for module in model.modules())


@pytest.mark.parametrize("rows", [7, SLICE // 48 + 5], ids=["one slice", "two slices"])
def test_logits_and_gradients_are_the_models_own(rows: int) -> None:
    own = llama()
    fused = copy.deepcopy(own)
    use_fused_layers(fused)
    assert fused_modules(fused) == 2 * 2 + 1 + 2  # norms of two layers, the last norm, two MLPs
    tokens = torch.randint(0, 64, (rows, 1) if rows > 100 else (1, rows))
    tokens = torch.cat([tokens, tokens], dim=1)
    (logits, expected), (fused_logits, found) = gradients(own, tokens), gradients(fused, tokens)
    torch.testing.assert_close(fused_logits, logits, rtol=1e-4, atol=1e-4)
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5, msg=name)


def test_in_bfloat16_it_is_no_further_from_the_truth_than_the_models_own_code() -> None:
    own = llama()
    tokens = torch.randint(0, 64, (1, 200))
    truth = gradients(copy.deepcopy(own), tokens)[1]
    reduced = copy.deepcopy(own).to(torch.bfloat16)
    fused = copy.deepcopy(reduced)
    use_fused_layers(fused)
    errors = []
    for model in (reduced, fused):
        found = gradients(model, tokens)[1]
        errors.append(sum(float((found[name].float() - truth[name]).norm() ** 2) for name in truth) ** 0.5)
    assert errors[1] < 1.2 * errors[0]


def test_a_frozen_norm_gets_no_gradient_and_lets_it_pass() -> None:
    model = llama()
    use_fused_layers(model)
    model.requires_grad_(False)
    model.model.layers[0].self_attn.q_proj.requires_grad_(True)
    _, found = gradients(model, torch.randint(0, 64, (1, 9)))
    assert list(found) == ["model.layers.0.self_attn.q_proj.weight"]


def test_a_copy_of_the_model_uses_its_own_weights() -> None:
    model = llama()
    use_fused_layers(model)
    twin = copy.deepcopy(model)
    tokens = torch.randint(0, 64, (1, 9))
    before = twin(input_ids=tokens).logits
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert torch.equal(twin(input_ids=tokens).logits, before)


def test_what_computes_something_else_under_the_same_name_is_left_alone() -> None:
    model = GemmaForCausalLM(GemmaConfig(**SIZES))  # its norms multiply with 1 + weight, its MLPs use GELU
    use_fused_layers(model)
    assert fused_modules(model) == 0
