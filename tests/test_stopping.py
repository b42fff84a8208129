"""When a defense stops by itself, and that a resumed training stops where an uninterrupted one does."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from tamperfuse.defenses import DEFENSES, DefenseData
from tamperfuse.defenses.sdd import SddParameters, resolve
from tamperfuse.defenses.stopping import CHECKS, Stopping
from tamperfuse.models.finite import Diverged
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.training.distillation import predict


def data(loaded: LoadedModel, executed: Iterable[float]) -> DefenseData:
    """Data whose held-out prompts are executed at these rates, one after the other."""
    rates = iter(executed)
    held_back = predict(loaded, [loaded.chat.sample("say hello", "hello there", 8)])
    return DefenseData(["a request"], [], 8, held_back=held_back, executed=lambda loaded: next(rates))


def test_it_stops_once_nothing_is_executed_at_two_checks_in_a_row(tiny: LoadedModel) -> None:
    stopping = Stopping(tiny, data(tiny, [0.0, 0.5, 0.0, 0.0]), allowed=1.0)
    assert [stopping(step) for step in (10, 20, 30, 40)] == [False, False, False, True]
    assert stopping.note(100).startswith("step 40: executes 0% of held-out prompts, price 0.00")
    assert stopping.note(100).endswith("stopped because no held-out prompt is executed any more")


def test_a_model_that_executes_nothing_from_the_start_is_trained_all_the_same(tiny: LoadedModel) -> None:
    stopping = Stopping(tiny, data(tiny, [0.0] * 4), allowed=1.0)
    assert not any(stopping(step) for step in (0, 10, 20, 30))
    stopping = Stopping(tiny, data(tiny, [0.9, 0.0, 0.0]), allowed=1.0)
    assert [stopping(step) for step in (0, 10, 20)] == [False, False, True]


def test_it_stops_at_the_price(tiny: LoadedModel) -> None:
    stopping = Stopping(tiny, data(tiny, [1.0]), allowed=0.05)
    for weight in tiny.model.parameters():
        weight.data.mul_(0.3)
    assert stopping(10) and stopping.reason == "the price exceeds 0.05 nats a token"


def test_a_resumed_training_stops_where_an_uninterrupted_one_does(tiny: LoadedModel, tmp_path: Path) -> None:
    first = Stopping(tiny, data(tiny, [0.5, 0.0, 0.0]), 1.0, tmp_path)
    assert [first(step) for step in (10, 20)] == [False, False]
    resumed = Stopping(tiny, data(tiny, [0.0]), 1.0, tmp_path)
    assert resumed(30) == first(30) is True
    assert resumed.checks == first.checks
    repeated = Stopping(tiny, data(tiny, [0.0]), 1.0, tmp_path)
    assert not repeated(20), "a step that is repeated is counted once"
    assert [check.step for check in repeated.checks] == [10, 20]
    assert Stopping(tiny, data(tiny, []), 1.0, tmp_path).note(100).startswith("step 20")
    assert not Stopping(tiny, data(tiny, []), 1.0, tmp_path, {"seed": 1}).checks, "those of other work"


def test_a_price_that_is_not_a_number_is_a_divergence(tiny: LoadedModel, tmp_path: Path) -> None:
    stopping = Stopping(tiny, data(tiny, [1.0]), 1.0, tmp_path)
    for weight in tiny.model.parameters():
        weight.data.fill_(float("nan"))
    with pytest.raises(Diverged, match="diverged at step 10"):
        stopping(10)
    assert not (tmp_path / CHECKS).exists()


def test_a_damaged_record_of_checks_is_a_user_error(tiny: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / CHECKS).write_text('[{"step": 1}]')
    with pytest.raises(UserError, match="is damaged: remove"):
        Stopping(tiny, data(tiny, []), 1.0, tmp_path)


def test_without_held_out_prompts_the_price_alone_is_measured(tiny: LoadedModel) -> None:
    source = data(tiny, [])
    stopping = Stopping(tiny, DefenseData(["a request"], [], 8, held_back=source.held_back), allowed=1.0)
    assert not stopping(10) and not stopping(20)
    assert str(stopping.checks[0]).startswith("step 10: price 0.00")


def test_a_price_needs_benign_samples() -> None:
    with pytest.raises(UserError, match="`price` is measured on benign samples"):
        DEFENSES.get("refusal").parse({"price": 0.1, "benign_ratio": 0}, "defense refusal")
    with pytest.raises(UserError, match="preset paper trains without benign samples"):
        resolve(SddParameters(preset="paper", price=0.1), 10)
