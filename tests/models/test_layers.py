from itertools import pairwise

import pytest
from torch import nn
from transformers import (
    Glm4Config,
    Glm4ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from tamperfuse.models.layers import attention_modules, decoder_layers, final_norm, layer_matrices, mlp_modules
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError


def names(model: object, parts: list) -> set[str]:
    name_of = {id(module): name for name, module in model.named_modules()}  # type: ignore[attr-defined]
    return {name_of[id(part)] for part in parts}


def test_parts_of_a_llama(tiny: LoadedModel) -> None:
    model = tiny.model
    assert names(model, decoder_layers(model)) == {"model.layers.0", "model.layers.1"}
    assert names(model, attention_modules(model)) == {"model.layers.0.self_attn", "model.layers.1.self_attn"}
    assert names(model, mlp_modules(decoder_layers(model))) == {"model.layers.0.mlp", "model.layers.1.mlp"}
    assert final_norm(model) is model.model.norm
    assert len(layer_matrices(model)) == 14
    assert all(a is not b for a, b in pairwise(layer_matrices(model)))


def test_parts_of_other_architectures() -> None:
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=8, n_layer=3, n_head=2))
    assert names(gpt, attention_modules(gpt)) == {f"transformer.h.{i}.attn" for i in range(3)}
    assert names(gpt, mlp_modules(decoder_layers(gpt))) == {f"transformer.h.{i}.mlp" for i in range(3)}
    assert final_norm(gpt) is gpt.transformer.ln_f
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    mixture = MixtralForCausalLM(MixtralConfig(vocab_size=40, num_hidden_layers=2, num_local_experts=2, **sizes))
    assert names(mixture, decoder_layers(mixture)) == {"model.layers.0", "model.layers.1"}
    experts = mlp_modules(decoder_layers(mixture))
    assert [type(module).__name__ for module in experts] == ["MixtralSparseMoeBlock"] * 2


def test_norms_beside_the_mlp_and_of_another_width_are_left_out() -> None:
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
    }
    glm = Glm4ForCausalLM(Glm4Config(vocab_size=40, num_hidden_layers=2, pad_token_id=0, **sizes))
    assert {type(module).__name__ for module in mlp_modules(decoder_layers(glm))} == {"Glm4MLP"}
    sizes.pop("head_dim")
    neox = GPTNeoXForCausalLM(
        GPTNeoXConfig(vocab_size=40, num_hidden_layers=2, hidden_size=8, intermediate_size=8, num_attention_heads=2)
    )
    phi = Phi3ForCausalLM(Phi3Config(vocab_size=40, num_hidden_layers=2, pad_token_id=0, **sizes))
    for model, name in ((neox, "GPTNeoXMLP"), (phi, "Phi3MLP")):
        assert {type(module).__name__ for module in mlp_modules(decoder_layers(model))} == {name}, "no dropout"
    glm.model.norm_of_another_width = nn.LayerNorm(4)
    assert final_norm(glm) is glm.model.norm
    layers = decoder_layers(glm)
    layers[1].add_module("shared_mlp", nn.Linear(8, 8))
    with pytest.raises(UserError, match=r"several modules that may be its MLP \(mlp, shared_mlp\)"):
        mlp_modules(layers)


def test_layers_that_cannot_be_told_apart(tiny: LoadedModel) -> None:
    tiny.model.config.num_hidden_layers = 7
    with pytest.raises(UserError, match="cannot be identified"):
        decoder_layers(tiny.model)


def test_parts_that_are_missing(tiny: LoadedModel) -> None:
    layers = decoder_layers(tiny.model)
    layers[1].forward_part = layers[1].mlp
    del layers[1].mlp, tiny.model.model.norm
    with pytest.raises(UserError, match="has no module called mlp"):
        mlp_modules(layers)
    with pytest.raises(UserError, match="The final norm of LlamaForCausalLM cannot be identified"):
        final_norm(tiny.model)
