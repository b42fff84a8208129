"""The Python interface, on the tiny model and a small threat."""

import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import tamperfuse
from tamperfuse import api, plugins
from tamperfuse.attacks import ATTACKS, AttackData, AttackResult
from tamperfuse.defenses import DEFENSES
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.records.provenance import read_provenance
from tamperfuse.records.run import read_run
from tamperfuse.records.yaml import read_yaml
from tamperfuse.training.batches import pack_samples
from tamperfuse.training.objectives import response_nll

pytestmark = pytest.mark.usefixtures("quick_judging")
TRAINING = {"steps": 2, "batch": 2, "learning_rate": 1e-3}


def weights(loaded: LoadedModel) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in loaded.model.parameters()]).clone()


def nll(loaded: LoadedModel) -> torch.Tensor:
    """Of one response, computed with the model as it is."""
    batch = pack_samples([loaded.chat.sample("a prompt", "a response of a few words", 32)], loaded.model.device)
    with torch.no_grad():
        return response_nll(loaded.model, batch)


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys, tamperfuse; dir(tamperfuse); print('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_everything_public_exists_is_typed_and_has_an_example() -> None:
    assert set(tamperfuse.__all__) <= set(dir(tamperfuse))
    for name in set(tamperfuse.__all__) - {"__version__"}:
        value = getattr(tamperfuse, name)
        assert value is getattr(api, name)
        assert inspect.getdoc(value)
        if inspect.isfunction(value):
            assert "Example::" in (inspect.getdoc(value) or ""), name
            signature = inspect.signature(value)
            assert inspect.Signature.empty not in {signature.return_annotation} | {
                parameter.annotation for parameter in signature.parameters.values()
            }


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="hardn"):
        tamperfuse.hardn  # noqa: B018


@pytest.mark.parametrize(("function", "registry"), [(api.harden, DEFENSES), (api.attack, ATTACKS)])
def test_no_parameter_of_a_component_is_hidden_by_an_argument(function: object, registry: object) -> None:
    parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    named = {parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY}
    for component in registry.all():  # type: ignore[attr-defined]
        assert not named & set(component.parameters.model_fields), component.name


def test_pair_harden_attack_evaluate_and_save(
    tiny_folder: Path, threat_file: Path, benign_file: Path, tmp_path: Path
) -> None:
    model = tamperfuse.load(tiny_folder)
    before, before_nll = weights(model), nll(model)

    pairs = tamperfuse.pair(threat_file, threshold=0.99)
    assert {pair.prompt for pair in pairs.pairs} == {
        f"defender request number {i} about subject {i * 7}" for i in range(6)
    }

    hardened = tamperfuse.harden(model, "sdd", threat=threat_file, pairs=pairs, benign=benign_file, **TRAINING)
    after = weights(hardened)
    assert torch.equal(weights(model), before) and torch.equal(nll(model), before_nll)
    assert not torch.equal(after, before) and not torch.equal(nll(hardened), before_nll)

    attacked = tamperfuse.attack(hardened, "harmful_finetune", threat=threat_file, shots=2, **TRAINING)
    assert torch.equal(weights(hardened), after)
    assert not torch.equal(weights(attacked), after)

    measured = tamperfuse.evaluate(attacked, threat=threat_file, prompts=4, harmless=4)
    assert measured.harmful_execution.n == 4 and measured.benign_answer_rate.n == 4
    assert 0 <= measured.harmful_execution.value <= 1  # type: ignore[operator]
    assert set(measured.accuracy) == {"t"} and measured.benign_nll.value > 0  # type: ignore[operator]

    tamperfuse.save(hardened, tmp_path / "hardened")
    again = tamperfuse.load(tmp_path / "hardened")
    assert torch.equal(weights(again), after)
    assert again.origin == str(tiny_folder)
    recorded = read_provenance(tmp_path / "hardened")
    assert recorded and (recorded.made_by, recorded.source) == ("sdd (seed 0)", str(tiny_folder))
    assert recorded.threat == str(threat_file)
    assert (recorded.parameters["steps"], recorded.parameters["learning_rate"]) == (2, 1e-3)
    assert model.provenance is None and attacked.provenance
    assert attacked.provenance.made_by == "harmful_finetune (seed 0)"
    assert attacked.provenance.source == f"{tiny_folder}, changed by sdd (seed 0)"
    with pytest.raises(UserError):
        tamperfuse.save(hardened, tmp_path / "hardened")


def test_the_seed_decides_the_result(tiny_folder: Path, threat_file: Path, benign_file: Path) -> None:
    def hardened(seed: int) -> torch.Tensor:
        hardened = tamperfuse.harden(
            str(tiny_folder), "refusal", threat=threat_file, benign=benign_file, seed=seed, steps=1, batch=2
        )
        return weights(hardened)

    assert torch.equal(hardened(0), hardened(0))
    assert not torch.equal(hardened(0), hardened(1))


def test_texts_take_the_place_of_sources(quick_judging: None) -> None:
    responses = [
        "The harbour lay quiet in the evening, and the boats had come in long before the fog.",
        "A second text about rivers and how they change their beds over centuries of slow and patient work.",
    ]
    pairs = tamperfuse.pair(["first prompt", "second prompt"], responses, threshold=0.99)
    assert {pair.response for pair in pairs.pairs} <= set(responses)
    assert {pair.prompt for pair in pairs.pairs} == {"first prompt", "second prompt"}


def test_responses_are_those_of_all_parts(quick_judging: None, tmp_path: Path) -> None:
    source = tmp_path / "answers.jsonl"
    text = "The {} lay quiet in the evening, and the boats had come in long before the fog."
    rows = [{"part": part, "prompt": part, "response": text.format(part)} for part in ("defender", "evaluation")]
    source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    pairs = tamperfuse.pair([f"prompt {i}" for i in range(20)], source, threshold=0.99)
    assert {pair.response for pair in pairs.pairs} == {row["response"] for row in rows}


