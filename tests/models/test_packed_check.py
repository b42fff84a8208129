"""What the check of packed attention remembers, and what it finds in a configuration."""

from pathlib import Path

import pytest
import torch
from transformers import (
    DogeConfig,
    DogeForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    XGLMConfig,
    XGLMForCausalLM,
)

from tamperfuse.models import packed_check
from tamperfuse.models.packed import ATTENTION
from tamperfuse.models.packed_check import prepare_forward
from tamperfuse.models.window import context_window
from tamperfuse.records.errors import UserError

SIZES = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[PreTrainedModel]:
    """The models that are run by the check."""
    models: list[PreTrainedModel] = []
    check = packed_check._check
    monkeypatch.setattr(packed_check, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(packed_check, "_check", lambda model: (models.append(model), check(model))[1])
    return models


def test_a_configuration_that_remembered_is_not_run_again(checked: list[PreTrainedModel]) -> None:
    models = [LlamaForCausalLM(LlamaConfig(**SIZES)) for _ in range(2)]
    models.append(LlamaForCausalLM(LlamaConfig(**SIZES, rope_theta=5.0)))
    for model in models:
        prepare_forward(model)
        assert model.config._attn_implementation == ATTENTION
    assert [id(model) for model in checked] == [id(models[0]), id(models[2])]


def test_without_a_cache_every_model_is_checked(checked: list[PreTrainedModel], tmp_path: Path) -> None:
    (tmp_path / "packed").write_text("a file where the folder should be")
    for _ in range(2):
        prepare_forward(LlamaForCausalLM(LlamaConfig(**SIZES)))
    assert len(checked) == 2


def test_why_a_configuration_cannot_be_packed_is_remembered(
    checked: list[PreTrainedModel], caplog: pytest.LogCaptureFixture
) -> None:
    config = Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8)
    for _ in range(2):
        prepare_forward(Gemma2ForCausalLM(config))
    assert len(checked) == 1 and caplog.text.count("because Gemma2Attention gives its attention softcap") == 2


def test_layers_with_masks_of_their_own_are_not_packed(caplog: pytest.LogCaptureFixture) -> None:
    """Doge computes its masks from weights, which are constant in a fresh model: only training shows that they count."""
    model = DogeForCausalLM(DogeConfig(**SIZES))
    prepare_forward(model)
    assert model.config._attn_implementation != ATTENTION and "gives its attention a mask" in caplog.text


def test_a_model_that_does_not_run_in_bfloat16_is_refused_where_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    xglm = XGLMConfig(vocab_size=97, d_model=32, ffn_dim=64, attention_heads=4, num_layers=2)
    monkeypatch.setattr(packed_check, "compute_dtype", lambda device: (torch.float32, ""))
    prepare_forward(XGLMForCausalLM(xglm))
    monkeypatch.setattr(packed_check, "compute_dtype", lambda device: (torch.bfloat16, ""))
    with pytest.raises(UserError, match="XGLMForCausalLM does not run in bfloat16, in which this cpu computes"):
        prepare_forward(XGLMForCausalLM(xglm))
    llama = LlamaForCausalLM(LlamaConfig(**SIZES))
    prepare_forward(llama)
    assert llama.config._attn_implementation == ATTENTION and llama.dtype == torch.float32


def test_a_collapsed_model_is_not_packed_and_says_nothing_about_others(
    checked: list[PreTrainedModel], caplog: pytest.LogCaptureFixture
) -> None:
    """Logits that depend on the last token alone are equal in packed rows whatever attention does there."""
    collapsed, healthy = (LlamaForCausalLM(LlamaConfig(**SIZES)) for _ in range(2))
    with torch.no_grad():
        for layer in collapsed.model.layers:
            layer.self_attn.o_proj.weight.mul_(1e-4)
    prepare_forward(collapsed)
    assert collapsed.config._attn_implementation != ATTENTION and "hardly depend on earlier tokens" in caplog.text
    prepare_forward(healthy)
    assert healthy.config._attn_implementation == ATTENTION and len(checked) == 2


def test_packed_batches_can_be_turned_off(
    checked: list[PreTrainedModel], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAMPERFUSE_PACKED", "0")
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    prepare_forward(model)
    assert model.config._attn_implementation != ATTENTION and "because TAMPERFUSE_PACKED is 0" in caplog.text
    monkeypatch.delenv("TAMPERFUSE_PACKED")
    prepare_forward(model)
    assert model.config._attn_implementation == ATTENTION and len(checked) == 1, "turning it off is not remembered"


def test_longrope_limits_the_context_window_to_its_short_factors() -> None:
    factors = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 10_000.0}
    rope = {**factors, "original_max_position_embeddings": 64}
    assert context_window(LlamaConfig(**SIZES, max_position_embeddings=256, rope_parameters=rope)) == 64
    assert context_window(LlamaConfig(**SIZES, max_position_embeddings=256)) == 256
