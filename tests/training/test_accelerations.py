"""Automatic choices: decided for simulated machines, since these tests run without a GPU; checkpointing is run."""

from dataclasses import replace

import pytest
import torch

from tamperfuse.models.load import LoadedModel, load_model
from tamperfuse.models.precision import reduced_precision
from tamperfuse.records.errors import UserError
from tamperfuse.training import accelerations
from tamperfuse.training.accelerations import Acceleration, Machine, MemoryEstimate, choose
from tamperfuse.training.adapters import lora_adapter
from tamperfuse.training.checkpoints import resumable
from tamperfuse.training.fit import Training, fit
from tamperfuse.training.objectives import SupervisedObjective

GIB = 2**30
SEVEN_BILLION = MemoryEstimate(weights=14 * GIB, trained=7 * 10**9, activations=20 * GIB, checkpointed=2 * GIB)
EVERYTHING = frozenset({"bitsandbytes", "liger_kernel"})
ADAMW = Training(steps=500)


def test_a_cpu_gets_checkpointing_when_memory_does_not_suffice_and_nothing_else() -> None:
    assert choose(Machine("cpu", 512 * GIB, EVERYTHING), SEVEN_BILLION, ADAMW) == Acceleration()
    chosen = choose(Machine("cpu", 100 * GIB, EVERYTHING), SEVEN_BILLION, ADAMW)
    assert chosen.checkpointing and not (chosen.eight_bit or chosen.liger)
    assert len(chosen.reasons) == 1 and "are needed without it, 90.0 GiB are usable" in chosen.reasons[0]


@pytest.mark.parametrize(
    ("memory", "installed", "training", "expected"),
    [
        (640, EVERYTHING, ADAMW, {"liger"}),
        (640, frozenset(), ADAMW, set()),
        (130, EVERYTHING, ADAMW, {"checkpointing", "liger"}),
        (110, EVERYTHING, ADAMW, {"checkpointing", "eight_bit", "liger"}),
        (110, frozenset(), ADAMW, {"checkpointing"}),
        (90, EVERYTHING, Training(steps=500, optimizer="sgd"), {"checkpointing", "liger"}),
    ],
)
def test_a_gpu_gets_what_is_installed_and_what_memory_needs(
    memory: int, installed: frozenset[str], training: Training, expected: set[str]
) -> None:
    chosen = choose(Machine("cuda", memory * GIB, installed), SEVEN_BILLION, training)
    chosen_names = {name for name in ("checkpointing", "eight_bit", "liger") if getattr(chosen, name)}
    assert chosen_names == expected and len(chosen.reasons) == len(expected)


def test_an_adapter_needs_less(tiny: LoadedModel) -> None:
    full = MemoryEstimate.of(tiny.model, tiny, torch.bfloat16)
    assert full.trained == tiny.model.num_parameters() and full.weights == 2 * full.trained
    tiny.model.requires_grad_(False)
    assert MemoryEstimate.of(tiny.model, tiny, torch.bfloat16).total(False, 8) < full.total(False, 8)


def test_in_float32_the_weights_are_their_masters(tiny: LoadedModel) -> None:
    need = MemoryEstimate.of(tiny.model, tiny, torch.float32)
    assert need.total(False, moments=8) - need.activations == (4 + 4 + 8) * tiny.model.num_parameters()


def test_what_the_objective_holds_is_part_of_the_estimate(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, trap = (MemoryEstimate.of(tiny.model, tiny, torch.float32, copies).total(False, 8) for copies in (4, 9))
    assert trap - plain == 5 * 4 * tiny.model.num_parameters()
    machine = replace(Machine.of(torch.device("cpu")), memory=round((plain + trap) / 2 / 0.9))
    monkeypatch.setattr(Machine, "of", lambda device: machine)
    for copies, checkpointing in ((4, False), (9, True)):
        with (
            resumable(None, memory_copies=copies),
            accelerations.accelerated(tiny.model, tiny, ADAMW, torch.float32) as chosen,
        ):
            assert chosen.checkpointing == checkpointing


def test_frozen_weights_are_there_twice(tiny: LoadedModel) -> None:
    """Frozen weights are stored in bfloat16 to compute with, and in float32 to be restored."""
    with lora_adapter(tiny, Training(method="lora")) as adapted, reduced_precision(adapted, torch.bfloat16) as masters:
        need = MemoryEstimate.of(adapted, tiny, torch.bfloat16)
        frozen = [pair for pair in masters.pairs if not pair[0].requires_grad]
        assert sum(tensor.nbytes for pair in frozen for tensor in pair) == need.weights - 2 * need.trained


def test_checkpointing_is_logged_and_trains_the_same_weights(tiny_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, ended, recomputed, messages = Machine.of(torch.device("cpu")), [], [], []
    monkeypatch.setattr(accelerations.log, "info", lambda form, *words: messages.append(form % words))
    for memory in (machine.memory, 1024):
        monkeypatch.setattr(Machine, "of", lambda device, memory=memory: replace(machine, memory=memory))
        loaded = load_model(str(tiny_folder))
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        loaded.model.model.layers[0].mlp.register_forward_pre_hook(count)
        samples = [loaded.chat.sample(f"request {i}", f"the answer is {i * 3}", 20) for i in range(4)]
        fit(loaded, samples, Training(steps=3, batch=2, learning_rate=1e-3), seed=0)
        recomputed.append(calls)
        ended.append([p.detach().clone() for p in loaded.model.parameters()])
        assert not loaded.model.is_activation_checkpointing
    assert recomputed == [4, 7], "with one pass at the end, which checks that predictions are finite"
    assert all(torch.equal(a, b) for a, b in zip(*ended, strict=True))
    assert len(messages) == 1 and "gradient checkpointing: about" in messages[0]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_to_change(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(SupervisedObjective, "loss", fails)
    before = [p.detach().clone() for p in tiny.model.parameters()]
    with pytest.raises(UserError, match="Memory ran out during hardening: train fewer weights"):
        fit(tiny, [tiny.chat.sample("a", "b", 9)], Training(steps=1, batch=1), seed=0, label="hardening")
    assert all(torch.equal(a, b) for a, b in zip(before, tiny.model.parameters(), strict=True))


def test_other_errors_are_not_reported_as_out_of_memory(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(SupervisedObjective, "loss", fails)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        fit(tiny, [tiny.chat.sample("a", "b", 9)], Training(steps=1, batch=1), seed=0)
