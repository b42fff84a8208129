"""A tiny random model of each decoder architecture of transformers: sizes by their usual names, and those of some of them."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

LARGEST = 3_000_000  # parameters; a model that has more takes none of the sizes below
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    # Names of older architectures.
    "n_positions": 256,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "ffn_dim": 64,
    "word_embed_proj_dim": 32,
}
_TEXT = {name: SIZES[name] for name in list(SIZES)[:12]}
_VISION = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"image_size": 32, "patch_size": 8, "num_channels": 3},
}
# The decoder of an encoder-decoder, alone.
_DECODER = {
    **{"d_model": 32, "encoder_layers": 1, "decoder_layers": 3, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "is_encoder_decoder": False, "is_decoder": True},
}
# Multi-head latent attention, and the index that chooses keys in some of its successors.
_LATENT = {
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12},
    **{"num_key_value_heads": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
}
_INDEX = {"index_topk": 16, "index_head_dim": 8, "index_n_heads": 2}
_INDEXED = {
    **_LATENT,
    **_INDEX,
    **{"layer_types": ["indexed_attention"] * 3, "indexer_types": ["full"] * 3},
    "mlp_layer_types": ["dense", "sparse", "sparse"],
}
_MAMBA = {
    **{"mamba_d_state": 8, "mamba_d_head": 8, "mamba_n_heads": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16},
    **{"attn_layer_indices": [1], "use_mamba_kernels": False},
}
_LINEAR = {
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
    **{"linear_head_dim": 8, "linear_num_heads": 4, "shared_expert_intermediate_size": 32},
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
_SLIDING = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "sliding_window": 16}
_GEMMA = {**_SLIDING, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 97, "num_kv_shared_layers": 0}
# Values beside those of SIZES; None leaves out one of SIZES.
VALUES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus", "plbart"),
        _DECODER,
    ),
    "prophetnet": {
        **{"num_hidden_layers": None, "num_encoder_layers": 1, "num_decoder_layers": 3, "decoder_ffn_dim": 64},
        **{"num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4, "encoder_ffn_dim": 64},
        **{"num_attention_heads": None, "is_encoder_decoder": False, "is_decoder": True},
    },
    "whisper": {**_DECODER, "max_target_positions": 256},
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "youtu", "glm4_moe_lite"), _LATENT),
    "minicpm3": {**_LATENT, "head_dim": None},
    "axk1": {**_LATENT, "mlp_layer_types": ["dense", "sparse", "sparse"]},
    **dict.fromkeys(("axk2", "deepseek_v32", "glm_moe_dsa", "hy_v4"), _INDEXED),
    "dots1": {"n_shared_experts": 1, "first_k_dense_replace": 1},
    "dots3_note_text": {
        **_LATENT,
        **_INDEX,
        **{"layer_types": ["indexed_attention", "sliding_attention", "indexed_attention"], "sliding_window": 16},
        **{"mlp_layer_types": ["dense", "sparse", "sparse"], "per_layer_config": {}},
    },
    "longcat_flash": {
        **_LATENT,
        **{"num_layers": 3, "num_hidden_layers": None, "ffn_hidden_size": 64, "expert_ffn_hidden_size": 32},
        **{"moe_topk": 2, "zero_expert_num": 2},
    },
    "bamba": _MAMBA,
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention", "mamba"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4, "use_mamba_kernels": False},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "expand": 2, "chunk_size": 16},
    "zamba2": {
        **{"layers_block_type": ["mamba", "hybrid", "mamba"], "mamba_d_state": 8, "n_mamba_heads": 8, "chunk_size": 16},
        **{"mamba_headdim": 8, "adapter_rank": 4, "attention_hidden_size": 64, "attention_head_dim": 16},
    },
    "bailing_hybrid": {**_LATENT, **_LINEAR, "mlp_layer_types": ["dense", "sparse", "sparse"]},
    "kimi_linear": {**_LATENT, **_LINEAR, "mlp_layer_types": ["dense", "sparse", "sparse"]},
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), _LINEAR),
    "qwen3_5": {"text_config": {**_TEXT, **_LINEAR}, "vision_config": {**_VISION, "depth": 1, "out_hidden_size": 32}},
    "qwen3_5_moe": {
        "text_config": {**SIZES, **_LINEAR},
        "vision_config": {**_VISION, "depth": 1, "out_hidden_size": 32},
    },
    "xlstm": {"num_heads": 4, "num_blocks": 3, "head_dim": None, "chunk_size": 16, "embedding_dim": 32},
    "codegen": {"rotary_dim": 4, "n_ctx": 256},
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"num_layers": 3, "attention_types": [[["global", "local", "global"], 1]], "window_size": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "cohere_compass_text": {
        **_SLIDING,
        "rope_parameters": {
            name: {"rope_type": "default", "rope_theta": 10_000.0} for name in ("full_attention", "sliding_attention")
        },
    },
    "dbrx": {
        **{"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 256},
        "attn_config": {"kv_n_heads": 2},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    "cpmant": {"dim_head": 8, "dim_ff": 64, "position_bias_num_buckets": 32, "prompt_types": 2, "segment_types": 2},
    "gemma3": {"text_config": {**_TEXT, **_SLIDING}, "vision_config": _VISION, "mm_tokens_per_image": 4},
    "gemma3n_text": {**_GEMMA, "activation_sparsity_pattern": [0.5, 0.0, 0.0], "laurel_rank": 4},
    "gemma4_text": {**_GEMMA, "per_layer_config": {}},
    "gemma4": {
        "text_config": {**_TEXT, **_GEMMA, "per_layer_config": {}},
        "vision_config": {**_VISION, "num_key_value_heads": 4, "head_dim": 8, "global_head_dim": 8},
        "audio_config": None,
    },
    "llama4": {"text_config": {**SIZES, "intermediate_size_mlp": 64}, "vision_config": _VISION},
    "emu3": {"text_config": _TEXT},
    "got_ocr2": {"text_config": _TEXT, "vision_config": _VISION},
    "git": {"vision_config": _VISION, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "mllama": {"text_config": _TEXT, "vision_config": _VISION},
    "musicgen": {"decoder": _TEXT},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "local"],
        "attention_head_size": 8,
        "axial_pos_embds": False,
    },
    "roc_bert": {
        **{"is_decoder": True, "pronunciation_embed_dim": 8, "pronunciation_vocab_size": 97},
        **{"shape_embed_dim": 8, "shape_vocab_size": 97},
    },
    "xlnet": {"d_model": 32, "d_inner": 64, "d_head": 8, "max_position_embeddings": None},
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
    "zamba": {
        **{"layers_block_type": ["hybrid", "mamba", "hybrid"], "attention_hidden_size": 64, "attention_head_dim": 16},
        **{"mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    },
    "zaya": {"num_experts_per_tok": 1, "layer_types": ["hybrid"] * 3, "router_hidden_size": 16},
}


def tiny_model(kind: str) -> PreTrainedModel:
    """A model with random weights, the same on every call; sizes that an architecture does not take are left out.

    Raises:
        Exception: of transformers, if the architecture cannot be built with these sizes; ValueError, if it takes none of them.
    """
    values = {name: value for name, value in (SIZES | VALUES.get(kind, {})).items() if value is not None}
    while True:
        try:
            config = AutoConfig.for_model(kind, **values)
            break
        except AttributeError as error:
            refused = [name for name in values if name in str(error)]
            if not refused:
                raise
            del values[refused[0]]
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters: its sizes have other names")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).float().eval()
