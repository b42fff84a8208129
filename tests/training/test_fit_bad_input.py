"""Bad input to training: one message, exit code 2, and no files."""

from pathlib import Path

import pytest

from command_stand_ins import fails
from tamperfuse.attacks.retain_finetune import RetainObjective, RetainPair
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.training.fit import Training, fit


@pytest.mark.parametrize("command", [["harden", "--defense", "refusal"], ["attack", "--attack", "harmful_finetune"]])
@pytest.mark.parametrize(
    "setting", ["learning_rate=abc", "learning_rate=.nan", "learning_rate=.inf", "steps=many", "steps=2.5", "batch=0"]
)
def test_invalid_numbers(command: list[str], setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, *rest = command
    out = tmp_path / "out"
    line = fails([name, "x/y", *rest, "--threat", "builtin:cooking", "--set", setting, "--out", str(out)], capsys)
    assert f"{setting.partition('=')[0]} = " in line and "cannot be used" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("word_counts")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["method=lora", "lora_targets=[nothing_like_it]"], "match no layer"),
        (["method=lora", "lora_targets='['"], "match no layer"),
        (["method=lora", "lora_alpha=.inf"], "lora_alpha = inf cannot be used"),
        (["method=last_layers", "layers=9"], "has 2 layers, not 9"),
        (["shots=999"], "needs 999 shots"),
    ],
)
def test_values_that_do_not_fit_the_model_or_the_threat(
    settings: list[str],
    words: str,
    tiny_folder: Path,
    threat_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tamperfuse.study.observe.Observer.ask", lambda *_: None)
    chosen = [word for setting in ("shots=2", *settings) for word in ("--set", setting)]
    where = ["--threat", str(threat_file), "--out", str(tmp_path / "out")]
    assert words in fails(["attack", str(tiny_folder), "--attack", "harmful_finetune", *where, *chosen], capsys)
    assert list(tmp_path.iterdir()) == []


def test_only_training_runs_in_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = fails(["evaluate", "x/y", "--threat", "builtin:cooking", "--out", str(tmp_path / "out")], capsys)
    assert "was started on 2 processes but runs in one" in line


def test_an_unknown_tracker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--threat", "builtin:cooking", "--out", str(tmp_path / "out")]
    line = fails(["harden", "x/y", "--defense", "refusal", *where, "--report-to", "wanb"], capsys)
    assert "did you mean 'wandb'" in line


def test_sequences_longer_than_the_window(tiny: LoadedModel, caplog: pytest.LogCaptureFixture) -> None:
    long, short = tiny.chat.sample("a", "word " * 600, 600), tiny.chat.sample("a", "word", 600)
    with pytest.raises(UserError, match=r"All 2 samples .* longer than the model's context window .* 512 allowed"):
        fit(tiny, [long, long], Training(steps=1, batch=1), seed=0)
    with caplog.at_level("WARNING", "tamperfuse"):
        result = fit(tiny, [long, short], Training(steps=2, batch=1), seed=0)
    assert "1 of 2 samples" in caplog.text
    assert result.tokens == 2 * len(short.tokens)


def test_a_pair_is_as_long_as_its_longer_sequence(tiny: LoadedModel) -> None:
    sample = tiny.chat.sample("a", "word " * 100, 300)
    pair = RetainPair(sample, sample)
    assert len(sample.tokens) <= tiny.window < len(pair.tokens)
    result = fit(tiny, [pair], Training(steps=1, batch=1), seed=0, objective=RetainObjective(1.0))
    assert result.tokens == len(pair.tokens)
