"""A hook that ends a training: what counts as trained, and what a resumed run does."""

from pathlib import Path

import pytest
import torch

from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel, load_model
from tamperfuse.training import checkpoints
from tamperfuse.training.checkpoints import resumable
from tamperfuse.training.fit import Training, fit

TRAINING = Training(steps=6, batch=2, learning_rate=1e-3)


def samples(loaded: LoadedModel) -> list[Sample]:
    return [loaded.chat.sample(f"request {i}", f"the answer is {i * 3}", 20) for i in range(5)]


def test_training_ends_at_the_step_and_counts_what_was_trained(tiny: LoadedModel) -> None:
    steps: list[int] = []

    def hook(step: int) -> bool:
        steps.append(step)
        return step == 0 or step == 4  # before the first step, there is nothing to end

    result = fit(tiny, samples(tiny), TRAINING, seed=0, at_steps=(0, 2, 4, 6), hook=hook)
    assert steps == [0, 2, 4]
    assert (result.steps, len(result.losses)) == (4, 4)
    whole = fit(load_model(tiny.name), samples(tiny), TRAINING, seed=0)
    assert result.losses == whole.losses[:4]
    assert result.tokens < whole.tokens and 0 < result.work < whole.work
    assert whole.steps == 6


def test_an_ended_training_stays_ended_when_a_later_part_is_repeated(
    tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "INTERVAL", 0.0)

    class Interrupted(Exception):
        pass

    with pytest.raises(Interrupted), resumable(tmp_path):
        first = fit(tiny, samples(tiny), TRAINING, seed=0, at_steps=(3,), hook=lambda step: True)
        after = [weight.detach().clone() for weight in tiny.model.parameters()]
        raise Interrupted
    again = load_model(tiny.name)
    with resumable(tmp_path):
        second = fit(again, samples(again), TRAINING, seed=0, at_steps=(3,), hook=lambda step: pytest.fail("it ended"))
    assert (second.resumed_at, second.steps, second.tokens) == (3, 3, first.tokens)
    assert all(torch.equal(a, b) for a, b in zip(after, again.model.parameters(), strict=True))
