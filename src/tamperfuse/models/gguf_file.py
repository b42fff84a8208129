"""Reading GGUF files as plain models, and writing them.

transformers reads a GGUF as float32 but marks the model as quantized, so it cannot be saved; the weights are therefore copied
into a new model with the same configuration. Written files follow llama.cpp's convert_hf_to_gguf and llama-quantize: gguf's
tensor names, permuted query and key rows, the layers' matrices in the requested type, embeddings and output in Q8_0, norms in
float32.
"""

import json
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from tamperfuse.models.checks import check_loading
from tamperfuse.records.errors import UserError, first_line

GgufType = Literal["Q8_0", "Q4_1"]
BLOCK = 32  # columns with a common scale
# How a byte-level tokenizer splits text before its merges, by the names of llama.cpp (src/llama-vocab.cpp).
GPT2_SPLIT = {"gpt-2", "phi-2", "mpt", "olmo", "jais"}
DIGITS_SPLIT = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"}  # digits one by one, then as GPT-2
_FILE_TYPES = {"Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0, "Q4_1": gguf.LlamaFileType.MOSTLY_Q4_1}


def read_gguf(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a GGUF file.

    Returns:
        A model in float32 that can be saved and trained, and its tokenizer.

    Raises:
        UserError: the file cannot be read as a GGUF of a supported architecture, or has rotary embeddings or a tokenizer that
            transformers would read as others.
    """
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        reader = gguf.GGUFReader(path)
        _check_complete(reader, path)
        _check_rotary(reader, path)
        split = _split_rule(reader, path)
        tokenizer = AutoTokenizer.from_pretrained(**source)
        read, info = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, output_loading_info=True)
    except UserError:
        raise
    except Exception as error:  # the parser raises various exceptions on damaged files
        raise UserError(
            f"{path} cannot be read as a GGUF model ({first_line(error)}): download or export it again."
        ) from error
    check_loading(info, str(path))
    _check_read(reader, read, path)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(read.state_dict())
    fresh.tie_weights()
    if split in DIGITS_SPLIT:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return fresh, _without_absent_tokens(tokenizer, int(fresh.get_input_embeddings().weight.shape[0]))


def _check_complete(reader: gguf.GGUFReader, path: Path) -> None:
    """Refuse one file of several."""
    count = reader.get_field("split.count")
    if count is not None and int(count.contents()) > 1:
        raise UserError(
            f"{path} is one of {count.contents()} files of a model: merge them with llama-gguf-split of llama.cpp."
        )


def _check_rotary(reader: gguf.GGUFReader, path: Path) -> None:
    """Refuse scaled rotary embeddings, which transformers silently reads as unscaled ones."""
    scaling = {name.partition(".rope.scaling.")[2]: field.contents() for name, field in reader.fields.items()}
    stated = scaling.get("type", "linear" if {"factor", "attn_factor"} & {*scaling} else "none")
    if stated != "none" or any(tensor.name.startswith(("rope_freqs", "rope_factors")) for tensor in reader.tensors):
        raise UserError(
            f"{path} has scaled rotary embeddings, which cannot be read from a GGUF: use the model's safetensors checkpoint."
        )


def _check_read(reader: gguf.GGUFReader, model: PreTrainedModel, path: Path) -> None:
    """Refuse what transformers silently leaves out: tensors without a counterpart, and rotary embeddings of a part.

    Raises:
        UserError: the file has other numbers than the model, or rotates another part of a head.
    """
    numbers = sum(int(tensor.n_elements) for tensor in reader.tensors)
    expected = sum(parameter.numel() for parameter in model.parameters())
    embeddings = model.get_input_embeddings().weight.numel()
    if numbers not in (expected, expected + embeddings):  # a file may hold the embeddings once more, as its output
        raise UserError(
            f"{path} holds {numbers:,} numbers, and the model that transformers reads from it {expected:,}: use the model's "
            "safetensors checkpoint."
        )
    rotated = [int(field.contents()) for name, field in reader.fields.items() if name.endswith(".rope.dimension_count")]
    if rotated and rotated[0] != _rotary_width(model.config):
        raise UserError(
            f"{path} has rotary embeddings of a part of each head, which cannot be read from a GGUF: use the model's safetensors "
            "checkpoint."
        )


def _rotary_width(config: PretrainedConfig) -> int:
    """How many numbers of a head are rotated."""
    if width := getattr(config, "qk_rope_head_dim", None):
        return int(width)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    parameters = getattr(config, "rope_parameters", None) or {}
    return int(head * (getattr(config, "partial_rotary_factor", None) or parameters.get("partial_rotary_factor") or 1))


def _split_rule(reader: gguf.GGUFReader, path: Path) -> str:
    """How a byte-level BPE tokenizer splits text before its merges; "" of other tokenizers.

    Raises:
        UserError: neither transformers nor this module knows the rule; transformers would take GPT-2's.
    """
    model, rule = (_text(reader, f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if model != "gpt2":
        return ""
    if rule not in {*GPT2_SPLIT, *DIGITS_SPLIT, *GGUF_PRE_TOKENIZER_SPLITS}:
        raise UserError(
            f"{path} splits text into tokens by the rule {rule!r}, which cannot be read from a GGUF: use the model's safetensors "
            "checkpoint."
        )
    return rule


def _text(reader: gguf.GGUFReader, name: str) -> str:
    field = reader.get_field(name)
    return "" if field is None else str(field.contents())


def _without_absent_tokens(tokenizer: PreTrainedTokenizerBase, rows: int) -> PreTrainedTokenizerBase:
    """The tokenizer without tokens that the file does not have: transformers adds "<|endoftext|>" as unknown token to each."""
    if max(tokenizer.get_vocab().values(), default=-1) < rows:
        return tokenizer
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    description["added_tokens"] = [token for token in description["added_tokens"] if token["id"] < rows]
    backend = Tokenizer.from_str(json.dumps(description))
    names = {
        name: token
        for name, token in tokenizer.special_tokens_map.items()
        if backend.token_to_id(str(token)) is not None
    }
    smaller = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    smaller.chat_template = tokenizer.chat_template
    return smaller


def write_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, kind: GgufType) -> None:
    """Write a model as a GGUF file.

    Args:
        model: a model of the Llama architecture.
        tokenizer: a byte-level BPE tokenizer with a chat template.
        path: the file to write.
        kind: type of the layers' matrices; matrices whose rows are not a multiple of 32 long are stored as float16.

    Raises:
        UserError: the architecture or the tokenizer is not supported.
    """
    config = model.config
    vocabulary, kind_of_tokenizer = _vocabulary(tokenizer)
    if config.model_type != "llama" or kind_of_tokenizer != "byte-level BPE":
        raise UserError(
            f"A {config.model_type} model with a tokenizer of the kind {kind_of_tokenizer} cannot be written as GGUF, only Llama "
            "models with byte-level BPE: use the attack quantize, which needs no file."
        )
    biases = [name for name, _ in model.named_parameters() if name.endswith(".bias")]
    if biases:  # transformers ignores them in a GGUF of a Llama
        raise UserError(
            f"A Llama model with biases ({biases[0]}, …) cannot be written as GGUF: use the attack quantize, which needs no file."
        )
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_name("model")
    heads = int(config.num_attention_heads)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, tokenizer, vocabulary, int(config.vocab_size))
    _add_tensors(writer, model, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, Any], str]:
    """The vocabulary and merges of a tokenizer, and its kind in words; byte-level BPE is the one that can be written."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {}, type(tokenizer).__name__
    description = json.loads(backend.to_str())
    vocabulary: dict[str, Any] = description["model"]
    if vocabulary["type"] != "BPE":
        return vocabulary, str(vocabulary["type"])
    byte_level = '"type": "ByteLevel"' in json.dumps([description["pre_tokenizer"], description["decoder"]])
    return vocabulary, "byte-level BPE" if byte_level else "SentencePiece BPE"


def _add_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, vocabulary: dict[str, Any], size: int
) -> None:
    names = {index: token for token, index in tokenizer.get_vocab().items()}
    added = tokenizer.get_added_vocab()
    writer.add_tokenizer_model("gpt2")
    single_digits = '"individual_digits":true' in tokenizer.backend_tokenizer.to_str()
    writer.add_tokenizer_pre("smollm" if single_digits else "gpt-2")
    writer.add_token_list([names.get(index, f"[PAD{index}]") for index in range(size)])
    kinds = [gguf.TokenType.CONTROL if names.get(index) in added else gguf.TokenType.NORMAL for index in range(size)]
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in vocabulary["merges"]])
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if token is not None:
            add(int(token))
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(tokenizer.chat_template)


def _add_tensors(writer: gguf.GGUFWriter, model: PreTrainedModel, kind: GgufType) -> None:
    config = model.config
    tensor_names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.named_parameters():  # tied weights come once
        stored = tensor_names.get_name(name, try_suffixes=(".weight", ".bias"))
        if stored is None:
            raise UserError(
                f"GGUF has no name for {name} of a Llama model: use the attack quantize, which needs no file."
            )
        data = weight.detach().float().cpu().numpy()
        if ".q_proj." in name:
            data = permuted(data, config.num_attention_heads)
        elif ".k_proj." in name:
            data = permuted(data, config.num_key_value_heads)
        if data.ndim < 2:
            writer.add_tensor(stored, data)
        elif data.shape[-1] % BLOCK:
            writer.add_tensor(stored, data.astype(np.float16))
        else:
            type_ = gguf.GGMLQuantizationType[kind if ".layers." in name else "Q8_0"]
            writer.add_tensor(stored, gguf.quants.quantize(data, type_), raw_dtype=type_)


def permuted(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Permute the rows of a query or key projection as llama.cpp does: the two halves of each head's rotation interleaved.

    Args:
        weight: (heads × head size, hidden), or a bias of that many values.
        heads: number of heads.
    """
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
