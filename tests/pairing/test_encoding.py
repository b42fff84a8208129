"""Encoding in several processes and over Ray: the same vectors as in this one, and nobody left behind."""

import multiprocessing
import os
import pickle
import signal
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from pairing_stand_ins import dying, hash_projection, pids_while, prose, report_pid
from stand_ins import WordCountEncoder, is_alive
from tamperfuse.models.encoder import SentenceEncoder, default_encoder, set_default_encoder
from tamperfuse.pairing.cache import BATCH
from tamperfuse.pairing.encoding import CachedEncoder, ProcessPoolCompute, encode_batch, open_encoder
from tamperfuse.records.errors import UserError

MODEL = "all-MiniLM-L6-v2"
TEXTS = [prose(n)[: 20 + 7 * n] for n in range(BATCH + 9)]  # of many lengths, more than one batch


def test_processes_give_what_one_gives_and_stay_for_the_next_texts(tmp_path):
    texts = [f"text {n}" for n in range(BATCH * 5 + 3)]
    workers = ProcessPoolCompute(hash_projection, 2)
    vectors = CachedEncoder("stub", workers, tmp_path).encode(texts)
    assert np.array_equal(vectors, hash_projection(texts))
    workers.close()
    workers = ProcessPoolCompute(pids_while, 2)
    first, second = ({int(v[0, 0]) for _, v in workers([str(n) for n in range(BATCH * 6)])} for _ in range(2))
    assert len(first | second) == 2
    assert os.getpid() not in first
    workers.close()


def test_a_worker_that_dies_is_a_sentence():
    workers = ProcessPoolCompute(dying, 2)
    with pytest.raises(UserError, match="fewer --workers"):
        list(workers(["a"]))
    workers.close()


def test_workers_do_not_outlive_a_parent_that_is_killed():
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    parent = context.Process(target=report_pid, args=(queue,))
    parent.start()
    worker = queue.get(timeout=300)
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    deadline = time.monotonic() + 300
    while is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(worker)


def test_a_directory_is_known_by_its_content(tmp_path):
    model, calls = tmp_path / "model", []

    def compute(texts):
        calls.append(texts)
        yield range(len(texts)), hash_projection(texts)

    model.mkdir()
    (model / "weights").write_text("one")
    for content in ("one", "one", "two"):
        (model / "weights").write_text(content)
        CachedEncoder(str(model), compute, tmp_path / "vectors").encode(["a"])
    assert len(calls) == 2


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_the_encoder_itself_over_workers(tmp_path, executor):
    if executor == "ray" and find_spec("ray") is None:
        pytest.skip("ray is not installed: pip install 'tamperfuse[ray]'")
    with open_encoder(MODEL, "float32", workers=2, executor=executor, folder=tmp_path) as encoder:
        vectors = encoder.encode(TEXTS)
        assert encoder.cache.computed == len(TEXTS)
        again = encoder.encode([*TEXTS, "one more"])
    assert np.array_equal(again[:-1], vectors)
    np.testing.assert_allclose(vectors, encode_batch(MODEL, "float32", TEXTS), atol=2e-6)


def test_ray_that_is_not_installed_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("tamperfuse.records.ray_workers.find_spec", lambda name: None)
    with (
        pytest.raises(UserError, match=r"pip install 'tamperfuse\[ray\]'"),
        open_encoder(MODEL, "float32", workers=1, executor="ray", folder=tmp_path),
    ):
        pass


@pytest.mark.parametrize("content", ["nothing", "a pickle", "a pickled layer", "a file", "damaged"])
def test_an_encoder_that_cannot_be_used_is_a_sentence(content: str, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    if content == "a pickle":
        (folder / "pytorch_model.bin").write_bytes(b"x")
    elif content == "a pickled layer":
        (folder / "2_Dense").mkdir()
        (folder / "model.safetensors").write_bytes(b"x")
        (folder / "2_Dense" / "pytorch_model.bin").write_bytes(b"x")
    elif content == "a file":
        folder = folder / "file"
        folder.write_bytes(b"x")
    elif content == "damaged":
        (folder / "model.safetensors").write_bytes(b"x")
        (folder / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"The sentence encoder|of the sentence encoder is pickled"):
        SentenceEncoder(str(folder)).encode(["a"])


def test_the_default_encoder_can_be_replaced(word_counts: None) -> None:
    assert isinstance(default_encoder(), WordCountEncoder)
    set_default_encoder(None)
    assert default_encoder().name == MODEL


def test_workers_receive_an_encoder_without_its_weights() -> None:
    encoder = SentenceEncoder("some/encoder", batch_size=3)
    encoder.__dict__["_model"] = object()  # as if it had been loaded
    copy = pickle.loads(pickle.dumps(encoder))
    assert vars(copy) == {name: value for name, value in vars(encoder).items() if name != "_model"}
