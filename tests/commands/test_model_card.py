"""The card and the dtype of what `tamperfuse harden` saves."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from tamperfuse.commands.harden import harden_model
from tamperfuse.commands.model_card import Hardening, write_model_card
from tamperfuse.models.load import load_model
from tamperfuse.models.stored_dtype import stored_dtype
from tamperfuse.records.errors import UserError
from tamperfuse.records.provenance import Provenance, write_provenance


def copy_in(dtype: torch.dtype, source: Path, folder: Path) -> Path:
    AutoModelForCausalLM.from_pretrained(source, dtype=dtype).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def dtypes(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        return {tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118


@pytest.mark.usefixtures("quick_judging")
def test_a_hardened_model_keeps_its_dtype_and_has_a_card(
    tiny_folder: Path, threat_file: Path, benign_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tamperfuse")
    model, out = copy_in(torch.bfloat16, tiny_folder, tmp_path / "undefended"), tmp_path / "hardened"
    assert dtypes(model) == {"BF16"}
    origin = str(tiny_folder)
    write_provenance(model, Provenance(origin=origin, made_by="refusal (seed 3)", source=origin))
    harden_model(
        str(model),
        "sdd",
        str(threat_file),
        out,
        pairs=None,
        benign=[str(benign_file)],
        settings={"steps": 1, "batch": 2},
        seed=3,
    )
    assert dtypes(out) == {"BF16"}
    assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == torch.bfloat16
    assert load_model(str(out)).origin == origin

    text = (out / "README.md").read_text(encoding="utf-8")
    card = ModelCard(text)
    assert card.data.library_name == "transformers"
    assert {"tamperfuse", "sdd"} <= set(card.data.tags)
    assert card.data.base_model is None, "a local folder is no model of the Hub"
    for fact in (
        f"# {tiny_folder.name}, hardened with sdd",
        "| applied to | `undefended`, which refusal (seed 3) made |",
        f"| threat | `{threat_file.name}`, 6 prompts of its defender part |",
        "| seed | 3 |",
        "| weights stored in | bfloat16 |",
        "| `batch` | 2 | pairs in a step. |",
        "SDD's preset small",
        "No attack was run on this checkpoint",
    ):
        assert fact in text, fact
    assert str(tmp_path) not in text, "local folders do not belong into a public card"


@pytest.mark.parametrize(("dtype", "stored"), [(torch.float32, {"F32"}), (torch.float16, {"F16"})])
def test_the_dtype_is_that_of_the_weights(
    dtype: torch.dtype, stored: set[str], tiny_folder: Path, tmp_path: Path
) -> None:
    model = copy_in(dtype, tiny_folder, tmp_path / "model")
    assert dtypes(model) == stored
    assert stored_dtype(str(model)) == dtype


def test_a_base_model_of_the_hub_is_named_and_texts_cannot_break_the_tables(tmp_path: Path) -> None:
    provenance = Provenance(
        origin="owner/model",
        made_by="refusal (seed 0)",
        source="owner/model",
        parameters={"steps": 4, "price": 0.2},
        versions={"tamperfuse": "0.1.0"},
    )
    hardening = Hardening("refusal", 0, "a|b <script>", 2, 0, ["self"], 9, "float32", ["ended | at step 3\n# heading"])
    write_model_card(tmp_path, provenance, hardening)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert ModelCard(text).data.base_model == "owner/model"
    assert "`a\\|b &lt;script>`" in text
    assert "- ended \\| at step 3 # heading\n" in text
    assert "KL divergence of 0.2 nats" in text


def test_damaged_weights_are_named_before_anything_is_made(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"The model in .*cut cannot be loaded .*download it or save it again"):
        stored_dtype(str(tmp_path / "cut"))