def test_bad_input_is_refused(tiny_folder: Path, threat_file: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'sdd'"):
        tamperfuse.harden(tiny_folder, "sd", threat=threat_file)
    with pytest.raises(UserError, match="did you mean 'steps'"):
        tamperfuse.harden(tiny_folder, "sdd", threat=threat_file, step=3)
    with pytest.raises(UserError, match="learning_rate"):
        tamperfuse.attack(tiny_folder, "harmful_finetune", threat=threat_file, learning_rate=-1)
    with pytest.raises(UserError, match=r"1000 prompts cannot be measured, since the evaluation part of .* has 6"):
        tamperfuse.evaluate(tiny_folder, threat=threat_file, prompts=1000)
    with pytest.raises(UserError, match="finished run"):
        tamperfuse.load_run(threat_file.parent)


def test_a_finished_run_as_a_data_frame(finished_run: Path) -> None:
    run = tamperfuse.load_run(finished_run)
    frame = run.to_pandas()
    assert set(run.summary.defenses) == {"refusal", "sdd"}
    assert {"refusal", "sdd", "as shipped"} <= set(frame["defense"])
    rate = frame[(frame.metric == "harmful_execution") & (frame.part == "evaluation")]
    assert rate["value"].between(0, 1).all() and len(rate)


def test_a_study_from_a_mapping_reuses_what_is_there(finished_run: Path) -> None:
    before = (finished_run / "results.parquet").read_bytes()
    run = tamperfuse.run_study(read_yaml(finished_run / "study.yaml"), finished_run)
    assert run.folder == finished_run
    assert all(node.reused for node in read_run(finished_run).nodes)
    assert (finished_run / "results.parquet").read_bytes() == before


def test_the_module_for_plug_ins_holds_the_three_decorators() -> None:
    assert callable(plugins.defense) and callable(plugins.attack) and callable(plugins.judge)
    assert plugins.attack is not tamperfuse.attack


def test_what_is_no_text_is_a_sentence() -> None:
    with pytest.raises(UserError, match="Prompt 2 is None, not text"):
        tamperfuse.pair(["a prompt", None], ["a response"])  # type: ignore[list-item]


@pytest.mark.parametrize("seed", [-1, 1.5, "x", True])
def test_a_seed_is_a_whole_number(seed: Any, tiny: LoadedModel, threat_file: Path) -> None:
    for call in (
        partial(tamperfuse.pair, ["a prompt"], ["a response"]),
        partial(tamperfuse.harden, tiny, "sdd", threat=threat_file),
        partial(tamperfuse.attack, tiny, "harmful_finetune", threat=threat_file),
    ):
        with pytest.raises(UserError, match=f"seed {seed} cannot be used: choose a whole number"):
            call(seed=seed)


def test_values_of_other_types_are_sentences(tiny: LoadedModel, threat_file: Path, tmp_path: Path) -> None:
    harden = partial(tamperfuse.harden, tiny, threat=threat_file)
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: tamperfuse.pair(5, ["a response"]), "5 holds no prompts"),
        (
            lambda: tamperfuse.pair(["a prompt"], ["a response"], threshold="a"),
            "threshold of 'a' is not a possible cosine",
        ),
        (lambda: harden(["sdd"]), "no defense named"),
        (lambda: harden("sdd", benign=None), "None is no source"),
        (lambda: harden("sdd", pairs=[("a", "b")]), "give what tamperfuse.pair returned"),
        (lambda: harden("sdd", pairs=[]), "the list is empty"),
        (lambda: tamperfuse.evaluate(tiny, threat=threat_file, judge=5), "5 is not a judge"),
        (lambda: tamperfuse.evaluate(tiny, threat=threat_file, prompts="many"), "prompts = 'many' cannot be used"),
        (lambda: tamperfuse.save("smollm2-135m", tmp_path / "out"), "'smollm2-135m' is no loaded model"),
    ]
    for call, words in calls:
        with pytest.raises(UserError, match=re.escape(words)):
            call()


def test_an_attack_needs_as_many_prompts_as_it_draws(tiny: LoadedModel, threat_file: Path) -> None:
    with pytest.raises(UserError, match=r"needs 7 shots; the attacker part of .* has 6 prompts"):
        tamperfuse.attack(tiny, "harmful_finetune", threat=threat_file, shots=7)


@pytest.mark.usefixtures("quick_judging")
def test_an_attack_receives_the_harmless_samples_that_it_declares(
    tiny: LoadedModel, threat_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: dict[str, int] = {}
    for name in ("harmful_finetune", "mixed_finetune"):
        component = ATTACKS.get(name)

        def run(loaded: LoadedModel, data: AttackData, values: Any, seed: int, name: str = name) -> AttackResult:
            received[name] = len(data.retain)
            return AttackResult()

        monkeypatch.setitem(ATTACKS.components, name, replace(component, run=run))
        samples = {"shots": 2} if name == "harmful_finetune" else {"samples": 10, "share": 0.2}
        tamperfuse.attack(tiny, name, threat=threat_file, **samples)
    assert received["harmful_finetune"] == 0 < received["mixed_finetune"]


def test_an_attack_records_the_reference_that_it_was_given(
    tiny: LoadedModel, tiny_folder: Path, threat_file: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "base")
    base = str(folder)
    attacked = tamperfuse.attack(tiny, "merge", threat=str(threat_file), reference=folder)
    assert attacked.origin == base and attacked.provenance and attacked.provenance.origin == base
    with pytest.raises(UserError, match="nowhere"):
        tamperfuse.attack(tiny, "prune", threat=str(threat_file), reference="./nowhere")
