"""What `harden` prints and writes, and what an interrupted `attack` resumes from."""

import json
import logging
from pathlib import Path

import pytest

from stand_ins import WordCountEncoder
from tamperfuse.commands.attack import attack_model
from tamperfuse.commands.harden import harden_model, prepare_data
from tamperfuse.corpora.examples import Example, Pair
from tamperfuse.corpora.sources import read_source
from tamperfuse.corpora.threats import load_threat
from tamperfuse.defenses import DEFENSES, DefenseData, DefenseResult
from tamperfuse.defenses.base import defense
from tamperfuse.models.load import LoadedModel, load_model, save_model
from tamperfuse.pairing import read_pairs
from tamperfuse.pairing.options import PairOptions
from tamperfuse.pairing.pipeline import pair_corpora
from tamperfuse.records.errors import UserError
from tamperfuse.records.provenance import Provenance, read_provenance
from tamperfuse.records.registry import Parameters
from tamperfuse.training.fit import Training, fit


@pytest.mark.usefixtures("quick_judging")
def test_hardening_prints_the_preset_and_the_reason(
    tiny_folder: Path,
    threat_file: Path,
    benign_file: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
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
        "steps 1, learning rate 0.0001, batch 2, benign ratio 1, kl weight 2; what is not set is that of SDD's preset small: the "
        "model has 0 million" in caplog.text
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


@pytest.mark.usefixtures("quick_judging")
def test_without_pairs_the_filters_of_the_command_pair_apply(
    tiny_folder: Path, threat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = [row for row in read_source("builtin:benign") if row.response][:4]
    unfit = [
        Example("", "I'm sorry, but I can't help with that request, whatever it is."),
        Example("", "No."),
        Example(
            "", "Die Flüsse im Norden des Landes sind im Frühling breit und langsam, und alte Brücken stehen noch."
        ),
    ]
    monkeypatch.setattr(DEFENSES, "components", dict(DEFENSES.components))
    monkeypatch.setattr("tamperfuse.study.context.read_source", lambda source: [*unfit, *fit])

    @defense("paired", Parameters, needs_pairs=True)
    def paired(loaded: LoadedModel, data: DefenseData, parameters: Parameters, seed: int) -> DefenseResult:
        return DefenseResult()

    data, _ = prepare_data(str(tiny_folder), DEFENSES.get("paired"), Parameters(), str(threat_file), ["self"], 0)
    responses = tmp_path / "responses.jsonl"
    responses.write_text("".join(json.dumps({"prompt": "", "response": row.response}) + "\n" for row in unfit + fit))
    pair_corpora(
        PairOptions(harmful=(str(threat_file),), responses=(str(responses),), out=tmp_path / "pairs"),
        WordCountEncoder(),
    )
    for pairs in (data.pairs, read_pairs(tmp_path / "pairs")):
        assert pairs and {pair.response for pair in pairs} <= {row.response for row in fit}


def test_pairs_with_prompts_that_models_are_measured_on_are_refused(
    tiny_folder: Path, threat_file: Path, tmp_path: Path
) -> None:
    parts = load_threat(str(threat_file), WordCountEncoder()).parts
    prompts = [part[0].prompt for part in (parts["defender"], parts["evaluation"], parts["attacker"])]
    pairs = [Pair(prompt.upper(), "an irrelevant answer", "", 0.1, "file", "file") for prompt in prompts]
    component = DEFENSES.get("sdd")
    arguments = (component, component.parse({}, "sdd"), str(threat_file), ["self"], 0)
    with pytest.raises(
        UserError, match=r"2 of 3 pairs .* attacked or measured .*\(part attacker and evaluation"
    ) as error:
        prepare_data(str(tiny_folder), *arguments, pairs=pairs)
    assert "leave out the pairs" in str(error.value)


def test_pairs_for_a_defense_that_takes_none_are_refused(tiny_folder: Path, threat_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="The defense refusal trains on no pairs: leave out --pairs"):
        harden_model(
            str(tiny_folder),
            "refusal",
            str(threat_file),
            tmp_path / "hardened",
            pairs=tmp_path / "pairs",
            benign=["self"],
            settings={},
            seed=0,
        )


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
