"""Models with dropout compute in training what they compute in evaluation."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    PreTrainedModel,
)

from tamperfuse.models.dropout import without_dropout
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.packed_check import prepare_forward
from tamperfuse.training.batches import pack_samples
from tamperfuse.training.fit import Training, fit
from tamperfuse.training.objectives import response_nll

WIDTH = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
MODELS: dict[str, Any] = {
    "modules": lambda: GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50)),
    "attributes": lambda: OPTForCausalLM(OPTConfig(**WIDTH, ffn_dim=32, word_embed_proj_dim=16, layerdrop=0.5)),
    "configuration": lambda: FalconForCausalLM(FalconConfig(**WIDTH, hidden_dropout=0.1, attention_dropout=0.1)),
    "routers": lambda: MixtralForCausalLM(
        MixtralConfig(
            **WIDTH, intermediate_size=32, num_key_value_heads=2, router_jitter_noise=0.5, attention_dropout=0.1
        )
    ),
}


def logits(model: PreTrainedModel, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(torch.arange(12)[None], use_cache=False).logits


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_training_mode_is_deterministic_within_the_block(name: str) -> None:
    torch.manual_seed(0)
    model: PreTrainedModel = MODELS[name]()
    model.eval()
    expected, before = logits(model, 0), model.config.to_dict()
    model.train()
    assert not torch.equal(logits(model, 1), logits(model, 2)), "it has dropout"
    with without_dropout(model):
        assert torch.equal(logits(model, 1), logits(model, 2))
        torch.testing.assert_close(logits(model, 1), expected)
    assert model.config.to_dict() == before
    assert not torch.equal(logits(model, 1), logits(model, 2)), "its probabilities are restored"


def test_a_threshold_of_routers_is_no_dropout() -> None:
    """PhiMoE masks experts by its `router_jitter_noise` in evaluation as well."""
    torch.manual_seed(0)
    model = PhimoeForCausalLM(
        PhimoeConfig(**WIDTH, intermediate_size=32, num_key_value_heads=2, num_local_experts=4, pad_token_id=0)
    )
    model.eval()
    expected = logits(model, 0)
    with without_dropout(model):
        torch.testing.assert_close(logits(model, 0), expected, rtol=0, atol=0)


def test_training_is_without_dropout(tiny: LoadedModel) -> None:
    """The loss of the first step is that of the model in evaluation mode."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=tiny.model.config.vocab_size))
    loaded = replace(tiny, model=model.eval())
    prepare_forward(model)
    sample = tiny.chat.sample("a prompt", "a response of several words", 32)
    with torch.no_grad():
        expected = float(response_nll(model, pack_samples([sample], model.device)))
    result = fit(loaded, [sample], Training(steps=1, batch=1, learning_rate=1e-4), seed=0)
    assert result.losses[0] == pytest.approx(expected / sample.response_tokens, abs=1e-5)
