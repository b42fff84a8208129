"""Checkpoints that do not fit their configuration are refused with the names of the weights, before anything trains on them."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer

from tamperfuse.models.checks import check_config
from tamperfuse.models.encoder import SentenceEncoder
from tamperfuse.models.fingerprint import model_fingerprint
from tamperfuse.models.load import LoadedModel, load_model, parameter_count, resolve_model
from tamperfuse.models.stored_dtype import stored_dtype
from tamperfuse.records.errors import UserError

Weights = dict[str, torch.Tensor]
NORM = "model.layers.1.input_layernorm.weight"


def changed(source: Path, folder: Path, change: Callable[[Weights], Weights]) -> str:
    """A copy of a checkpoint with other weights."""
    shutil.copytree(source, folder)
    weights = change(load_file(source / "model.safetensors"))
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return str(folder)


def configured(source: Path, folder: Path, **values: Any) -> str:
    """A copy of a checkpoint with other values in config.json."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    return str(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {f"_orig_mod.{k}": v for k, v in w.items()}, r"wrapper of torch\.compile"),
        (lambda w: {f"base_model.model.{k}": v for k, v in w.items()}, "wrapper of peft"),
        (lambda w: {k: v for k, v in w.items() if "layers.1." not in k}, rf"lacks .*{NORM}, .*\(9 in all\)"),
        (lambda w: w | {"model.layers.2.mlp.up_proj.weight": torch.ones(2, 2)}, r"it has, .*layers\.2\.mlp\.up_proj"),
        (lambda w: w | {"model.norm.weight": torch.ones(7)}, r"of another shape are model\.norm\.weight"),
        (lambda w: {k: v for k, v in w.items() if "embed_tokens" not in k}, "lacks"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    change: Callable[[Weights], Weights], message: str, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        load_model(changed(tiny_folder, tmp_path / "model", change))


def test_an_untied_model_needs_its_head(tiny_folder: Path, tmp_path: Path) -> None:
    def untied(weights: Weights) -> Weights:
        return weights | {"lm_head.weight": weights["model.embed_tokens.weight"] + 1}

    whole = configured(tiny_folder, tmp_path / "whole", tie_word_embeddings=False)
    changed(Path(whole), tmp_path / "untied", untied)
    model = load_model(str(tmp_path / "untied")).model
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight + 1)
    with pytest.raises(UserError, match=r"lacks lm_head\.weight"):
        load_model(whole)


def test_sizes_may_be_lists_and_limits_of_time_steps_infinite() -> None:
    """As in Gemma 3n and in Mamba 2."""
    check_config(AutoConfig.for_model("gemma3n_text", intermediate_size=[64, 32], num_hidden_layers=2), "x")
    check_config(AutoConfig.for_model("mamba2", time_step_limit=(0.0, float("inf"))), "x")
    with pytest.raises(UserError, match=r"intermediate_size = \[64, 0\]: give a positive integer"):
        check_config(AutoConfig.for_model("gemma3n_text", intermediate_size=[64, 0], num_hidden_layers=2), "x")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float, tiny_folder: Path, tmp_path: Path) -> None:
    def damage(weights: Weights) -> Weights:
        weights[NORM][3] = value
        return weights

    with pytest.raises(UserError, match=rf"NaN or infinite, in {NORM}"):
        load_model(changed(tiny_folder, tmp_path / "model", damage))


