"""What `harden` prints and writes, and what an interrupted `attack` resumes from."""

import logging
from pathlib import Path

import pytest

from tamperfuse.commands.attack import attack_model
from tamperfuse.commands.harden import harden_model
from tamperfuse.defenses import DEFENSES, DefenseData, DefenseResult
from tamperfuse.defenses.base import defense
from tamperfuse.models.load import LoadedModel, load_model, save_model
from tamperfuse.records.errors import UserError
from tamperfuse.records.provenance import Provenance, read_provenance
from tamperfuse.training.fit import Training, fit


@pytest.mark.usefixtures("quick_judging")
def test_hardening_prints_the_preset_and_the_reason(
    tiny_folder: Path,
    threat_file: Path,
    benign_file: Path,
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
        benign=[str(benign_file)],
        settings={"steps": 1, "batch": 2},
        seed=0,
    )
    assert (
        "preset small (steps 1, learning rate 0.0001, batch 2, benign ratio 1, kl weight 2); the model has 0 million"
        in caplog.text
    )
    assert load_model(str(tmp_path / "out")).origin == str(tiny_folder)
    provenance = read_provenance(tmp_path / "out")
    assert provenance and provenance.threat == str(threat_file)


@pytest.mark.usefixtures("quick_judging")
def test_an_interrupted_attack_with_other_parameters_is_refused(
    tiny_folder: Path, threat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attack(beta: float) -> None:
        attack_model(
            str(tiny_folder),
            "preference_finetune",
            str(threat_file),
            tmp_path / "out",
            reference=None,
            retain="builtin:retain",
            keep=False,
            settings={"beta": beta, "shots": 2, "steps": 1, "batch": 2},
            seed=0,
        )

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("tamperfuse.commands.attack.judge_responses", interrupted)
        attack(0.1)
    with pytest.raises(UserError, match=r"parameters\.beta was 0\.1 and is 0\.9"):
        attack(0.9)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def ruin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A defense that trains as its parameters say, named `ruin`."""

    def train(loaded: LoadedModel, data: DefenseData, parameters: Training, seed: int) -> DefenseResult:
        samples = [loaded.chat.sample(prompt, "an answer", 8) for prompt in data.prompts]
        return DefenseResult(tokens_trained=fit(loaded, samples, parameters, seed=seed).tokens)

    monkeypatch.setattr(DEFENSES, "components", dict(DEFENSES.components))
    defense("ruin", Training)(train)


@pytest.mark.usefixtures("quick_judging", "ruin")
@pytest.mark.parametrize("command", ["harden", "attack"])
def test_what_diverges_is_refused_and_leaves_nothing_behind(
    command: str, tiny_folder: Path, threat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tamperfuse.training.checkpoints.INTERVAL", 0.0)
    settings = {"steps": 3, "batch": 2, "method": "lora", "lora_alpha": 1e38, "optimizer": "sgd", "clip": 0}
    model, threat, out = str(tiny_folder), str(threat_file), tmp_path / "out"
    with pytest.raises(UserError, match="diverged at step"):
        if command == "harden":
            harden_model(model, "ruin", threat, out, pairs=None, benign=["self"], settings=settings, seed=0)
        else:
            options = {"reference": None, "retain": "builtin:retain", "keep": True, "seed": 0}
            attack_model(model, "harmful_finetune", threat, out, settings=settings | {"shots": 2}, **options)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_float16_cannot_hold_are_not_saved(tiny: LoadedModel, tmp_path: Path) -> None:
    next(tiny.model.parameters()).data[0, 0] = 1e5
    tiny.model.half()
    with pytest.raises(UserError, match=r"sdd \(seed 0\) is not saved, since weights are NaN or infinite in float16"):
        save_model(tiny, tmp_path / "out", Provenance(origin="m", made_by="sdd (seed 0)", source="m"))
    assert not (tmp_path / "out").exists()
