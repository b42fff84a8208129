"""Reports of a training's speed: counted work, the progress bar, the node's record, trackers."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.study.node import Costs, Node, Outcome, execute
from tamperfuse.training import loop, telemetry
from tamperfuse.training.distillation import anchored
from tamperfuse.training.fit import FitResult, Training, fit
from tamperfuse.training.preference import Preference

CPU = torch.device("cpu")


def samples(tiny: LoadedModel) -> list[Sample]:
    return [tiny.chat.sample(f"request {i}", f"the answer is {i}", 20) for i in range(4)]


def test_useful_work_of_full_training_is_six_operations_a_weight_and_token(tiny: LoadedModel) -> None:
    batch = samples(tiny)
    tokens, responses = sum(len(s.tokens) for s in batch), sum(s.response_tokens for s in batch)
    matrices = sum(p.numel() for name, p in tiny.model.named_parameters() if "_proj" in name)
    head = tiny.model.get_output_embeddings().weight.numel()
    assert telemetry.useful_work(tiny.model, batch) == 6 * (tokens * matrices + responses * head)


def test_the_sequences_of_units_count_as_samples_do(tiny: LoadedModel) -> None:
    batch = samples(tiny)
    units = anchored(batch, [], 0)
    assert telemetry.useful_work(tiny.model, units) == telemetry.useful_work(tiny.model, batch)
    preference = Preference(batch[0], batch[1], 0.0)
    assert telemetry.useful_work(tiny.model, [preference]) == telemetry.useful_work(tiny.model, batch[:2])


def test_frozen_weights_need_less_work(tiny: LoadedModel) -> None:
    batch = samples(tiny)
    tokens, responses = sum(len(s.tokens) for s in batch), sum(s.response_tokens for s in batch)
    sizes = [
        sum(p.numel() for n, p in tiny.model.named_parameters() if "_proj" in n and f"layers.{i}." in n) for i in (0, 1)
    ]
    head = tiny.model.get_output_embeddings().weight.numel()
    tiny.model.requires_grad_(False)
    last = tiny.model.model.layers[1]
    last.requires_grad_(True)
    first_matrix = last.self_attn.q_proj.weight.numel()  # nothing trained lies before it
    expected = tokens * (2 * sizes[0] + 6 * sizes[1] - 2 * first_matrix) + 4 * responses * head
    assert telemetry.useful_work(tiny.model, batch) == expected


def test_measuring_the_rate_draws_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    telemetry.matrix_rate.__wrapped__(8)
    assert torch.equal(torch.get_rng_state(), before)


def test_speed_counts_the_steps_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "matrix_rate", lambda: 1000.0)
    half = FitResult("", losses=[2.0, 1.5], tokens=400, seconds=4.0, steps=4, work=4000.0)
    measured = telemetry.speed(half, CPU)
    assert (measured["loss"], measured["tokens_per_second"], measured["share_of_limit"]) == (1.5, 50.0, 0.5)
    assert measured["peak_memory_bytes"] > 10**7
    assert telemetry.format_speed(measured).startswith("loss 1.500 · 50 tokens/s · 50% of the limit · ")


def test_a_node_records_its_trainings(tiny: LoadedModel, tmp_path: Path) -> None:
    def run(folder: Path) -> Outcome:
        for steps in (1, 2):
            fit(tiny, samples(tiny), Training(steps=steps, batch=2), seed=0)
        return Outcome(facts={"samples": 4})

    done = execute(tmp_path, Node("n", "defense", (), {}, 0, run, Costs()))
    facts = json.loads((done.folder / "node.json").read_text())["facts"]
    assert facts["samples"] == 4 and [training["steps"] for training in facts["trainings"]] == [1, 2]
    for training in facts["trainings"]:
        assert training["tokens_per_second"] > 0 and training["share_of_limit"] > 0 and training["loss"] > 0
    assert telemetry.training_facts([FitResult("", losses=[math.nan], seconds=1.0, steps=1)], CPU)[0]["loss"] is None


def test_a_tracker_sees_every_step(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[dict[str, Any]] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **rest: Any) -> None:
            logged.append({"step": state.global_step, "name": args.run_name, **logs})

    monkeypatch.setattr(
        "transformers.trainer.get_reporting_integration_callbacks", lambda names: [Tracker] * len(names)
    )
    with loop_block(["tensorboard"]):
        result = fit(tiny, samples(tiny), Training(steps=3, batch=2, learning_rate=1e-2), seed=0, label="hardening")
    steps = [one for one in logged if "learning_rate" in one]
    assert [one["step"] for one in steps] == [1, 2, 3] and {one["name"] for one in steps} == {"hardening"}
    assert [one["loss"] for one in steps] == pytest.approx(result.losses, rel=1e-5)
    assert all(one["tokens_per_second"] > 0 and one["grad_norm"] > 0 for one in steps)
    logged.clear()
    fit(tiny, samples(tiny), Training(steps=1, batch=2), seed=0)
    assert logged == []


def loop_block(names: list[str]) -> Any:
    from tamperfuse.training.checkpoints import resumable

    return resumable(None, names)


def test_an_unknown_or_absent_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="did you mean 'mlflow'"):
        telemetry.check_reporters(["mlfow"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="wandb is not installed: pip install wandb"):
        telemetry.check_reporters(["wandb"])


def test_the_progress_bar_shows_the_speed(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    monkeypatch.setattr(loop, "is_shown", lambda: True)
    from contextlib import contextmanager

    @contextmanager
    def bar(what: str, total: int) -> Any:
        yield lambda units, note="": notes.append(note)

    monkeypatch.setattr("tamperfuse.training.fit.progress", bar)
    fit(tiny, samples(tiny), Training(steps=2, batch=2), seed=0)
    assert len([note for note in notes if "tokens/s" in note and "of the limit" in note]) == 2
