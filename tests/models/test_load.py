import json
import logging
import multiprocessing
import os
import shutil
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from tamperfuse.models import conversion
from tamperfuse.models.bundled import Bundled
from tamperfuse.models.chat import Chat
from tamperfuse.models.encoder import SentenceEncoder
from tamperfuse.models.fingerprint import model_fingerprint
from tamperfuse.models.load import LoadedModel, load_model, resolve_model, save_model
from tamperfuse.records import cache
from tamperfuse.records.errors import UserError
from tamperfuse.records.provenance import Provenance


def test_a_saved_model_comes_back_with_its_origin(tiny: LoadedModel, tmp_path: Path) -> None:
    save_model(tiny, tmp_path / "out", Provenance(origin="first", made_by="test", source="x"))
    again = load_model(str(tmp_path / "out"))
    assert again.origin == "first"
    assert again.chat.prompt("hello") == tiny.chat.prompt("hello")
    for a, b in zip(tiny.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert json.loads((tmp_path / "out" / "tamperfuse.json").read_text())["made_by"] == "test"
    assert list((tmp_path / "out").glob("*.safetensors"))


def test_a_saved_model_can_be_read_by_whom_the_umask_lets_read(tiny: LoadedModel, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_model(tiny, tmp_path / "out", Provenance(origin="first", made_by="test", source="x"))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o640}


def test_a_response_cut_by_the_limit_gets_no_end_token(tiny: LoadedModel) -> None:
    whole, cut = tiny.chat.sample("hi", "one two three", 100), tiny.chat.sample("hi", "one two three", 3)
    assert whole.tokens[-1] == tiny.chat.end
    assert cut.response_tokens == 3
    assert cut.tokens[-1] != tiny.chat.end
    assert whole.tokens[: whole.start] == tiny.chat.prompt("hi")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: (p / "empty").mkdir() or str(p / "empty"), "contains no weights"),
        (
            lambda p: (
                (p / "pickled").mkdir()
                or ((p / "pickled" / "pytorch_model.bin").write_bytes(b"x") and str(p / "pickled"))
            ),
            "pickled",
        ),
        (lambda p: str(p / "nothing.gguf"), "does not exist"),
        (lambda p: str(p / "nowhere"), "not a model directory"),
        (lambda p: "smollm2-135", "did you mean 'smollm2-135m'"),
        (lambda p: "gpt2", "is no folder here, and no Hub id, which has the form OWNER/NAME"),
        (lambda p: " ", "The name of the model is empty"),
        (lambda p: "NOTHING.GGUF", "does not exist: check the path of the .gguf file"),
    ],
)
def test_bad_models_get_a_sentence(make: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        resolve_model(make(tmp_path))  # type: ignore[operator]


def test_a_damaged_gguf_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMPERFUSE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\0" * 64)
    with pytest.raises(UserError, match="cannot be read as a GGUF"):
        resolve_model(str(tmp_path / "bad.gguf"))
    assert [p for p in (tmp_path / "cache").iterdir() if p.is_dir()] == []


def test_truncated_weights_get_a_sentence(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"cannot be loaded \(.*\): download it or save it again"):
        load_model(str(tmp_path / "cut"))


def test_a_tokenizer_without_pad_token_gets_the_end_of_turns(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "bare")
    config = tmp_path / "bare" / "tokenizer_config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "pad_token"}))
    loaded = load_model(str(tmp_path / "bare"))
    assert loaded.tokenizer.pad_token_id == loaded.chat.end


def test_a_tokenizer_without_template_is_refused(tiny: LoadedModel) -> None:
    tiny.tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        Chat.of(tiny.tokenizer)


def test_an_absent_package_prints_its_install_line() -> None:
    absent = Bundled(module="no_such_module", inside="x", install="pip install it", about="thing")
    assert not absent.installed
    with pytest.raises(UserError, match="pip install it"):
        absent.path()


def _slow_conversion(path: Path, name: str, staging: Path) -> None:
    with (path.parent / "log").open("a") as log:
        log.write(f"{os.getpid()}\n")
    (staging / conversion.WEIGHTS).write_text("w")
    (staging / conversion.CHECKSUM).write_text('{"weights": "w", "bytes": 1}')
    (staging / conversion.FILE).write_text("{}")


def _convert(path: str) -> None:
    conversion._convert = _slow_conversion
    conversion.convert_gguf(Path(path), "x")


def test_two_processes_convert_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMPERFUSE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(b"x")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_convert, args=(str(tmp_path / "m.gguf"),)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def test_a_conversion_that_was_killed_or_damaged_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMPERFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(conversion, "_convert", _slow_conversion)
    (tmp_path / "m.gguf").write_bytes(b"x")
    folder = conversion.convert_gguf(tmp_path / "m.gguf", "x")
    (folder / conversion.WEIGHTS).write_text("")  # damaged since
    leftover = folder.with_name(f".tmp-{folder.name}-0123abcd")  # what `kill -9` leaves
    leftover.mkdir()
    assert conversion.convert_gguf(tmp_path / "m.gguf", "x") == folder
    assert (folder / conversion.WEIGHTS).read_text() == "w" and not leftover.exists()
    assert len((tmp_path / "log").read_text().splitlines()) == 2


def test_a_cache_that_cannot_be_written_gets_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TAMPERFUSE_CACHE", str(tmp_path / "file" / "cache"))
    (tmp_path / "m.gguf").write_bytes(b"x")
    with pytest.raises(UserError, match="set TAMPERFUSE_CACHE"):
        conversion.convert_gguf(tmp_path / "m.gguf", "x")


def test_the_lock_of_the_cache_waits_for_another_holder(tmp_path: Path) -> None:
    entered, events = threading.Event(), []

    def hold() -> None:
        with cache.locked_cache(tmp_path / "cache" / "x.lock"):
            entered.set()
            time.sleep(0.2)
            events.append("released")

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait()
    with cache.locked_cache(tmp_path / "cache" / "x.lock"):
        events.append("acquired")
    holder.join()
    assert events == ["released", "acquired"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mine/bse", "the Hub is not asked for it, since there is a folder mine: correct the path"),
        ("models/base", "the Hub is not asked for it, since models is a usual name of a folder"),
        ("a/b/c", "There is no model at a/b/c: check the path"),
        ("someone/model.safetensors", "check the path"),
        ("some one/model", "check the path"),
        ("someone/", "check the path"),
    ],
)
def test_what_looks_like_a_path_is_not_asked_of_the_hub(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        load_model(name)
    with pytest.raises(UserError, match=words.replace("no model", "no sentence encoder")):
        SentenceEncoder(name).encode(["text"])


def test_what_is_asked_of_the_hub_is_printed(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO, "tamperfuse")
    monkeypatch.setattr("tamperfuse.models.load.AutoConfig.from_pretrained", Mock(side_effect=OSError("no network")))
    with pytest.raises(UserError, match=r"There is no folder someone/a-model here, and no model .* from the Hub"):
        load_model("someone/a-model")
    assert caplog.text.count("someone/a-model is no folder here: the model is taken from the Hub") == 1


def test_the_base_of_an_adapter_that_is_a_path_is_not_asked_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "models/base", "peft_type": "LORA"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"is a peft adapter of .models/base', which cannot be loaded .*usual name of a folder"
    ):
        load_model(str(tmp_path))


def test_the_fingerprint_of_a_hub_model_changes_with_its_commit(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--acme--tiny"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    fingerprints = set()
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(tiny_folder, repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        fingerprints.add(model_fingerprint("acme/tiny"))
    assert len(fingerprints) == 2


def test_the_vocabulary_of_a_local_model_is_part_of_its_fingerprint(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    (tmp_path / "model" / "merges.txt").write_text("a b")
    assert model_fingerprint(str(tmp_path / "model")) != model_fingerprint(str(tiny_folder))


def test_only_the_main_process_converts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMPERFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(conversion, "_convert", _slow_conversion)
    monkeypatch.setattr(conversion, "WAIT", 0.0)
    (tmp_path / "m.gguf").write_bytes(b"x")
    with monkeypatch.context() as second:
        second.setenv("RANK", "1")
        second.setenv("WORLD_SIZE", "2")
        with pytest.raises(UserError, match="The main process has not converted"):
            conversion.convert_gguf(tmp_path / "m.gguf", "x")
    folder = conversion.convert_gguf(tmp_path / "m.gguf", "x")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert conversion.convert_gguf(tmp_path / "m.gguf", "x") == folder
