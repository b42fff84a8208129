"""LoRA against 4-bit weights: what it learns reaches the model's own weights, and nothing else does."""

import importlib.util
from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear, LoraLayer, ParamWrapper
from transformers import AutoConfig, AutoModelForCausalLM

from tamperfuse.models.load import LoadedModel
from tamperfuse.models.packed import pack, packed_logits
from tamperfuse.models.packed_check import prepare_forward
from tamperfuse.records.errors import UserError
from tamperfuse.training.adapters import _add_adapter, _add_updates, _without_adapter, lora_adapter, qlora_adapter
from tamperfuse.training.fit import Training, fit
from tamperfuse.training.objectives import SupervisedObjective, accumulate_gradient


def samples(loaded: LoadedModel) -> list:
    texts = [(f"What is dish {i}?", f"Dish number {i} is a soup of {i} herbs.") for i in range(6)]
    return [loaded.chat.sample(prompt, response, 32) for prompt, response in texts]


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj")])
def test_lora_layers_compute_what_pefts_do(tiny: LoadedModel, targets: str | tuple[str, ...]) -> None:
    tiny.model.to("cpu")  # on a GPU peft's layers stay as they are
    batch = samples(tiny)
    total = sum(sample.response_tokens for sample in batch)
    training = Training(method="lora", lora_rank=3, lora_alpha=5, lora_targets=targets)
    with lora_adapter(tiny, training) as adapted:
        layers = [module for module in adapted.modules() if isinstance(module, Linear)]
        torch.manual_seed(1)
        for layer in layers:  # peft begins with zeros, of which nothing would be seen
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
        results = []
        for own_layer in (True, False):
            if not own_layer:
                for layer in layers:
                    del layer.forward
            adapted.zero_grad()
            loss = accumulate_gradient(SupervisedObjective(), adapted, batch, total, tiny.model.device)
            results.append((float(loss), [p.grad.clone() for p in adapted.parameters() if p.requires_grad]))
    assert len(layers) == len(results[0][1]) / 2 == (14 if targets == "all-linear" else 4)
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_qlora_adds_a_low_rank_change_to_the_weights_before_quantization(tiny: LoadedModel) -> None:
    pytest.importorskip("bitsandbytes")
    before = {name: weight.clone() for name, weight in tiny.model.named_parameters()}
    dtypes: list[set[torch.dtype]] = []
    training = Training(steps=6, batch=3, learning_rate=1e-2, method="qlora", lora_rank=2)
    result = fit(
        tiny,
        samples(tiny),
        training,
        seed=0,
        at_steps=[3],
        hook=lambda _: dtypes.append({p.dtype for p in tiny.model.parameters()}),
    )
    assert result.losses[-1] < result.losses[0]
    assert torch.uint8 in dtypes[0]  # it did train on quantized weights
    after = dict(tiny.model.named_parameters())
    assert after.keys() == before.keys()
    for name, weight in after.items():
        assert weight.dtype == torch.float32
        change = weight.detach() - before[name]
        if name.endswith("_proj.weight"):  # no rounding to 4 bits is left in it
            assert 0 < torch.linalg.matrix_rank(change, rtol=1e-3) <= 2, name
        else:
            assert not change.any(), name
    assert not hasattr(tiny.model, "is_loaded_in_4bit")


def test_qlora_without_bitsandbytes_says_how_to_get_it(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs bitsandbytes"):
        fit(tiny, samples(tiny), Training(steps=1, batch=3, method="qlora"), seed=0)


def test_qlora_does_not_train_in_shards(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr("tamperfuse.training.adapters.is_sharded", lambda model: True)
    with pytest.raises(UserError, match="use method lora, or DDP"), qlora_adapter(tiny, Training(method="qlora")):
        pass


def test_qlora_targets_that_match_nothing_leave_the_model_as_it_was(tiny: LoadedModel) -> None:
    pytest.importorskip("bitsandbytes")
    before = [weight.clone() for weight in tiny.model.parameters()]
    training = Training(steps=1, batch=3, method="qlora", lora_targets=("no_such_layer",))
    with pytest.raises(UserError, match="match no layer"):
        fit(tiny, samples(tiny), training, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(before, tiny.model.parameters(), strict=True))


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
VISION = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"image_size": 32, "patch_size": 8},
}