def test_integer_weights_need_a_quantization_config(tiny_folder: Path, tmp_path: Path) -> None:
    folder = changed(tiny_folder, tmp_path / "model", lambda w: w | {NORM: torch.ones(48, dtype=torch.int8)})
    with pytest.raises(UserError, match=f"stores {NORM} as integers"):
        load_model(folder)


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"load_in_4bit": True, "quant_method": "bitsandbytes"}, "needs the package bitsandbytes"),
        ({"load_in_8bit": True}, "needs the package bitsandbytes"),
        ({"bits": 4, "group_size": 128, "quant_method": "gptq"}, "needs the package gptqmodel"),
        ({"bits": 4, "quant_method": "awq", "version": "gemm"}, "needs the package gptqmodel"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "needs the package compressed-tensors"),
        ({"bits": 4}, "names no method"),
        (["gptq"], "cannot be loaded"),
        ({"quant_method": "sorcery"}, "unknown method 'sorcery'"),
    ],
)
def test_a_quantized_checkpoint_names_the_missing_library(
    quantization: object, message: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tamperfuse.models.quantized._installed", lambda module: module == "torch")
    with pytest.raises(UserError, match=message):
        load_model(configured(tiny_folder, tmp_path / "model", quantization_config=quantization))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_act": ["silu"]}, "hidden_act"),
        ({"dtype": "float31"}, "cannot be loaded"),
        ({"head_dim": 7}, "cannot be loaded"),
        ({"num_attention_heads": 0}, "num_attention_heads|cannot be loaded"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"num_hidden_layers": 1}, "it has, but the architecture does not"),
        ({"vocab_size": 10**6}, "of another shape"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers = 1000000: give at most 1,000"),
        ({"vocab_size": 10**12}, "give at most"),
        ({"num_local_experts": 10**6}, "num_local_experts = 1000000: give at most 100,000 in all layers"),
        ({"vocab_size": 10**7}, r"describes a model of 480,\d+,\d+ parameters, but its files hold \d\d,\d+: correct"),
        ({"intermediate_size": 10**7, "num_hidden_layers": 20}, "describes a model of"),
        ({"pad_token_id": 10**9}, "cannot be loaded"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"model_type": ["llama"]}, "cannot be loaded"),
        ({"model_type": "no_such_type"}, "cannot be loaded"),
        ({"text_config": 3}, "."),
    ],
)
def test_a_damaged_configuration_gets_a_sentence(
    values: dict[str, Any], message: str, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = configured(tiny_folder, tmp_path / "model", **values)
    try:
        load_model(folder)
    except UserError as error:
        assert re.search(message, str(error)), str(error)
        assert "\n" not in str(error)
    else:
        assert "text_config" in values, "only this one is harmless"


def test_an_attention_implementation_that_is_not_installed_is_replaced(tiny_folder: Path, tmp_path: Path) -> None:
    folder = configured(tiny_folder, tmp_path / "model", attn_implementation="flash_attention_2")
    assert (
        load_model(folder).model.config._attn_implementation
        == load_model(str(tiny_folder)).model.config._attn_implementation
    )


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "pytorch_model.bin", "absent.safetensors", 7])
def test_an_index_names_safetensors_in_its_own_folder(file: object, tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": {NORM: file}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"which is not a safetensors file in the same folder|which its index names"):
        resolve_model(str(tmp_path / "model"))


def test_weights_that_are_not_read_are_no_part_of_a_model(tiny_folder: Path, tmp_path: Path) -> None:
    """Repositories hold a second copy of the weights for other programs, in other names and types."""
    shutil.copytree(tiny_folder, tmp_path / "model")
    stored, fingerprint = stored_dtype(str(tiny_folder)), model_fingerprint(str(tiny_folder))
    copy = {f"{i}.weight": torch.zeros(10**6, dtype=torch.int8) for i in range(2)}
    save_file(copy, tmp_path / "model" / "consolidated.safetensors")
    assert load_model(str(tmp_path / "model")).model.num_parameters() == parameter_count(str(tiny_folder))
    assert stored_dtype(str(tmp_path / "model")) == stored
    assert model_fingerprint(str(tmp_path / "model")) == fingerprint
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"has weights in consolidated\.safetensors, but neither model\.safetensors nor"
    ):
        load_model(str(tmp_path / "model"))


def test_a_tokenizer_larger_than_the_embeddings_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.add_tokens(["<tool_call>"])
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"tokens up to id \d+, but the model has \d+ embeddings"):
        load_model(str(tmp_path / "model"))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_repository_is_not_run(file: str, tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    keys = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    values = json.loads((folder / file).read_text()) | {
        "auto_map": keys,
        "model_type": "evil",
        "tokenizer_class": "Evil",
    }
    (folder / file).write_text(json.dumps(values))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(str(folder))
    if file == "config.json":
        with pytest.raises(UserError, match="cannot be loaded"):
            parameter_count(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", ["[]", "{}", "not json"])
def test_a_checksum_in_a_users_folder_is_not_believed(content: str, tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    before = model_fingerprint(str(tmp_path / "model"))
    (tmp_path / "model" / "config.json").touch()
    shutil.copytree(tmp_path / "model", tmp_path / "other")
    changed_weights = load_file(tiny_folder / "model.safetensors")
    changed_weights[NORM] += 1
    save_file(changed_weights, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    for name in ("model", "other"):
        (tmp_path / name / "sha256.json").write_text(content)
    assert model_fingerprint(str(tmp_path / "model")) != model_fingerprint(str(tmp_path / "other"))
    assert before


def test_a_special_token_that_no_text_has_needs_no_embedding(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    tokenizer.save_pretrained(tmp_path / "model")
    loaded = load_model(str(tmp_path / "model"))
    rows = loaded.model.get_input_embeddings().weight.shape[0]
    assert max(loaded.chat.prompt("what is <image_soft_token>?")) < rows


def test_generation_ends_at_every_end_token(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    (tmp_path / "model" / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [user, tokenizer.eos_token_id]})
    )
    loaded: LoadedModel = load_model(str(tmp_path / "model"))
    assert loaded.chat.end == tokenizer.eos_token_id
    assert loaded.chat.ends == {user, tokenizer.eos_token_id}


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"])
@pytest.mark.parametrize("kind", ["a pipe", "a device"])
def test_pipes_and_devices_in_place_of_a_models_files_are_refused(
    name: str, kind: str, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / name).unlink(missing_ok=True)
    if kind == "a pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero")
    for read in (load_model, model_fingerprint, lambda name: SentenceEncoder(name).encode(["text"])):
        with pytest.raises(UserError, match=rf"{name} is not a file to read \(it is {kind}\)"):
            read(str(folder))


class PanicException(BaseException):
    """As pyo3 raises it where a library in Rust panics."""


def test_a_panic_of_a_library_in_rust_is_a_sentence(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(*_: object, **__: object) -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr("tamperfuse.models.load.AutoTokenizer.from_pretrained", panic)
    with pytest.raises(UserError, match="cannot be loaded \\(index out of bounds\\)"):
        load_model(str(tiny_folder))
