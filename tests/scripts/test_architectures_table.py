"""The table of architectures: one row in full, and rows that are replaced in a page."""

import math
from pathlib import Path

import pytest
import torch

from tamperfuse.models import packed_check

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_a_row_compares_a_model_at_random_and_after_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    import architectures_table as script

    monkeypatch.setattr(packed_check, "_remembered", lambda model: None)
    kind, result, logits, gradients, reason = script.row_of("llama")
    assert (
        (kind, result, reason) == ("llama", "packed", "") and 0 < float(logits) < 1e-4 and 0 < float(gradients) < 1e-4
    )
    kind, result, logits, gradients, reason = script.row_of("bloom")
    assert (
        (kind, result) == ("bloom", "plain") and "differ" in reason and float(logits) < 1e-4 and float(gradients) < 1e-4
    )
    assert script.row_of("bert")[1:4] == ("refused", "", "")
    assert script.row_of("blt")[1:4] == ("not built", "", "")


@pytest.mark.parametrize(
    ("what", "difference"),
    [("logit_difference", 2e-3), ("logit_difference", math.nan), ("gradient_difference", 2e-3)],
)
def test_a_difference_is_said_to_be_wrong(what: str, difference: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    import architectures_table as script

    monkeypatch.setattr(packed_check, "_remembered", lambda model: None)
    monkeypatch.setattr(script, what, lambda *_: difference)
    assert script.row_of("llama")[1] == "WRONG"


def test_gradients_that_cannot_be_compared_are_not_wrong_and_nan_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    import architectures_table as script

    monkeypatch.setattr(packed_check, "_remembered", lambda model: None)
    backward = torch.autograd.backward

    def with_nan(loss: torch.Tensor) -> None:
        backward(loss * math.nan)

    def fails(loss: torch.Tensor) -> None:
        raise AssertionError("only in training mode")

    monkeypatch.setattr(torch.autograd, "backward", with_nan)
    assert script.outcome("gpt2", False)[:2] == ("WRONG", (pytest.approx(0, abs=1e-4), math.inf))
    monkeypatch.setattr(torch.autograd, "backward", fails)
    result, (_, gradients), _ = script.outcome("gpt2", False)
    assert result in ("packed", "plain") and gradients is None
    monkeypatch.setattr(script, "outcome", lambda kind, trained: (result, (1e-6, gradients), ""))
    assert script.row_of("gpt2") == ("gpt2", result, "1e-06", "–", "")


def test_named_rows_are_replaced_and_the_others_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    import architectures_table as script

    rows = {"llama": ("llama", "packed", "3e-06", "4e-06", ""), "gpt2": ("gpt2", "plain", "0e+00", "0e+00", "a / b")}
    monkeypatch.setattr(script, "row_of", rows.__getitem__)
    monkeypatch.setattr(script, "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", list(rows))
    monkeypatch.setattr(packed_check, "_remembered", packed_check._remembered)  # the script replaces it
    page = tmp_path / "models.md"
    page.write_text("above\n<!-- tables: python scripts/architectures_table.py x -->\nold\n<!-- end of tables -->\n")
    script.main([str(page)])
    rows["gpt2"] = ("gpt2", "packed", "1e-06", "2e-06", "")
    script.main([str(page), "gpt2"])
    assert script.rows_in(page.read_text()) == [rows["gpt2"], rows["llama"]]
    assert "2 packed; transformers" in page.read_text()
    with pytest.raises(SystemExit, match="t5 is not a causal"):
        script.main([str(page), "t5"])
