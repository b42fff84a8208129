"""A tiny random model with a real tokenizer and chat template: for mechanics. The bundled model is for behaviour."""

import gc
import json
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from stand_ins import WordCountEncoder, make_tiny_model, quick_capability
from tamperfuse.models.encoder import set_default_encoder
from tamperfuse.models.load import LoadedModel, load_model
from tamperfuse.study import observe
from tamperfuse.study.run import run_study
from tamperfuse.study.spec import Study, parse_study

# Examples have no deadline: other processes may have the processor.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


def pytest_configure() -> None:
    """The workers of pytest-xdist share the processor's threads, and Ctrl-C interrupts also where a shell's `&` started them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with slow tests run first, so that no worker of pytest-xdist is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Accelerate collects garbage after each training; without the objects of imported libraries, .3 seconds faster each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def untouched_log() -> Iterator[None]:
    """The package's log as it is when imported, at the command line's level: commands and workers set handlers of their own."""
    log = logging.getLogger("tamperfuse")
    before = log.handlers, log.propagate, log.level
    log.handlers, log.propagate = [], True
    log.setLevel(logging.INFO)
    yield
    log.handlers, log.propagate = before[0], before[1]
    log.setLevel(before[2])


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny(tiny_folder: Path) -> LoadedModel:
    return load_model(str(tiny_folder))


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield


@pytest.fixture(scope="session")
def threat_file(tiny_folder: Path) -> Path:
    """A small threat of the user's own."""
    path = tiny_folder.parent / "threat.jsonl"
    rows = [
        {
            "part": part,
            "prompt": f"{part} request number {i} about subject {i * 7}",
            "response": f"answer {i} to {part}",
        }
        for part in ("defender", "attacker", "attacker_dev", "evaluation")
        for i in range(6)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def answered_threat(tmp_path: Path) -> str:
    """A threat with ten answered prompts in every part."""
    path = tmp_path / "threat.jsonl"
    rows = [
        {"part": part, "prompt": f"{part} task {word}", "response": f"the {part} task {word} is done step by step"}
        for part in ("defender", "attacker", "attacker_dev", "evaluation")
        for word in ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"]
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


@pytest.fixture
def word_counts() -> Iterator[None]:
    """Word counts in place of the sentence encoder."""
    set_default_encoder(WordCountEncoder())
    yield
    set_default_encoder(None)


@pytest.fixture
def quick_judging(word_counts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No sentence encoder, no lm-eval, few resamples."""
    monkeypatch.setattr("tamperfuse.study.results.intervals.DRAWS", 20)
    monkeypatch.setattr(observe, "measure_capability", quick_capability)


@pytest.fixture(autouse=True, scope="session")
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is stored for later calls is not left in the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        for module in ("commands.harden", "models.packed_check"):
            patch.setattr(f"tamperfuse.{module}.cache_folder", lambda: folder)
        yield


@pytest.fixture(scope="session")
def benign_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Harmless prompts."""
    path = tmp_path_factory.mktemp("benign") / "benign.jsonl"
    path.write_text(
        "\n".join(json.dumps({"prompt": f"harmless question {i} of day {i * 3}"}) for i in range(14)), encoding="utf-8"
    )
    return path


@pytest.fixture
def study(quick_judging: None, tiny_folder: Path, threat_file: Path, benign_file: Path) -> Study:
    return parse_study(
        {
            "model": str(tiny_folder),
            "threat": str(threat_file),
            "defenses": {
                "refusal": {"steps": 2, "batch": 2},
                "sdd": {"on": "refusal", "steps": 2, "batch": 2, "learning_rate": 1e-4},
            },
            "attacks": {
                "full": {"attack": "harmful_finetune", "shots": 2, "steps": 3, "batch": 2, "learning_rate": 1e-2},
                "benign": {"attack": "benign_finetune", "steps": 2, "batch": 2},
            },
            "benign": str(benign_file),
            "pairs": {"threshold": 0.99},
            "judge": {"judge": "builtin", "tolerated": 0.5},
            "evaluate": {
                "at_steps": [0, 1, 3],
                "prompts": 4,
                "curve_prompts": 3,
                "dev_prompts": 3,
                "harmless": 4,
                "response_tokens": 8,
                "heldout": 3,
            },
        },
        "test",
    )


@pytest.fixture
def finished_run(study: Study, tiny_folder: Path) -> Path:
    """One whole run, made once for all tests that only read it."""
    folder = tiny_folder.parent / "finished-run"
    if not (folder / "summary.json").exists():  # the file that a run writes last
        run_study(study, folder)
    return folder