def of_kind(kind: str, tiny: LoadedModel, **values: Any) -> LoadedModel:
    """A model of another architecture with the tiny model's tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values)).float().eval()
    prepare_forward(model)
    return LoadedModel(kind, model, tiny.chat, kind)


def mixture(kind: str, tiny: LoadedModel, **values: Any) -> LoadedModel:
    return of_kind(kind, tiny, **SIZES, **EXPERTS, vocab_size=len(tiny.tokenizer), **values)


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    row, layout = pack([[5, 6, 7, 8, 9]], 0, torch.device("cpu"))
    return packed_logits(model, row, layout, torch.arange(5))


def with_update(adapted: torch.nn.Module) -> list[LoraLayer]:
    """The adapted layers, whose updates are no longer zero."""
    layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.05)
    return layers


@pytest.mark.parametrize(
    ("kind", "values", "left_out"),
    [
        ("llama4_text", {"intermediate_size_mlp": 64}, "experts.down_proj, experts.gate_up_proj, feed_forward.router"),
        ("phimoe", {}, "experts.down_proj, experts.gate_up_proj, mlp.router"),
        ("mixtral", {}, ""),
    ],
)
def test_all_linear_leaves_out_what_returns_a_tuple_and_says_so(
    kind: str, values: dict[str, Any], left_out: str, tiny: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="tamperfuse")
    loaded = mixture(kind, tiny, **values)
    fit(loaded, samples(loaded), Training(steps=1, batch=3, method="lora", lora_rank=2), seed=0)
    lines = [record.getMessage().strip() for record in caplog.records if "no adapter" in record.getMessage()]
    assert lines == ([f"all-linear gives no adapter to: {left_out}"] if left_out else [])
    with lora_adapter(loaded, Training(method="lora", lora_rank=2)) as adapted:
        assert with_update(adapted)
        during = logits(adapted)
    assert torch.allclose(logits(loaded.model), during, atol=1e-3 * float(during.std()))


def test_all_linear_leaves_a_vision_tower_alone(tiny: LoadedModel) -> None:
    text = {**SIZES, "vocab_size": len(tiny.tokenizer), "sliding_window": 16}
    tokens = {"image_token_index": 100, "boi_token_index": 101, "eoi_token_index": 102}
    loaded = of_kind("gemma3", tiny, text_config=text, vision_config=VISION, mm_tokens_per_image=4, **tokens)
    with lora_adapter(loaded, Training(method="lora", lora_rank=2)) as adapted:
        names = [name for name, module in adapted.named_modules() if isinstance(module, LoraLayer)]
    assert len(names) == 14 and all(".language_model." in name for name in names)


def test_updates_of_stacked_experts_reach_the_weights_without_a_merge(tiny: LoadedModel) -> None:
    """As `qlora` adds them, whose 4-bit layers cannot be merged into."""
    loaded = mixture("mixtral", tiny)
    training = Training(method="lora", lora_rank=2)
    adapted = _add_adapter(loaded, training, _without_adapter(loaded.model))
    layers = with_update(adapted)
    assert any(isinstance(layer, ParamWrapper) for layer in layers)
    during = logits(adapted)
    _add_updates({}, adapted)
    model = adapted.unload()
    assert torch.allclose(logits(model), during, atol=1e-3 * float(during.std()))


@pytest.mark.parametrize("targets", [("q_proj", "lm_head"), ("embed_tokens",), r".*(q_proj|lm_head)"])
def test_tied_weights_get_no_adapter(targets: Any, tiny: LoadedModel) -> None:
    before = {name: weight.clone() for name, weight in tiny.model.state_dict().items()}
    assert tiny.model.config.tie_word_embeddings
    training = Training(steps=1, batch=3, method="lora", lora_targets=targets)
    with pytest.raises(
        UserError, match=r"match (lm_head|model\.embed_tokens), whose weights .* as embeddings and as output"
    ):
        fit(tiny, samples(tiny), training, seed=0)
    after = tiny.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "lm_head")])
def test_updates_of_layers_that_were_not_quantized_reach_the_weights(targets: Any, tiny: LoadedModel) -> None:
    loaded = of_kind("llama", tiny, **SIZES, vocab_size=len(tiny.tokenizer), tie_word_embeddings=False)
    adapted = _add_adapter(
        loaded, Training(method="lora", lora_rank=2, lora_targets=targets), _without_adapter(loaded.model)
    )
    with_update(adapted)
    during = logits(adapted)
    _add_updates({}, adapted)
    assert torch.allclose(logits(adapted.unload()), during, atol=1e-3 * float(during.std()))
