"""What `harden` prints and writes."""

import logging
from pathlib import Path

import pytest

from tamperfuse.commands.harden import harden_model
from tamperfuse.models.load import load_model


@pytest.mark.usefixtures("quick_judging")
def test_hardening_prints_the_preset_and_the_reason(
    tiny_folder: Path,
    threat_file: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("tamperfuse"), "propagate", True)
    caplog.set_level(logging.INFO, "tamperfuse")
    harden_model(
        str(tiny_folder),
        "sdd",
        str(threat_file),
        tmp_path / "out",
        pairs=None,
        benign="builtin:replay",
        settings={"steps": 1, "batch": 2},
        seed=0,
    )
    assert "preset small (steps 1, learning rate 6e-05, batch 2, replay 0.1); the model has 0 million" in caplog.text
    assert load_model(str(tmp_path / "out")).origin == str(tiny_folder)
