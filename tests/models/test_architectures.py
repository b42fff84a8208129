"""Decoder architectures of transformers: likelihoods, gradients and answers of a tiny random model are exact, packed or not."""

import re
from collections.abc import Collection
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tamperfuse.evaluation.generate import generate
from tamperfuse.models import packed_check
from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.packed import is_packed
from tamperfuse.models.packed_check import prepare_forward
from tamperfuse.records.errors import UserError
from tamperfuse.training.batches import pack_samples
from tamperfuse.training.objectives import response_nll

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
# Keys of another size than values, in DeepSeek's latent attention.
LATENT = {
    **EXPERTS,
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12},
    **{"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4},
}
GPT2 = {"n_positions": 128, "n_embd": 32, "n_layer": 3, "n_head": 4}
PACKED: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "mixtral": EXPERTS,
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": EXPERTS,
    "gemma": {},
    "gemma3_text": {"sliding_window": 16},
    "phi3": {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
    "olmo2": {},
    "gpt2": GPT2,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
    "gpt_neox": {},
    "smollm3": {},
    "deepseek_v3": LATENT,
    "gemma3n_text": {
        "intermediate_size": [64, 64, 64],
        "activation_sparsity_pattern": [0.5, 0.0, 0.0],
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "sliding_window": 16,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 97,
        "num_kv_shared_layers": 0,
        "laurel_rank": 4,
    },
}
PLAIN: dict[str, dict[str, Any]] = {
    "gemma2": {},
    "gpt_oss": EXPERTS,
    "bloom": {"n_layer": 3, "n_head": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "expand": 2},
    "jamba": {
        **EXPERTS,
        "use_mamba_kernels": False,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 4,
    },
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 16},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "diffllama": {},
    "stablelm": {},
    "nemotron": {},
    "mimo_v2_flash": EXPERTS,
    # A window that exists in the mask alone and is longer than the sequences of the check.
    "phimoe": {**EXPERTS, "sliding_window": 100},
    "qwen2_moe": {**EXPERTS, "use_sliding_window": True, "sliding_window": 100, "shared_expert_intermediate_size": 32},
    "llama4_text": {**EXPERTS, "attention_chunk_size": 64, "intermediate_size_mlp": 64},
}

# Some errors are too small to be seen with random weights, and none may appear once a model has been trained.
TRAINED = (
    *("llama", "mistral", "mixtral", "qwen3", "gemma3_text", "phi3", "gpt2", "gpt_neox", "opt", "deepseek_v3"),
    *("gemma2", "bloom", "gpt_oss", "jamba"),
)


def tiny_model(kind: str, values: dict[str, Any]) -> PreTrainedModel:
    """A model of an architecture with random weights, the same on every call."""
    config = AutoConfig.for_model(kind, **{**SIZES, **values})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).float().eval()


@pytest.fixture(autouse=True)
def _checked_anew_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_check, "_remembered", lambda model: None)
    monkeypatch.setattr("tamperfuse.evaluation.generate.compute_dtype", lambda device: (torch.float32, ""))


def train(model: PreTrainedModel, steps: int = 8) -> None:
    """Train on random sequences at a rate that moves all weights far from where they began."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        tokens = torch.randint(3, 97, (2, 24), generator=generator)
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.zero_grad()


@pytest.mark.parametrize(
    ("kind", "trained"), [*((kind, False) for kind in [*PACKED, *PLAIN]), *((kind, True) for kind in TRAINED)]
)
def test_likelihoods_gradients_and_answers_are_those_of_each_sequence_alone(
    kind: str, trained: bool, tiny: LoadedModel
) -> None:
    plain, packed = (tiny_model(kind, (PACKED | PLAIN)[kind]) for _ in range(2))
    if trained:
        train(plain)
        packed.load_state_dict(plain.state_dict())
    prepare_forward(packed)
    assert is_packed(packed) == (kind in PACKED)
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(3, 97, (length,), generator=generator).tolist() for length in (9, 31, 18)]
    samples = [Sample([5, 6, 7, *tokens], 6) for tokens in rows]
    batch = pack_samples(samples, torch.device("cpu"))
    nll = response_nll(packed, batch)
    alone = torch.stack([_nll(plain, sample) for sample in samples])
    counts = torch.tensor([sample.response_tokens for sample in samples])
    assert torch.allclose(nll / counts, alone / counts, atol=1e-4)
    nll.sum().backward()
    alone.sum().backward()
    for (name, a), b in zip(packed.named_parameters(), plain.parameters(), strict=True):
        if b.grad is not None:
            assert torch.allclose(a.grad, b.grad, atol=1e-3 * float(b.grad.abs().max()) + 1e-6), name
    prompts = [sample.tokens[:6] for sample in samples]
    loaded = LoadedModel(kind, packed, tiny.chat, kind)
    assert generate(loaded, prompts, new_tokens=12) == [_continued(plain, p, 12, tiny.chat.ends) for p in prompts]


@pytest.mark.parametrize("kind", PLAIN)
def test_what_cannot_be_packed_is_said_with_the_reason(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model(kind, PLAIN[kind])
    before = model.config._attn_implementation
    prepare_forward(model)
    (message,) = [record.getMessage() for record in caplog.records if record.name == "tamperfuse"]
    assert re.search(
        r"one sequence length at a time instead of on packed batches, because .+\. Results are the same", message
    )
    assert model.config._attn_implementation == before


def test_an_encoder_is_refused() -> None:
    with pytest.raises(UserError, match="is not a causal language model"):
        prepare_forward(tiny_model("bert", {}))


def test_a_model_with_an_indexer_is_refused() -> None:
    model = tiny_model("llama", {})
    model.config.index_topk = 16
    with pytest.raises(UserError, match="that an indexer selects"):
        prepare_forward(model)


def _nll(model: PreTrainedModel, sample: Sample) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([sample.tokens])).logits[0, sample.start - 1 : -1]
    targets = torch.tensor(sample.tokens[sample.start :])
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")


@torch.no_grad()
def _continued(model: PreTrainedModel, prompt: list[int], count: int, ends: Collection[int]) -> list[int]:
    """Greedy decoding without a cache, up to an end token."""
    tokens = list(prompt)
    for _ in range(count):
        token = int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax())
        if token in ends:
            break
        tokens.append(token)
    return tokens[len(prompt) :]
