"""Adapters of peft are merged into their base, and those that do not fit it are refused."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from tamperfuse.models.fingerprint import model_fingerprint
from tamperfuse.models.load import load_model, parameter_count, read_config, save_model
from tamperfuse.models.stored_dtype import stored_dtype
from tamperfuse.records.errors import UserError
from tamperfuse.records.provenance import Provenance, read_provenance


def adapter(base: Path, folder: Path, *, tokenizer: bool = True, **options: Any) -> Path:
    """A LoRA adapter with random weights, as peft saves it."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, task_type="CAUSAL_LM", **{"target_modules": ["q_proj", "v_proj"], **options})
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    if tokenizer:
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tokenizer", [True, False])
def test_an_adapter_is_merged_into_its_base(
    tokenizer: bool, tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = adapter(tiny_folder, tmp_path / "adapter", tokenizer=tokenizer)
    with caplog.at_level(logging.INFO, "tamperfuse"):
        loaded = load_model(str(folder))
    assert "is a peft adapter of" in caplog.text
    plain = LlamaForCausalLM.from_pretrained(tiny_folder).to(loaded.model.device)
    lora = load_file(folder / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    update = lora[f"{prefix}.lora_B.weight"] @ lora[f"{prefix}.lora_A.weight"] * 8 / 4  # lora_alpha / r
    merged, before = (m.model.layers[0].self_attn.q_proj.weight for m in (loaded.model, plain))
    assert torch.allclose(merged, before + update.to(before.device), atol=1e-6)
    assert float((merged - before).detach().abs().max()) > 0.01
    assert loaded.base == str(tiny_folder) and loaded.origin == str(folder)
    save_model(loaded, tmp_path / "out", Provenance(origin=loaded.origin, made_by="test", source=loaded.name))
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
    record = read_provenance(tmp_path / "out")
    assert record is not None and (record.source, record.base) == (str(folder), str(tiny_folder))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").to(loaded.model.device)
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
    assert parameter_count(str(folder)) == parameter_count(str(tiny_folder))
    assert model_fingerprint(str(folder)) != model_fingerprint(str(tiny_folder))


def test_a_base_beside_its_adapter_is_found(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = adapter(tiny_folder, tmp_path / "adapter")
    shutil.copytree(tiny_folder, folder / "base")
    edit_adapter(folder, base_model_name_or_path="base")
    monkeypatch.chdir(tmp_path)
    assert load_model("adapter").base == "adapter/base"


def edit_adapter(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_model_name_or_path": None}, "set base_model_name_or_path"),
        (
            {"base_model_name_or_path": "/no/such/model"},
            "is a peft adapter of '/no/such/model', which cannot be loaded",
        ),
        ({"peft_type": "SORCERY"}, "cannot be merged"),
        ({"target_modules": ["nothing"]}, "cannot be merged"),
        ({"r": 8}, "cannot be merged|not those of"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    values: dict[str, Any], message: str, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = adapter(tiny_folder, tmp_path / "adapter")
    edit_adapter(folder, **values)
    with pytest.raises(UserError, match=message):
        load_model(str(folder))


@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
def test_an_adapter_of_weights_that_two_layers_share_is_refused(layer: str, tiny_folder: Path, tmp_path: Path) -> None:
    folder = adapter(tiny_folder, tmp_path / "adapter", target_modules=["q_proj", layer])
    with pytest.raises(UserError, match=f"changes .*{layer}, whose weights .* as embeddings and as output"):
        load_model(str(folder))


def test_an_adapter_of_itself_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = adapter(tiny_folder, tmp_path / "adapter", tokenizer=False)
    edit_adapter(folder, base_model_name_or_path=str(folder))
    for call in (load_model, model_fingerprint, stored_dtype, read_config):
        with pytest.raises(UserError, match="which is itself a peft adapter: set base_model_name_or_path"):
            call(str(folder))


def test_adapter_weights_under_other_names_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = adapter(tiny_folder, tmp_path / "adapter")
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({f"x.{k}": v for k, v in weights.items()}, folder / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks|cannot be merged"):
        load_model(str(folder))


def test_a_soft_prompt_cannot_be_merged(tiny_folder: Path, tmp_path: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(LlamaForCausalLM.from_pretrained(tiny_folder), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="cannot be merged"):
        load_model(str(tmp_path / "adapter"))


def test_an_adapter_without_weights_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = adapter(tiny_folder, tmp_path / "adapter")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.safetensors").mkdir()
    with pytest.raises(UserError, match=r"lacks adapter_model\.safetensors, the weights of the peft adapter"):
        load_model(str(folder))


def test_a_pickled_adapter_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = adapter(tiny_folder, tmp_path / "adapter")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match="pickled"):
        load_model(str(folder))


def test_an_adapter_beside_a_model_is_ambiguous(tiny_folder: Path, tmp_path: Path) -> None:
    folder = adapter(tiny_folder, tmp_path / "adapter")
    shutil.copy(tiny_folder / "model.safetensors", folder)
    with pytest.raises(UserError, match="both a model and a peft adapter"):
        load_model(str(folder))
