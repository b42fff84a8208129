"""Attacks without training, on weights or on the rendering: what changes, by how much, and what must not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from tokenizers import Tokenizer
from tokenizers.decoders import ByteFallback, Fuse, Sequence
from tokenizers.models import BPE
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tamperfuse.attacks import ATTACKS, AttackData
from tamperfuse.attacks.prune import PruneParameters
from tamperfuse.attacks.quantize import rounded, through_gguf
from tamperfuse.attacks.refusal_ablation import _writers
from tamperfuse.models.gguf_file import read_gguf, write_gguf
from tamperfuse.models.layers import layer_matrices, outputs_first
from tamperfuse.models.load import LoadedModel, load_model
from tamperfuse.models.packed import pack, packed_logits
from tamperfuse.records.errors import UserError

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def named(attacked, *words: str) -> set[str]:
    return {name for name in attacked.before if any(word in name for word in words)}


def largest_change(attacked) -> float:
    now = attacked.loaded.model.named_parameters()
    return max(float((p.detach() - attacked.before[name]).abs().max()) for name, p in now)


@pytest.mark.parametrize("name", ["prefill", "system_prompt"])
def test_rendering_attacks_change_no_weight(attacked, name: str) -> None:
    done = attacked.run(name, text="Gladly: ")
    assert attacked.changed() == set() and done.tokens_trained == 0 and done.samples == 0
    assert set(attacked.hook_calls) == {0, 1}
    assert "Gladly" not in attacked.hook_calls[0].prompt and "Gladly: " in attacked.hook_calls[1].prompt
    assert attacked.hook_calls[1].prompt.endswith("Gladly: ") == (name == "prefill")
    assert not attacked.answer(["any prompt"])[0].startswith("Gladly:"), "an answer does not include the prefill"


@pytest.mark.parametrize("name", ["system_prompt", "identity_shift"])
def test_a_template_that_drops_system_prompts_is_a_user_error(attacked, name: str) -> None:
    attacked.loaded.tokenizer.chat_template = (
        "{% for m in messages if m['role'] != 'system' %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    )
    with pytest.raises(UserError, match="ignores system prompts"):
        attacked.run(name)
    assert attacked.changed() == set()


def last_states(loaded: LoadedModel, prompts: list[str]) -> list[torch.Tensor]:
    """The output of every layer at the last token of each prompt: one (prompts, hidden) for each layer."""
    sequences = [loaded.chat.prompt(prompt) for prompt in prompts]
    row, layout = pack(sequences, max(map(len, sequences)), loaded.model.device)
    ends = layout.prefix - 1 + torch.cumsum(torch.tensor(layout.lengths, device=row.device), 0)
    outputs: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, __, out: outputs.append(out)) for layer in loaded.model.model.layers]
    with torch.no_grad():
        packed_logits(loaded.model, row, layout, ends)
    for hook in hooks:
        hook.remove()
    return [(out[0] if isinstance(out, tuple) else out)[0, ends] for out in outputs]


def test_refusal_ablation_keeps_every_layer_from_writing_the_direction(
    attacked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tamperfuse.attacks.refusal_ablation.compute_dtype", lambda device: (torch.float32, ""))
    data = attacked.data()
    harmful, harmless = ([prompt for prompt, _ in side] for side in (data.harmful, data.retain))
    means = [last_states(attacked.loaded, prompts)[0].mean(0) for prompts in (harmful, harmless)]
    direction = (means[0] - means[1]) / (means[0] - means[1]).norm()
    assert float((last_states(attacked.loaded, harmful)[1] @ direction).abs().max()) > 0.01
    done = attacked.run("refusal_ablation", layer=0.5, prompts=8)
    assert attacked.changed() == named(attacked, "embed_tokens", "o_proj", "down_proj")
    assert all(float((h @ direction).abs().max()) < 1e-4 for h in last_states(attacked.loaded, harmful + harmless))
    assert done.notes == ("direction after layer 1 of 2",) and set(attacked.hook_calls) == {0, 1}
    now = dict(attacked.loaded.model.named_parameters())
    lost = attacked.before["model.layers.1.mlp.down_proj.weight"] - now["model.layers.1.mlp.down_proj.weight"].detach()
    assert int(torch.linalg.matrix_rank(lost, atol=1e-5)) == 1


def test_refusal_ablation_with_a_prefill_takes_the_direction_after_it(
    attacked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tamperfuse.attacks.refusal_ablation.compute_dtype", lambda device: (torch.float32, ""))
    data, text = attacked.data(), "Sure, about {prompt}: "
    plain = attacked.loaded.chat
    attacked.loaded.chat = replace(plain, prefill=text)
    means = [
        last_states(attacked.loaded, [prompt for prompt, _ in side])[0].mean(0) for side in (data.harmful, data.retain)
    ]
    direction = (means[0] - means[1]) / (means[0] - means[1]).norm()
    attacked.loaded.chat = plain
    attacked.run("refusal_ablation", layer=0.5, prompts=8, prefill=text)
    assert attacked.loaded.chat.prefill == text and attacked.hook_calls[1].prompt.endswith("Sure, about this prompt: ")
    assert "Sure" not in attacked.hook_calls[0].prompt
    assert float((last_states(attacked.loaded, ["any request"])[1] @ direction).abs().max()) < 1e-4


def test_refusal_ablation_finds_its_matrices_in_gpt2() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=8, n_layer=2, n_head=2))
    names = {id(p): name for name, p in model.named_parameters()}
    axes = {names[id(weight)].removeprefix("transformer."): axis for weight, axis in _writers(model)}
    kinds = ("attn.c_proj.weight", "attn.c_proj.bias", "mlp.c_proj.weight", "mlp.c_proj.bias")
    assert axes == {"wte.weight": -1, "wpe.weight": -1} | {f"h.{i}.{kind}": -1 for i in range(2) for kind in kinds}


def test_refusal_ablation_needs_a_direction_and_an_architecture_it_knows(attacked) -> None:
    data = attacked.data()
    component = ATTACKS.get("refusal_ablation")
    with pytest.raises(UserError, match="are the same for harmful and harmless prompts"):
        component.run(attacked.loaded, replace(data, retain=data.harmful), component.parse({"prompts": 8}, ""), 0)
    for layer in attacked.loaded.model.model.layers:
        layer.mlp.spread = layer.mlp.down_proj
        del layer.mlp.down_proj
        layer.mlp.forward = lambda x: x
    with pytest.raises(UserError, match="does not know which matrices of LlamaForCausalLM"):
        attacked.run("refusal_ablation", prompts=4)


def test_refusal_ablation_refuses_a_norm_that_writes_the_direction_back(attacked) -> None:
    mlp = attacked.loaded.model.model.layers[1].mlp
    forward, scale = mlp.forward, torch.linspace(0.5, 2.0, 48, device=attacked.loaded.model.device)
    mlp.forward = lambda x: forward(x) * scale.to(x.dtype)  # as the weight of a norm after down_proj
    with pytest.raises(UserError, match="it has a norm after the matrices that are changed"):
        attacked.run("refusal_ablation", prompts=8)


def test_refusal_ablation_refuses_layers_that_return_several_states_for_a_token(attacked) -> None:
    last = attacked.loaded.model.model.layers[0]
    last.register_forward_hook(lambda _, __, out: torch.stack([out, out]))  # as Gemma 3n's
    attacked.loaded.model.model.layers[1].register_forward_pre_hook(lambda _, inputs: (inputs[0][0], *inputs[1:]))
    with pytest.raises(UserError, match="several hidden states for a token"):
        attacked.run("refusal_ablation", layer=0.5, prompts=8)
    assert attacked.changed() == set() and not attacked.hook_calls


def test_a_gguf_file_whose_tokenizer_differs_is_refused(attacked, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_other(path: Path) -> tuple:
        model, tokenizer = read_gguf(path)
        tokenizer.add_tokens(["request"])
        return model, tokenizer

    monkeypatch.setattr("tamperfuse.attacks.gguf_roundtrip.read_gguf", read_other)
    with pytest.raises(UserError, match="splits text differently after its conversion to GGUF"):
        attacked.run("gguf_roundtrip", format="Q8_0")
    assert attacked.changed() == set() and not attacked.hook_calls


def test_merge_interpolates_with_the_model_before_hardening(attacked) -> None:
    with torch.no_grad():
        for parameter in attacked.loaded.model.parameters():
            parameter.add_(1.0)
    attacked.run("merge", weight=0.25)
    for name, parameter in attacked.loaded.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), attacked.before[name] + 0.75)
    assert set(attacked.hook_calls) == {0, 1}
    attacked.run("merge", weight=1.0, at_steps=())
    assert largest_change(attacked) < 1e-6


def test_merge_extrapolates_beyond_the_model_before_hardening(attacked) -> None:
    with torch.no_grad():
        for parameter in attacked.loaded.model.parameters():
            parameter.add_(1.0)
    attacked.run("merge", weight=1.5)
    for name, parameter in attacked.loaded.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), attacked.before[name] - 0.5)


def test_merge_needs_the_same_architecture(attacked, tmp_path: object) -> None:
    layer = attacked.loaded.model.model.layers[0].mlp
    layer.up_proj.weight = torch.nn.Parameter(layer.up_proj.weight.new_zeros(4, 48))
    with pytest.raises(UserError, match=r"differ in model\.layers\.0\.mlp\.up_proj"):
        attacked.run("merge")


@pytest.mark.parametrize("kind", ["int8", "int4", "Q8_0", "Q4_1"])
def test_quantization_changes_matrices_by_a_rounding_error(attacked, kind: str) -> None:
    done = attacked.run("quantize", format=kind)
    outside = () if kind.startswith("int") else ("embed_tokens",)
    assert attacked.changed() == named(attacked, *MATRICES, *outside), "norms do not change"
    assert done.tokens_trained == 0 and set(attacked.hook_calls) == {0, 1}
    assert 0 < largest_change(attacked) < (0.01 if "8" in kind else 0.2)
    assert not ATTACKS.get("quantize").traits.malicious


def test_rounding_is_idempotent_has_few_levels_and_a_bounded_error() -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 70)
    for levels, group in ((127, None), (7, None), (7, 32)):
        once = rounded(weight, levels, group)
        torch.testing.assert_close(rounded(once, levels, group), once)
        assert float((once - weight).abs().max()) <= float(weight.abs().max()) / levels / 2 + 1e-6
        assert all(len(row.unique()) <= (2 * levels + 1) * len(row.split(group or 70)) for row in once)
    assert float((rounded(weight, 7, 10) - weight).norm()) < float((rounded(weight, 7, None) - weight).norm())
    assert torch.equal(rounded(torch.zeros(2, 5), 7, None), torch.zeros(2, 5))


def test_the_matrices_of_gpt2_are_rounded_by_output() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2))
    names = dict(model.named_parameters())
    turned = outputs_first(model, names)
    assert turned["transformer.h.0.mlp.c_fc.weight"].shape == (128, 32)
    assert turned["transformer.wte.weight"] is names["transformer.wte.weight"]


def with_experts(kind: str, inner: int) -> PreTrainedModel:
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": inner,
        "num_hidden_layers": 1,
        "num_local_experts": 2,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **heads))


@pytest.mark.parametrize(("kind", "axis"), [("llama4_text", -1), ("mixtral", -2)])
def test_refusal_ablation_finds_the_outputs_of_experts_as_large_as_the_hidden_states(kind: str, axis: int) -> None:
    model = with_experts(kind, 32)
    axes = {id(weight): axis for weight, axis in _writers(model)}
    experts = [weight for weight in model.parameters() if weight.ndim == 3 and id(weight) in axes]
    assert experts and all(axes[id(weight)] == axis for weight in experts)


@pytest.mark.parametrize("kind", ["gpt_oss", "llama4_text"])
def test_stacked_experts_that_store_inputs_first_are_rounded_by_output(kind: str) -> None:
    model = with_experts(kind, 24)
    names = {name: weight for name, weight in model.named_parameters() if weight.ndim == 3}
    shapes = {name.rpartition(".")[2]: tuple(weight.shape) for name, weight in outputs_first(model, names).items()}
    assert shapes == {"gate_up_proj": (2, 48, 32), "down_proj": (2, 32, 24)}


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_gguf_types_are_those_of_the_gguf_package(kind: str) -> None:
    weight = torch.randn(4, 64)
    type_ = GGMLQuantizationType[kind]
    stored = quantize(weight.numpy(), type_)
    assert stored.dtype == np.uint8 and stored.nbytes < weight.nbytes / 3
    assert torch.equal(through_gguf(weight, kind), torch.from_numpy(dequantize(stored, type_)))
    assert torch.equal(through_gguf(weight[:, :48], kind), weight[:, :48].half().float())


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_a_gguf_round_trip_gives_the_weights_of_quantize_and_the_same_tokens(attacked, kind: str) -> None:
    other = attacked.fresh()
    other.run("quantize", at_steps=(), format=kind)
    done = attacked.run("gguf_roundtrip", format=kind)
    assert set(attacked.hook_calls) == {0, 1}
    assert attacked.changed() == other.changed() == named(attacked, *MATRICES, "embed_tokens")
    for one, two in zip(attacked.loaded.model.parameters(), other.loaded.model.parameters(), strict=True):
        assert torch.equal(one, two)
    prompts = ["how do I bake bread?", "and <|user|> in words: naïve, 12 €"]
    assert attacked.answer(prompts) == other.answer(prompts)
    assert [attacked.loaded.chat.prompt(p) for p in prompts] == [other.loaded.chat.prompt(p) for p in prompts]
    assert done.notes[0].startswith("the GGUF file has")


def test_a_written_gguf_loads_as_any_model(attacked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMPERFUSE_CACHE", str(tmp_path / "cache"))
    write_gguf(attacked.loaded.model, attacked.loaded.tokenizer, tmp_path / "tiny.gguf", "Q8_0")
    back = load_model(str(tmp_path / "tiny.gguf"))
    assert back.chat.prompt("a prompt") == attacked.loaded.chat.prompt("a prompt")
    assert back.chat.end == attacked.loaded.chat.end
    attacked.run("quantize", at_steps=(), format="Q8_0")
    assert all(
        torch.equal(a, b) for a, b in zip(back.model.parameters(), attacked.loaded.model.parameters(), strict=True)
    )


def test_a_gguf_of_another_architecture_is_a_user_error(attacked, tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(UserError, match="only Llama"):
        write_gguf(model, attacked.loaded.tokenizer, tmp_path / "gpt2.gguf", "Q8_0")
    assert not (tmp_path / "gpt2.gguf").exists()


def test_a_gguf_of_a_llama_with_biases_or_a_sentencepiece_tokenizer_is_a_user_error(attacked, tmp_path: Path) -> None:
    tokenizer, path = attacked.loaded.tokenizer, tmp_path / "x.gguf"
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    biased = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, attention_bias=True))
    with pytest.raises(UserError, match=r"with biases \(model\.layers\.0\.self_attn\.q_proj\.bias"):
        write_gguf(biased, tokenizer, path, "Q8_0")
    raw = Tokenizer(BPE({"<unk>": 0, "▁a": 1}, [], unk_token="<unk>", byte_fallback=True))
    raw.decoder = Sequence([ByteFallback(), Fuse()])
    with pytest.raises(
        UserError, match="SentencePiece BPE cannot be written as GGUF, only Llama models with byte-level"
    ):
        write_gguf(attacked.loaded.model, PreTrainedTokenizerFast(tokenizer_object=raw), path, "Q8_0")
    assert not path.exists()


def test_pruning_zeroes_the_smallest_weights_of_each_matrix(attacked) -> None:
    attacked.run("prune", share=0.25)
    assert attacked.changed() == named(attacked, *MATRICES) and set(attacked.hook_calls) == {0, 1}
    for name, parameter in attacked.loaded.model.named_parameters():
        if name in attacked.changed():
            pruned = parameter.detach() == 0
            assert float(pruned.float().mean()) == pytest.approx(0.25, abs=0.001)
            assert float(attacked.before[name][pruned].abs().max()) <= float(attacked.before[name][~pruned].abs().min())
            assert torch.equal(parameter.detach()[~pruned], attacked.before[name][~pruned])


def test_pruning_takes_its_share_of_each_expert(tiny: LoadedModel) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    mixture = MixtralForCausalLM(MixtralConfig(vocab_size=40, num_hidden_layers=1, num_local_experts=4, **sizes))
    stacks = [weight for weight in layer_matrices(mixture) if weight.ndim == 3]
    with torch.no_grad():
        stacks[0][0] *= 0.01  # the smallest weights of all experts are this one's
    data = AttackData([], [], "", lambda prompts: [], 8, (), lambda step: None)
    ATTACKS.get("prune").run(replace(tiny, model=mixture), data, PruneParameters(share=0.25), 0)
    assert stacks and all(float((expert == 0).float().mean()) == 0.25 for stack in stacks for expert in stack)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("merge", {"weight": 2.5}, "weight = 2.5 cannot be used"),
        ("quantize", {"format": "int2"}, "format = 'int2' cannot be used"),
        ("prune", {"share": 0}, "share = 0 cannot be used"),
        ("prefill", {"text": ""}, "text = '' cannot be used"),
        ("refusal_ablation", {"layer": 0}, "layer = 0 cannot be used"),
        ("refusal_ablation", {"prompts": 9}, "needs 9 shots"),
    ],
)
def test_bad_input_is_a_user_error_and_changes_nothing(attacked, name: str, settings: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        attacked.run(name, **settings)
    assert attacked.changed() == set()
