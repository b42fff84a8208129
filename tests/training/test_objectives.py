"""The contract of objectives: when each method is called, and what an objective may override."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.precision import Masters
from tamperfuse.training import checkpoints, rows
from tamperfuse.training.checkpoints import resumable
from tamperfuse.training.fit import Training, fit
from tamperfuse.training.objectives import Accumulate, Objective, SupervisedObjective, accumulate_gradient

TRAINING = Training(steps=3, batch=4, learning_rate=1e-3)


def samples(tiny: LoadedModel) -> list[Sample]:
    return [tiny.chat.sample(f"request {i}", f"the answer is {i * 3}", 20) for i in range(8)]


class Recorder(SupervisedObjective):
    """Records every call: its method, its thread, and the number of samples."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.threads: set[int] = set()
        self.sizes: list[int] = []

    def record(self, method: str) -> None:
        self.calls.append(method)
        self.threads.add(threading.get_ident())

    def begin(self, masters: Masters) -> None:
        self.record("begin")

    def loss(self, model: nn.Module, samples: Sequence[Sample], total: int, device: torch.device) -> Tensor:
        self.record("loss")
        self.sizes.append(len(samples))
        return super().loss(model, samples, total, device)

    def backward(self, accumulate: Accumulate) -> Tensor:
        self.record("backward")
        return super().backward(accumulate)

    def state_dict(self) -> dict[str, Any]:
        self.record("state_dict")
        return {}


def test_methods_are_called_one_at_a_time_from_the_thread_that_called_fit(
    tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "INTERVAL", 0.0)
    monkeypatch.setattr(rows, "ROW_TOKENS", 1)  # each sample in a row of its own
    objective = Recorder()
    with resumable(tmp_path):
        fit(tiny, samples(tiny), TRAINING, seed=0, objective=objective)
    step = ["backward", *["loss"] * TRAINING.batch]
    assert objective.calls == ["begin", *step, "state_dict", *step, "state_dict", *step]  # none after the last step
    assert objective.threads == {threading.get_ident()}
    assert set(objective.sizes) == {1}


class TwoLosses(Objective[Sample]):
    """The smallest objective that overrides `backward`: two losses in turn."""

    def loss(self, model: nn.Module, samples: Sequence[Sample], total: int, device: torch.device) -> Tensor:
        return SupervisedObjective().loss(model, samples, total, device)

    def half(self, model: nn.Module, samples: Sequence[Sample], total: int, device: torch.device) -> Tensor:
        return 0.5 * self.loss(model, samples, total, device)

    def backward(self, accumulate: Accumulate) -> Tensor:
        return accumulate(self.loss) + accumulate(self.half)


def test_an_objective_may_accumulate_several_losses(tiny: LoadedModel) -> None:
    taken = []
    for objective in (SupervisedObjective(), TwoLosses()):
        tiny.model.zero_grad()
        loss = accumulate_gradient(objective, tiny.model, samples(tiny), 50, tiny.model.device)
        taken.append((float(loss), [p.grad.clone() for p in tiny.model.parameters() if p.grad is not None]))
    assert taken[1][0] == pytest.approx(1.5 * taken[0][0])
    assert all(torch.allclose(b, 1.5 * a, atol=1e-6) for a, b in zip(taken[0][1], taken[1][1], strict=True))


def test_an_objective_without_a_loss_cannot_be_created() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Objective()  # type: ignore[abstract]
