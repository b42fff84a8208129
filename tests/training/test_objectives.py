"""The contract of objectives: what runs in which thread, what a loss must not do, what an objective may override."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.precision import Masters
from tamperfuse.training import checkpoints, rows
from tamperfuse.training.accelerations import MemoryEstimate
from tamperfuse.training.checkpoints import resumable
from tamperfuse.training.fit import Training, fit
from tamperfuse.training.objectives import Accumulate, Objective, SupervisedObjective, accumulate_gradient

CPU = torch.device("cpu")
TRAINING = Training(steps=3, batch=4, learning_rate=1e-3)


def samples(tiny: LoadedModel) -> list[Sample]:
    return [tiny.chat.sample(f"request {i}", f"the answer is {i * 3}", 20) for i in range(8)]


@pytest.fixture
def parallel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads, however small a batch is."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(rows, "PARALLEL_TOKENS", 1)
    yield
    torch.set_num_threads(before)


class Recorder(SupervisedObjective):
    """Records the thread of every call."""

    def __init__(self, parallel_rows: bool = True) -> None:
        self.parallel_rows = parallel_rows
        self.calls: dict[str, set[int]] = {}

    def record(self, method: str) -> None:
        self.calls.setdefault(method, set()).add(threading.get_ident())

    def begin(self, masters: Masters) -> None:
        self.record("begin")

    def loss(self, model: nn.Module, samples: Sequence[Sample], total: int, device: torch.device) -> Tensor:
        self.record("loss")
        return super().loss(model, samples, total, device)

    def backward(self, accumulate: Accumulate) -> Tensor:
        self.record("backward")
        return super().backward(accumulate)

    def state_dict(self) -> dict[str, Any]:
        self.record("state_dict")
        return {}


@pytest.mark.usefixtures("parallel")
def test_only_the_loss_runs_in_worker_threads(
    tiny: LoadedModel, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "INTERVAL", 0.0)
    objective, main = Recorder(), threading.get_ident()
    with resumable(tmp_path):
        fit(tiny, samples(tiny), TRAINING, seed=0, objective=objective)
    assert objective.calls.keys() == {"begin", "loss", "backward", "state_dict"}
    assert all(objective.calls[method] == {main} for method in ("begin", "backward", "state_dict"))
    assert len(objective.calls["loss"]) >= 2 and main not in objective.calls["loss"]


@pytest.mark.usefixtures("parallel")
def test_an_objective_may_refuse_two_threads(tiny: LoadedModel) -> None:
    objective = Recorder(parallel_rows=False)
    fit(tiny, samples(tiny), TRAINING, seed=0, objective=objective)
    assert objective.calls["loss"] == {threading.get_ident()}


@pytest.mark.usefixtures("parallel")
def test_memory_is_estimated_for_as_many_rows_as_the_objective_allows(tiny: LoadedModel) -> None:
    two, one = (MemoryEstimate.of(tiny.model, tiny, torch.float32, parallel) for parallel in (True, False))
    assert (two.rows, one.rows) == (2, 1)


def draws(model: nn.Module, loss: Tensor) -> None:
    torch.rand(())


def writes_gradients(model: nn.Module, loss: Tensor) -> None:
    next(model.parameters()).grad = torch.zeros_like(next(model.parameters()))


def runs_backward(model: nn.Module, loss: Tensor) -> None:
    next(model.parameters()).sum().backward()


class Misbehaves(SupervisedObjective):
    def __init__(self, what: Callable[[nn.Module, Tensor], None]) -> None:
        self.what = what

    def loss(self, model: nn.Module, samples: Sequence[Sample], total: int, device: torch.device) -> Tensor:
        loss = super().loss(model, samples, total, device)
        self.what(model, loss)
        return loss


@pytest.mark.usefixtures("parallel")
@pytest.mark.parametrize("what", [draws, writes_gradients, runs_backward])
def test_a_loss_that_breaks_the_contract_in_two_threads_is_an_error(
    tiny: LoadedModel, what: Callable[[nn.Module, Tensor], None]
) -> None:
    with pytest.raises(RuntimeError, match="parallel_rows = False"):
        accumulate_gradient(Misbehaves(what), tiny.model, samples(tiny), 50, CPU)


@pytest.mark.usefixtures("parallel")
def test_random_numbers_are_allowed_in_one_thread(tiny: LoadedModel) -> None:
    objective = Misbehaves(draws)
    objective.parallel_rows = False
    assert float(accumulate_gradient(objective, tiny.model, samples(tiny), 50, CPU)) > 0


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
        loss = accumulate_gradient(objective, tiny.model, samples(tiny), 50, CPU)
        taken.append((float(loss), [p.grad.clone() for p in tiny.model.parameters() if p.grad is not None]))
    assert taken[1][0] == pytest.approx(1.5 * taken[0][0])
    assert all(torch.allclose(b, 1.5 * a, atol=1e-6) for a, b in zip(taken[0][1], taken[1][1], strict=True))


def test_an_objective_without_a_loss_cannot_be_created() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Objective()  # type: ignore[abstract]
