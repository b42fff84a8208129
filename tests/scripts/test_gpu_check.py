"""scripts/gpu_check.py, as far as it goes without a GPU."""

from pathlib import Path

import pytest
import torch

from tamperfuse.models.load import LoadedModel
from tamperfuse.training.parameters import Training


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    import gpu_check

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main() == 0 and capsys.readouterr().out == "No GPU: nothing was run.\n"


def test_every_path_has_a_line(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    import gpu_check

    def skipped(loaded: LoadedModel) -> str:
        raise gpu_check.Skipped("it is not installed")

    def broken(loaded: LoadedModel) -> str:
        raise RuntimeError("no kernel")

    line = gpu_check.trained(tiny, Training(steps=8, batch=4, learning_rate=1e-2))
    assert line.startswith("loss ") and line.endswith(" tokens/s")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(gpu_check, "load_model", lambda name: tiny)
    monkeypatch.setattr(gpu_check, "NEW_TOKENS", 4)
    assert gpu_check.main((gpu_check.float32, gpu_check.generation, skipped, broken)) == 1
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("a card, torch ")
    assert lines[0] == "float32: largest difference from the CPU 0e+00 of the logits' spread"
    assert lines[1].startswith("generation: ") and lines[1].endswith(" tokens/s")
    assert lines[2:] == ["skipped: skipped, it is not installed", "broken: FAILED"]
