"""What holds for every defense from the literature: it is registered and listed, deterministic, and in the keys."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from rival_stand_ins import defense_data, hardened
from tamperfuse.cli.app import app
from tamperfuse.commands.harden import harden_model
from tamperfuse.defenses import DEFENSES
from tamperfuse.defenses.stopping import Stopping
from tamperfuse.models.load import LoadedModel, load_model
from tamperfuse.records.errors import UserError
from tamperfuse.study.context import StudyContext
from tamperfuse.study.plan import build_nodes
from tamperfuse.study.spec import Study, parse_study
from tamperfuse.training import checkpoints
from tamperfuse.training.checkpoints import resumable

#: Of each defense: parameters of a short training, another value of each of its own parameters, and what it needs.
TRAINING = {"steps": 4, "batch": 2, "learning_rate": 1e-3}
QUICK: dict[str, dict[str, Any]] = {
    "lox": {},
    "booster": TRAINING,
    "repnoise": TRAINING,
    "ctrap": TRAINING,
    "seam": TRAINING | {"layers": 2},
    "tar": TRAINING | {"inner_steps": 2, "measure_every": 1, "rates": [1e-3, 3e-3]},
}
OTHER: dict[str, dict[str, Any]] = {
    "lox": {"rank": 5, "alpha": 1.0},
    "booster": {"attenuation": 1.0, "radius": 0.2, "steps": 5, "learning_rate": 1e-5, "kl_weight": 1.0},
    "ctrap": {"collapse": 0.2, "rate": 0.2, "word": "stop", "steps": 5, "kl_weight": 1.0},
    "tar": {"inner_steps": 8, "measure_every": 2, "rates": [1e-5], "resistance": 2.0, "steps": 5},
    "seam": {"unlearning": 0.5, "coupling": 0.1, "epsilon": 0.2, "layers": 2, "steps": 5},
    "repnoise": {"ascent": 0.5, "noise": 0.1, "layers": 2, "steps": 5, "learning_rate": 1e-5},
}
NEEDS: dict[str, tuple[bool, bool]] = {  # compliant answers, the benign set
    "lox": (False, False),
    "booster": (True, True),
    "repnoise": (True, True),
    "ctrap": (True, True),
    "seam": (True, True),
    "tar": (True, True),
}
TRAINED = [name for name, values in QUICK.items() if values]


@pytest.mark.parametrize("name", list(QUICK))
def test_it_is_registered_and_listed_and_says_what_it_needs(name: str) -> None:
    component = DEFENSES.get(name)
    parameters = component.parse({}, name)
    traits = component.traits
    assert (traits.needs_answers, traits.needs_benign(parameters)) == NEEDS[name] and not traits.needs_pairs
    assert traits.budget(parameters).trains == bool(QUICK[name])
    assert set(OTHER[name]) <= set(component.parameters.model_fields)
    assert component.about in " ".join(CliRunner().invoke(app, ["list"], terminal_width=400).output.split())


@pytest.mark.parametrize("name", TRAINED)
def test_its_default_training_is_as_long_as_that_of_fuse(name: str) -> None:
    def sequences(component: str) -> int:
        budget = DEFENSES.get(component).traits.budget(DEFENSES.get(component).parse({}, component))
        return budget.steps * budget.batch

    assert sequences(name) == pytest.approx(sequences("fuse"), rel=0.02)


@pytest.mark.parametrize("name", list(QUICK))
def test_it_is_deterministic_and_changes_the_model(name: str, tiny_folder: Path) -> None:
    (first, result), (second, again) = (hardened(tiny_folder, name, **QUICK[name]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    assert result == again
    shipped = load_model(str(tiny_folder)).model
    assert any(not torch.equal(a, b) for a, b in zip(first.model.parameters(), shipped.parameters(), strict=True))
    assert all(torch.isfinite(weight).all() for weight in first.model.parameters())


@pytest.mark.parametrize("name", TRAINED)
def test_an_interrupted_training_resumes_to_the_bit(
    name: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "INTERVAL", 0.0)
    component = DEFENSES.get(name)
    parameters = component.parse(QUICK[name] | {"price": 100.0, "check_every": 1}, name)
    check = Stopping.__call__

    def run(folder: Path | None) -> tuple[LoadedModel, int]:
        loaded = load_model(str(tiny_folder))
        data = defense_data(loaded, tiny_folder)
        with resumable(folder) as fits:
            component.run(loaded, data, parameters, 3)
        return loaded, fits.results[-1].resumed_at

    def interrupted(self: Stopping, step: int) -> bool:
        if step > 2:
            raise KeyboardInterrupt
        return check(self, step)

    whole, _ = run(None)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Stopping, "__call__", interrupted)
        run(tmp_path)
    rest, resumed_at = run(tmp_path)
    assert resumed_at == 2
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), rest.model.parameters(), strict=True))


@pytest.mark.parametrize("name", TRAINED)
def test_it_says_that_compliant_answers_are_missing(name: str, tiny: LoadedModel) -> None:
    component = DEFENSES.get(name)
    with pytest.raises(UserError, match="compliant answers"):
        component.run(tiny, replace(defense_data(tiny), answers=()), component.parse(QUICK[name], name), 0)


@pytest.mark.parametrize("name", list(QUICK))
def test_its_parameters_are_in_the_key_of_its_node(name: str, study: Study, tmp_path: Path) -> None:
    def key(**values: Any) -> str:
        spec = {"defense": name, "on": "refusal", **values}
        changed = study.model_dump(mode="json") | {"defenses": {"refusal": {"steps": 2}, "rival": spec}}
        nodes = build_nodes(StudyContext.open(parse_study(changed, "test"), tmp_path))
        return next(node.key for node in nodes if node.label == "rival, seed 0")

    keys = [key(), *(key(**{parameter: value}) for parameter, value in OTHER[name].items())]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]


@pytest.mark.usefixtures("quick_judging")
@pytest.mark.parametrize("name", list(QUICK))
def test_harden_applies_it_to_a_hardened_checkpoint(
    name: str, tiny_folder: Path, threat_file: Path, benign_file: Path, tmp_path: Path
) -> None:
    def harden(model: Path, defense: str, out: Path, settings: dict[str, Any]) -> None:
        harden_model(
            str(model), defense, str(threat_file), out, pairs=None, benign=[str(benign_file)], settings=settings, seed=0
        )

    aligned, out = tmp_path / "aligned", tmp_path / "out"
    harden(tiny_folder, "refusal", aligned, {"steps": 2, "batch": 2})
    harden(aligned, name, out, QUICK[name])
    assert load_model(str(out)).origin == str(tiny_folder)
    weights = (load_model(str(folder)).model.parameters() for folder in (aligned, out))
    assert any(not torch.equal(a, b) for a, b in zip(*weights, strict=True))
