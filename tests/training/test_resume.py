"""A training that is killed with SIGKILL at any time ends with bit-identical weights when it is repeated."""

import errno
import json
import os
import random
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fork_server import CONTEXT
from stand_ins import Trap
from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel, load_model
from tamperfuse.records.errors import UserError
from tamperfuse.training import checkpoints
from tamperfuse.training.checkpoints import fingerprint, resumable
from tamperfuse.training.fit import FitResult, Training, fit
from tamperfuse.training.objectives import SupervisedObjective

KILLS = 6  # the first half while the first training runs, the rest in the second one
STEPS = 60  # of the second training: more than the kills get through
TRAINING = Training(steps=60, batch=3, learning_rate=1e-3, schedule="cosine", warmup=0.1)
FIRST = TRAINING.model_copy(update={"steps": 8})


def samples(loaded: LoadedModel, words: str = "the answer is") -> list[Sample]:
    return [loaded.chat.sample(f"request {i}", f"{words} {i * 3}", 20) for i in range(7)]


def weights(loaded: LoadedModel) -> list[torch.Tensor]:
    return [p.detach().clone() for p in loaded.model.parameters()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def train(model: Path, work: Path, began: Any, late: bool) -> None:
    """In a process of its own: two trainings in a row, as in an attack with a repair, with a checkpoint at every step.

    `began` is set after the first step, or, if `late`, after the first one of the second training.
    """
    torch.set_num_threads(1)
    checkpoints.INTERVAL = 0.0
    loaded = load_model(str(model))
    every, in_second = range(1, STEPS + 1), False

    def trains(step: int) -> None:
        if in_second or not late:
            began.set()

    with resumable(work / "unfinished"):
        first = fit(loaded, samples(loaded), FIRST, seed=1, objective=Trap(), at_steps=every, hook=trains)
        in_second = True
        lora = Training(steps=STEPS, batch=3, learning_rate=1e-3, method="lora", lora_rank=2)
        second = fit(loaded, samples(loaded, "now it is"), lora, seed=2, at_steps=every, hook=trains)
    torch.save([weights(loaded), first.losses, second.losses, first.resumed_at + second.resumed_at], work / "ended.pt")


def start(model: Path, work: Path, late: bool = False) -> tuple[Any, Any]:
    began = CONTEXT.Event()
    process = CONTEXT.Process(target=train, args=(model, work, began, late))
    process.start()
    return process, began


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    ends, rng, in_second = [], random.Random(0), []
    seconds = sorted(
        rng.uniform(0, 0.1) for _ in range(KILLS)
    )  # the first kills come soon: the first training is short
    for name, waits in (("whole", []), ("killed", seconds)):
        work = tmp_path / name
        work.mkdir()
        for kill, wait in enumerate(waits):
            process, began = start(tiny_folder, work, late=kill >= KILLS // 2)
            assert began.wait(60)
            process.join(wait)
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL, "it ended before it was killed: train for more steps"
            in_second.append((work / "unfinished" / "fit-1.json").exists())
        process, _ = start(tiny_folder, work)
        process.join()
        assert process.exitcode == 0
        ends.append(torch.load(work / "ended.pt"))
        assert not list((work / "unfinished").glob(".tmp-*"))
    (whole, *losses, fresh), (killed, *again, resumed) = ends
    assert same(whole, killed)
    assert set(in_second) == {False, True}, "both trainings were killed"
    assert fresh == 0 and resumed > FIRST.steps, "the kills came before the first checkpoints"
    assert losses == again and [len(part) for part in losses] == [FIRST.steps, STEPS]


class Interrupted(Exception):
    pass


def stopped(loaded: LoadedModel, folder: Path, at: int, training: Training = TRAINING, **rest: Any) -> None:
    """A training that stops right after the checkpoint of a step."""

    def stop(step: int) -> None:
        if step > at:
            raise Interrupted

    with pytest.raises(Interrupted), resumable(folder):
        fit(loaded, samples(loaded), training, seed=1, at_steps=range(training.steps + 1), hook=stop, **rest)


@pytest.fixture
def at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "INTERVAL", 0.0)


@pytest.mark.parametrize("settings", [{"optimizer": "sgd"}, {"optimizer": "adafactor"}, {"method": "attention"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("at_every_step")
def test_every_optimizer_and_part_goes_on_to_the_bit(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("tamperfuse.training.fit.compute_dtype", lambda device: (dtype, "for the test"))
    training = Training(steps=6, batch=3, learning_rate=1e-2, schedule="linear", **settings)
    whole, half, rest = (load_model(str(tiny_folder)) for _ in range(3))
    expected = fit(whole, samples(whole), training, seed=1)
    stopped(half, tmp_path, 3, training)
    hook_steps: list[int] = []
    with resumable(tmp_path) as fits:
        result = fit(rest, samples(rest), training, seed=1, at_steps=range(7), hook=hook_steps.append)
    assert same(weights(whole), weights(rest))
    assert result.losses == expected.losses and result.tokens == expected.tokens
    assert result.resumed_at == 3 and hook_steps == [4, 5, 6] and fits.results == [result]


def test_what_a_kill_in_the_first_checkpoint_left_is_removed(tiny_folder: Path, tmp_path: Path) -> None:
    half = tmp_path / "unfinished" / ".tmp-fit-0-step-1.pt-0123abcd"
    half.parent.mkdir()
    half.write_bytes(b"half")
    loaded = load_model(str(tiny_folder))
    with resumable(tmp_path / "unfinished"):
        result = fit(loaded, samples(loaded), Training(steps=2, batch=3), seed=0)
    assert result.resumed_at == 0 and len(result.losses) == 2
    assert not half.exists()


def test_a_finished_training_is_not_repeated(tiny_folder: Path, tmp_path: Path) -> None:
    ended: list[tuple[list[torch.Tensor], FitResult]] = []
    for _ in range(2):
        loaded = load_model(str(tiny_folder))
        with resumable(tmp_path):
            ended.append((weights(loaded), fit(loaded, samples(loaded), Training(steps=2, batch=2), seed=1)))
        ended[-1] = (weights(loaded), ended[-1][1])
    assert same(ended[0][0], ended[1][0])
    assert ended[1][1].resumed_at == 2 and ended[1][1].losses == ended[0][1].losses
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".pt", ".json"]


@pytest.mark.usefixtures("at_every_step")
def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, plain, saves = load_model(str(tiny_folder)), torch.save, 0

    def full(state: Any, stream: Any) -> None:
        nonlocal saves
        saves += 1
        if saves > 2:
            stream.write(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(state, stream)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="is full: free some space and run again"), resumable(tmp_path):
        fit(loaded, samples(loaded), TRAINING, seed=1)
    monkeypatch.setattr(torch, "save", plain)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit-0-step-2.pt", "fit-0.json"]
    again = load_model(str(tiny_folder))
    with resumable(tmp_path):
        assert fit(again, samples(again), TRAINING, seed=1).resumed_at == 2


@pytest.mark.usefixtures("at_every_step")
def test_the_path_of_the_model_may_be_spelled_differently(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(load_model(str(tiny_folder)), tmp_path, 2)
    monkeypatch.chdir(tiny_folder.parent)
    loaded = load_model(tiny_folder.name)
    with resumable(tmp_path):
        assert fit(loaded, samples(loaded), TRAINING, seed=1).resumed_at == 2


@pytest.mark.usefixtures("at_every_step")
def test_a_checkpoint_of_something_else_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    stopped(load_model(str(tiny_folder)), tmp_path, 2)

    def refused(words: str, training: Training = TRAINING, seed: int = 1, said: str = "the answer is") -> None:
        loaded = load_model(str(tiny_folder))
        with pytest.raises(UserError, match=words), resumable(tmp_path):
            fit(loaded, samples(loaded, said), training, seed=seed)

    refused("training.learning_rate was 0.001 and is 0.01", TRAINING.model_copy(update={"learning_rate": 1e-2}))
    refused("seed was 1 and is 2", seed=2)
    refused("samples was", said="something else")
    record = tmp_path / "fit-0.json"
    stored = json.loads(record.read_text())
    for change, words in (({"weights": "0" * 32}, "weights was"), ({"versions": {"torch": "1.0"}}, "versions")):
        record.write_text(json.dumps({**stored, "of": {**stored["of"], **change}}))
        refused(words)
    record.write_text(json.dumps(stored))
    state = tmp_path / stored["file"]
    state.write_bytes(state.read_bytes()[:-1] + b"?")
    refused("is damaged")


@dataclass
class Weighted(SupervisedObjective):
    """An objective with a setting."""

    weight: float = 1.0


@dataclass(frozen=True)
class Signed:
    """A sample with a field besides its tokens, and a number that a model computed."""

    sample: Sample
    forget: bool = False
    margin: float = 0.0
    response_tokens: int = 1

    @property
    def tokens(self) -> list[int]:
        return self.sample.tokens


@pytest.mark.usefixtures("at_every_step")
def test_a_checkpoint_of_another_objective_or_work_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    def train(weight: float, work: dict[str, Any]) -> FitResult:
        loaded = load_model(str(tiny_folder))
        with resumable(tmp_path, work=work):
            return fit(loaded, samples(loaded), Training(steps=1, batch=2), seed=1, objective=Weighted(weight))

    train(0.1, {"parameters": {"beta": 0.1}})
    with pytest.raises(UserError, match=r"objective\.weight was 0\.1 and is 0\.9"):
        train(0.9, {"parameters": {"beta": 0.1}})
    with pytest.raises(UserError, match=r"parameters\.beta was 0\.1 and is 0\.9"):
        train(0.1, {"parameters": {"beta": 0.9}})
    assert train(0.1, {"parameters": {"beta": 0.1}}).resumed_at == 1


def test_every_field_of_a_sample_counts_but_real_numbers(tiny: LoadedModel) -> None:
    def of(*signed: Signed) -> str:
        return fingerprint(tiny, signed)["samples"]

    first, second = samples(tiny)[:2]
    assert of(Signed(first), Signed(second)) == of(Signed(first, margin=0.5), Signed(second))
    different = [
        of(Signed(first), Signed(second)),
        of(Signed(first, forget=True), Signed(second)),
        of(Signed(replace(first, start=first.start + 1)), Signed(second)),
        of(Signed(second), Signed(first)),
    ]
    assert len(set(different)) == len(different)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not list mapped files")
@pytest.mark.usefixtures("at_every_step")
def test_a_resumed_training_frees_the_disk_of_the_checkpoint_that_it_replaced(
    tiny_folder: Path, tmp_path: Path
) -> None:
    stopped(load_model(str(tiny_folder)), tmp_path, 2)
    loaded = load_model(str(tiny_folder))
    removed: list[str] = []

    def hook(step: int) -> None:
        mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
        removed.extend(line for line in mapped if "(deleted)" in line)

    with resumable(tmp_path) as fits:
        fit(loaded, samples(loaded), TRAINING, seed=1, at_steps=(5, 6), hook=hook)
    assert not removed
    assert 0 < fits.results[0].seconds_before < fits.results[0].seconds
