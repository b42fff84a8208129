"""A GGUF file is read as the model that its publisher trained, or refused."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from tamperfuse.models.bundled import MODELS
from tamperfuse.models.gguf_file import read_gguf, write_gguf
from tamperfuse.models.load import LoadedModel, load_tokenizer
from tamperfuse.records.errors import UserError


def written(
    loaded: LoadedModel, path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[gguf.GGUFWriter], None]
) -> Path:
    """The tiny model as a GGUF file with further fields or tensors."""
    begin = gguf.GGUFWriter.write_header_to_file

    def changed(writer: gguf.GGUFWriter) -> None:
        change(writer)
        begin(writer)

    with monkeypatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_header_to_file", changed)
        write_gguf(loaded.model, loaded.tokenizer, path, "Q8_0")
    return path


def set_rule(rule: str) -> Callable[[gguf.GGUFWriter], None]:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0].pop("tokenizer.ggml.pre")
        writer.add_tokenizer_pre(rule)

    return change


def test_rotary_embeddings_of_a_part_of_each_head_are_refused(
    tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tiny, tmp_path / "m.gguf", monkeypatch, lambda writer: None)
    monkeypatch.setattr(
        "tamperfuse.models.gguf_file._rotary_width", lambda config: 99
    )  # as transformers reads Phi-4-mini
    with pytest.raises(UserError, match="has rotary embeddings of a part of each head"):
        read_gguf(path)


def test_one_file_of_several_is_refused(tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tiny, tmp_path / "m.gguf", monkeypatch, lambda writer: writer.add_uint16("split.count", 2))
    with pytest.raises(UserError, match="is one of 2 files of a model: merge them"):
        read_gguf(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), "scaled rotary embeddings"),
        (lambda w: w.add_tensor("rope_freqs.weight", np.ones(4, dtype=np.float32)), "scaled rotary embeddings"),
        (lambda w: w.add_rope_scaling_factor(4.0), "scaled rotary embeddings"),
        (
            lambda w: w.add_tensor("blk.0.ffn_up.bias", np.ones(32, dtype=np.float32)),
            r"numbers, and the model that .* reads",
        ),
        (set_rule("someone-elses"), "by the rule 'someone-elses'"),
        (set_rule("default"), "by the rule 'default'"),
    ],
)
def test_what_transformers_would_read_wrongly_is_refused(
    change: Callable[[gguf.GGUFWriter], None],
    message: str,
    tiny: LoadedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = written(tiny, tmp_path / "m.gguf", monkeypatch, change)
    with pytest.raises(UserError, match=f"{message}.*use the model's safetensors checkpoint"):
        read_gguf(path)


@pytest.mark.parametrize(("rule", "pieces"), [("gpt-2", ["Ċ", "Ċ", "1"]), ("smollm", ["ĊĊ", "1"])])
def test_text_is_split_by_the_rule_of_the_file(
    rule: str, pieces: list[str], tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, tokenizer = read_gguf(written(tiny, tmp_path / "m.gguf", monkeypatch, set_rule(rule)))
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("\n\n1")
    assert [piece for piece, _ in split] == pieces


def test_digits_of_a_written_file_come_back_one_by_one(
    tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first = read_gguf(written(tiny, tmp_path / "one.gguf", monkeypatch, set_rule("smollm")))
    write_gguf(tiny.model, first, tmp_path / "two.gguf", "Q8_0")
    _, second = read_gguf(tmp_path / "two.gguf")
    assert first.encode("\n\n350") == second.encode("\n\n350")
    assert len(second.backend_tokenizer.pre_tokenizer.pre_tokenize_str("350")) == 3


@pytest.mark.skipif(not MODELS["smollm2-135m"].installed, reason="the package with the bundled model is not installed")
def test_the_bundled_model_splits_lists_as_its_publisher_does() -> None:
    tokenizer = load_tokenizer("smollm2-135m")
    assert tokenizer.tokenize("recipe:\n\n1. Preheat") == ["recipe", ":", "ĊĊ", "1", ".", "ĠPre", "heat"]
