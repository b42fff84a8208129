"""Two processes over gloo train as one does: DDP and FSDP2, supervised, with an objective on weights, and an attack."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stand_ins import Trap
from tamperfuse.models.device import own_device
from tamperfuse.models.load import load_model
from tamperfuse.records.errors import UserError
from tamperfuse.training import distributed, rows
from tamperfuse.training.fit import Training, fit
from tamperfuse.training.objectives import Objective
from tamperfuse.training.trap import TrapObjective

HERE = Path(__file__).parent
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}


def port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def started(arguments: list[str], **environment: str) -> subprocess.Popen:
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])  # of stand_ins
    values = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path, **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *arguments], env=values, stdout=pipe, stderr=pipe, text=True)


def ended(process: subprocess.Popen) -> str:
    said, complaints = process.communicate(timeout=300)
    assert process.returncode == 0, complaints
    return str(said + complaints)


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """One process, and two processes with DDP and with FSDP2; all at the same time, since most of their time is imports."""
    work = tmp_path_factory.mktemp("together")
    shutil.copytree(tiny_folder, work / "model")
    damaged(tiny_folder, work / "damaged")
    write_data(work)
    script = [str(HERE / "together.py"), str(work)]
    two = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
    processes = {
        "alone": started([*script, str(work / "alone.json")], TAMPERFUSE_CACHE=str(work / "cache-alone")),
        "ddp": started([*two, port(), *script, str(work / "ddp.json")], TAMPERFUSE_CACHE=str(work / "cache-ddp")),
        # An empty cache: the check of packed attention runs, on shards as well.
        "fsdp": started([*two, port(), *script, str(work / "fsdp.json")], TAMPERFUSE_CACHE=str(work / "cache"), **FSDP),
    }
    for process in processes.values():
        ended(process)
    return {
        name: {
            **json.loads((work / f"{name}.json").read_text()),
            "weights": torch.load(work / f"{name}.pt"),
            "saved": work / f"{name}.saved",
        }
        for name in processes
    }


def write_data(folder: Path) -> None:
    """A threat some of whose prompts the model has to answer, and harmless prompts, one of which is near the threat."""
    parts = ("defender", "attacker", "attacker_dev", "evaluation")
    threat = [
        {
            "part": part,
            "prompt": f"{part} request number {i} about subject {i * 7}",
            "response": "" if part == "defender" and i % 2 else f"answer {i} to {part}",
        }
        for part in parts
        for i in range(6)
    ]
    benign = [{"prompt": f"harmless question {i} of day {i * 3}"} for i in range(6)]
    benign.append({"prompt": "a request number 2 about harmless sunny days"})
    for name, lines in (("threat", threat), ("benign", benign)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))


def damaged(folder: Path, copy: Path) -> Path:
    """A copy of a model one of whose weights has a NaN, in the rows of the last process."""
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][-1, -1] = float("nan")
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("what", ["sft", "in_shards", "sgd", "trap", "fuse", "fuse_whole", "attack"])
def test_the_loss_curve_is_that_of_one_process(runs: dict[str, dict], way: str, what: str) -> None:
    alone, together = runs["alone"][what], runs[way][what]
    assert together == pytest.approx(alone, rel=0.01)
    assert alone[-1] < 0.95 * alone[0], "it must learn, otherwise equal curves prove nothing"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("loading", ["fuse", "fuse_whole"])
def test_a_hook_measures_at_the_attacked_weights(runs: dict[str, dict], way: str, loading: str) -> None:
    what = f"{loading}_attacked"
    assert runs[way][what] == pytest.approx(runs["alone"][what], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["alone", "ddp", "fsdp"])
def test_weights_are_whole_afterwards_and_at_hooks(runs: dict[str, dict], way: str) -> None:
    result = runs[way]
    assert result["hooks"] == [0, 4, 8] and all(moved > 0 for moved in result["moved"])
    assert result["sharded"] == [float(way == "fsdp")]
    apart = [float((a - b).abs().max()) for a, b in zip(result["weights"], runs["alone"]["weights"], strict=True)]
    assert max(apart) < 8 * 3e-3, "a few of AdamW's steps at most, where rounding changes a gradient's sign"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["alone", "ddp", "fsdp"])
def test_perturbed_weights_come_back_to_the_bit(runs: dict[str, dict], way: str) -> None:
    assert runs[way]["restored"] == [1.0]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["alone", "ddp", "fsdp"])
def test_several_processes_resume_to_the_bit(runs: dict[str, dict], way: str) -> None:
    assert runs[way]["resumed"] == [4, 1.0, 1.0]


@pytest.mark.slow
def test_a_model_in_shards_is_measured_and_saved_as_a_whole_one(runs: dict[str, dict]) -> None:
    alone, together = runs["alone"], runs["fsdp"]
    assert together["share"] < 0.51, "each of two processes must hold half of every weight"
    assert together["answers"] == alone["answers"]
    assert together["nll"] == pytest.approx(alone["nll"], rel=0.01) and together["nll"][2] < together["nll"][0]
    assert len(list(together["saved"].glob("*.safetensors"))) > 1
    saved, expected = (load_model(str(run["saved"])).model for run in (together, alone))
    assert saved.config.to_dict() == {**expected.config.to_dict(), "_name_or_path": str(together["saved"])}
    for (name, weight), (other, whole) in zip(saved.named_parameters(), expected.named_parameters(), strict=True):
        assert name == other and float((weight - whole).detach().abs().max()) < 8 * 3e-3


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_several_processes_make_the_data_of_a_defense_as_one_does(runs: dict[str, dict], way: str) -> None:
    alone, together = runs["alone"]["data"], runs[way]["data"]
    assert together["texts"] == alone["texts"] and all(alone["texts"])
    assert together["likely"] == pytest.approx(alone["likely"], rel=0.01)
    assert together["thresholds"] == pytest.approx(alone["thresholds"], rel=0.01)
    assert together["folders"] and not [name for name in together["folders"] if name.startswith(".")]


@pytest.mark.slow
def test_the_data_of_a_defense_is_made_without_a_whole_model_where_the_training_is_sharded(
    runs: dict[str, dict],
) -> None:
    first, second = runs["fsdp"]["data"]["shares"]
    assert first and len(first) == len(second) and max(first + second) < 0.51
    assert runs["ddp"]["data"]["shares"] == [[1.0], []], "without shards the main process alone makes the data"


@pytest.mark.slow
def test_processes_with_different_prompts_do_not_wait_for_each_other(runs: dict[str, dict]) -> None:
    assert runs["alone"]["different"] == [""] and runs["ddp"]["different"] == ["", ""]
    refused = runs["fsdp"]["different"]
    assert len(set(refused)) == 1 and refused[0].startswith("The processes hold different texts")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["alone", "fsdp"])
def test_a_weight_that_is_not_finite_is_refused_by_every_process(runs: dict[str, dict], way: str) -> None:
    refused = runs[way]["refused"]
    assert len(refused) == (2 if way == "fsdp" else 1) and len(set(refused)) == 1
    assert "NaN or infinite, in model.layers.1.mlp.up_proj.weight" in refused[0]


def test_rows_are_as_many_on_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "max_over_processes", lambda value, device: 4)
    groups = rows.split_into_rows([9, 9, 9, 9, 9], 20, torch.device("cpu"))
    assert len(groups) == 4 and sorted(i for row in groups for i in row) == [0, 1, 2, 3, 4] and all(groups)


def test_more_processes_than_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4096")
    with pytest.raises(UserError, match="4096 processes were started on a machine with"):
        own_device()


def test_a_batch_that_leaves_a_process_without_a_sample(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(str(tiny_folder))
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match="batch 2 is not a multiple of 4 processes"):
        fit(loaded, [loaded.chat.sample("a", "b", 9)], Training(batch=2), seed=0)


def test_the_first_version_of_fsdp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(UserError, match="fsdp_version: 2"):
        distributed.sharding()


@pytest.mark.slow
def test_accelerate_launch_hardens_as_the_docs_say(
    tiny_folder: Path, threat_file: Path, benign_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAMPERFUSE_CACHE", str(tmp_path / "cache"))  # empty: the main process makes the data
    blocks = re.findall(r"```yaml\n(.*?)```", (HERE.parents[1] / "docs" / "training.md").read_text(), re.DOTALL)
    file = tmp_path / "fsdp.yaml"
    file.write_text(next(block for block in blocks if "fsdp_config" in block))
    out = tmp_path / "hardened"
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(file), "--main_process_port", port()]
    harden = ["-m", "tamperfuse", "harden", str(tiny_folder), "--defense", "refusal", "--threat", str(threat_file)]
    harden += ["--benign", str(benign_file)]
    said = ended(started([*launch, *harden, "--set", "steps=3", "--set", "batch=4", "--out", str(out)]))
    assert said.count("The hardened model is in") == 1
    before, after = load_model(str(tiny_folder)), load_model(str(out))
    assert all(not torch.equal(a, b) for a, b in zip(before.model.parameters(), after.model.parameters(), strict=True))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".tmp", "hardened"))] == ["hardened"]


def test_adafactor_over_shards_is_refused(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(str(tiny_folder))
    samples = [loaded.chat.sample("request", "the answer", 20)]
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="Adafactor cannot update sharded weights"):
        fit(loaded, samples, Training(steps=1, batch=1, optimizer="adafactor"), seed=0)


@pytest.mark.parametrize("objective", [Trap(), TrapObjective(weight=1.0)], ids=["subclass", "trap"])
def test_an_objective_that_changes_gradients_is_refused_under_deepspeed(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, objective: Objective
) -> None:
    loaded = load_model(str(tiny_folder))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="use FSDP2 or DDP instead"):
        fit(
            loaded,
            [loaded.chat.sample("request", "the answer", 20)],
            Training(steps=1, batch=1),
            seed=0,
            objective=objective,
        )
