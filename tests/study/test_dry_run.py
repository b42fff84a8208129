"""Dry runs without the Hub, and what dry runs say of memory and other machines."""

import logging
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import AutoConfig

from tamperfuse.corpora.sources import read_source
from tamperfuse.evaluation.capability_tasks import CapabilityTask
from tamperfuse.models.load import read_config
from tamperfuse.records.errors import HubUnreachable, UserError
from tamperfuse.records.plan import DryRun
from tamperfuse.records.yaml import read_yaml
from tamperfuse.study import announce, dry_run, estimates
from tamperfuse.study.run import run_study
from tamperfuse.study.sections import PairsSpec
from tamperfuse.study.spec import Study, load_study, parse_study

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a network and with an empty cache."""

    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("We couldn't connect to the Hub") from LocalEntryNotFoundError("not in the cache")

    def no_task(tasks: list[str | CapabilityTask]) -> None:
        raise HubUnreachable(f"{tasks} cannot be loaded")

    read = AutoConfig.from_pretrained
    monkeypatch.setattr(
        "tamperfuse.models.load.AutoConfig.from_pretrained",
        lambda name, **options: read(name, **options) if Path(name).exists() else unreachable(),
    )
    monkeypatch.setattr("datasets.get_dataset_split_names", lambda *_, **__: unreachable())
    monkeypatch.setattr("datasets.load_dataset", unreachable)
    monkeypatch.setattr(dry_run, "load_tasks", no_task)  # listing lm-eval's tasks takes long


def changed(study: Study, **values: Any) -> Study:
    return parse_study({**study.model_dump(mode="json"), **values}, "test")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("meta-llama/Llama-2-7b-chat-hf", 7_000_000_000),
        ("Qwen/Qwen3-8B", 8_000_000_000),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_000_000_000),
        ("owner/SmolLM2-135M", 135_000_000),
        ("Qwen/Qwen2.5-0.5B-Instruct-1M", 500_000_000),
        ("Qwen/Qwen3-30B-A3B", 30_000_000_000),
        ("mistralai/Mixtral-8x7B-v0.1", None),
        ("owner-7b/model", None),
        ("openai-community/gpt2", None),
    ],
)
def test_sizes_that_names_state(name: str, size: int | None) -> None:
    assert dry_run.stated_size(name) == size


@pytest.mark.usefixtures("no_hub")
def test_a_study_of_a_model_and_data_on_the_hub_is_planned_without_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "matrix_rate", lambda: 1e11)
    monkeypatch.setattr(dry_run, "machine_memory", lambda: 16 * 10**9)
    monkeypatch.setenv("TAMPERFUSE_CACHE", str(tmp_path / "cache"))
    study = load_study(STUDIES / "paper-7b.yaml")
    plan = run_study(study, tmp_path / "runs" / "paper", dry_run=True)
    assert isinstance(plan, DryRun) and not plan.finished
    assert not (tmp_path / "runs").exists()
    unread = [study.model, study.threat, "mmlu", "openbookqa", "GAIR/lima", "tatsu-lab/alpaca"]
    assert plan.unread == unread
    [sentence] = [line for line in caplog.messages if line.startswith("The Hub cannot be reached")]
    assert f"{study.model} (7 billion parameters, by its name)" in sentence and "2,000 prompts" in sentence
    assert all(source in sentence for source in unread)
    [machines] = [line for line in caplog.messages if line.startswith("This machine has 16.0 GB")]
    assert "H100 SXM (80.0 GB): too small" in machines and "H200 SXM (141.0 GB): at least " in machines
    assert any(line.startswith("Judge llm, at most, ") for line in caplog.messages)
    hardened = next(node for node in plan.plan.nodes if node.what == "sdd, seed 0")
    assert hardened.disk > 4 * 7e9  # the model in float32


def test_the_two_larger_models_have_one_study() -> None:
    seven, eight = (read_yaml(STUDIES / f"paper-{size}.yaml") for size in ("7b", "8b"))
    assert seven.pop("model") != eight.pop("model")
    assert seven == eight


@pytest.mark.usefixtures("no_hub")
def test_without_the_hub_only_a_dry_run_goes_on(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(HubUnreachable, match="no model of that name can be loaded from the Hub"):
        run_study(changed(study, model="owner/model-7b"), out)
    with pytest.raises(HubUnreachable, match=r"'owner/prompts' cannot be reached .* local path"):
        run_study(changed(study, threat="owner/prompts"), out)
    with pytest.raises(UserError, match=r"the name owner/model states no size.*download the model"):
        run_study(changed(study, model="owner/model"), out, dry_run=True)
    with pytest.raises(UserError, match="needs 601 prompts of the part evaluation; owner/prompts has 600"):
        evaluate = {**study.evaluate.model_dump(mode="json"), "prompts": 601}
        run_study(changed(study, threat="owner/prompts", evaluate=evaluate), out, dry_run=True)
    assert not out.exists()


@pytest.mark.usefixtures("no_hub")
def test_what_can_be_read_is_read(study: Study, tmp_path: Path) -> None:
    """Only the pairs' responses are on the Hub: the model's size and the threat are not guessed."""
    pairs = {"responses": ["builtin:benign", "owner/responses"]}
    plan = run_study(changed(study, pairs=pairs), tmp_path / "run", dry_run=True)
    full = run_study(study, tmp_path / "run", dry_run=True)
    assert isinstance(plan, DryRun) and isinstance(full, DryRun)
    assert (plan.unread, full.unread) == (["owner/responses"], [])
    assert [(n.what, n.seconds, n.disk) for n in plan.plan.nodes] == [
        (n.what, pytest.approx(n.seconds), n.disk) for n in full.plan.nodes
    ]
    assert not {n.key for n in plan.plan.nodes if n.kind == "attack"} & {n.key for n in full.plan.nodes}


def test_libraries_without_a_network_say_that_the_hub_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachable):
        read_config("tamperfuse-tests/no-such-model")
    with pytest.raises(HubUnreachable):
        next(read_source("tamperfuse-tests/no-such-data"))


def test_memory_is_compared_with_this_machine(
    study: Study, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "tamperfuse")
    run_study(study, tmp_path / "run", dry_run=True)
    assert sum(line.startswith("Memory: about 2.1 GB") for line in caplog.messages) == 1
    assert not any("data sheets" in line for line in caplog.messages)
    monkeypatch.setattr(dry_run, "machine_memory", lambda: 10**9)
    run_study(study, tmp_path / "run", dry_run=True)
    assert any("data sheets" in line for line in caplog.messages)


def test_an_accelerator_takes_the_time_of_its_data_sheet() -> None:
    speed = estimates.Speed.of(estimates.H100)
    costs = estimates.Costs(trained=1_000_000)
    seconds = estimates.seconds_for(costs, 0, 7_000_000_000, speed)
    assert seconds == pytest.approx(1e6 * 6 * 7e9 / (0.4 * 989e12))
    assert estimates.seconds_for(estimates.Costs(generated=1_000_000), 0, 7_000_000_000, speed) == pytest.approx(
        1e6 * 2 * 7e9 / (0.1 * 989e12)
    )


def test_the_time_on_a_gpu_is_a_lower_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    assert announce.time_estimate(120) == "about 2 min on this machine"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(estimates, "matrix_rate", lambda: 500e12)
    assert estimates.Speed.here() == estimates.Speed(500e12, 0.4, 0.1, 0.4)
    assert announce.time_estimate(120).startswith("at least 2 min on this GPU (")


def test_pairs_name_one_source_or_several() -> None:
    assert PairsSpec.model_validate({"responses": "a.jsonl"}).sources == ("a.jsonl",)
    several = PairsSpec.model_validate({"responses": ["a.jsonl", "b.jsonl", "a.jsonl"]})
    assert several.sources == ("a.jsonl", "b.jsonl")
    with pytest.raises(ValueError, match="responses"):
        PairsSpec.model_validate({"responses": []})
