"""Distillation: the divergence and its gradient against plain autograd, and what training with it keeps."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamperfuse.models.load import LoadedModel, load_model
from tamperfuse.models.packed import packed_logits
from tamperfuse.training.batches import pack_samples
from tamperfuse.training.distillation import (
    OPENING,
    OPENING_WEIGHT,
    AnchoredObjective,
    TeacherSample,
    anchored,
    divergence,
    load_teacher,
    predict,
    save_teacher,
    token_kl,
)
from tamperfuse.training.fit import Training, fit

PROMPTS = [f"Name thing number {i}." for i in range(6)]


def reference_kl(logits: torch.Tensor, ids: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """The bucketed divergence, written down token by token."""
    q = logits.softmax(-1)
    rows = []
    for row, top, p in zip(q, ids, probabilities, strict=True):
        top, p = top[p > 0], p[p > 0]
        value = (p * (p.log() - row[top].log())).sum()
        rest = 1 - p.sum()
        if rest > 1e-6:
            value = value + rest * (rest.log() - (1 - row[top].sum()).log())
        rows.append(value)
    return torch.stack(rows)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.1, 1.0, 4.0]), hard=st.booleans())
def test_divergence_and_gradient_equal_plain_autograd(seed: int, scale: float, hard: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 30, generator=generator, dtype=torch.float64) * scale
    teacher = (torch.randn(5, 30, generator=generator, dtype=torch.float64) * scale).softmax(-1)
    probabilities, ids = teacher.topk(4, dim=-1)
    if hard:
        probabilities = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64).repeat(5, 1)
    weights = torch.rand(5, generator=generator)
    plain = logits.clone().requires_grad_()
    expected = reference_kl(plain, ids, probabilities)
    (expected * weights).sum().backward()
    sliced = logits.float().requires_grad_()
    value = token_kl(sliced.clone(), ids, probabilities.float())
    (value * weights).sum().backward()
    assert torch.allclose(value, expected.float(), atol=2e-4)
    assert torch.allclose(sliced.grad, plain.grad.float(), atol=2e-4)


def test_the_gradient_is_finite_where_the_model_excludes_all_that_the_teacher_does_not_list() -> None:
    logits = torch.zeros(1, 6, requires_grad=True)
    far = logits + torch.tensor([[100.0, 100.0, 0.0, 0.0, 0.0, 0.0]])
    token_kl(far, torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.4]])).sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_the_divergence_of_a_model_from_itself_is_zero_and_rises_with_training(tiny: LoadedModel) -> None:
    benign = [tiny.chat.sample(prompt, "A thing of some kind.", 16) for prompt in PROMPTS]
    teacher = predict(tiny, benign)
    assert teacher[0].ids.shape == (benign[0].response_tokens, 40)
    assert mean_kl(tiny, teacher) == pytest.approx(0.0, abs=2e-3)
    learn = [tiny.chat.sample("Tell me how to boil an egg.", "No, never.", 16)]
    fit(tiny, learn, Training(steps=20, batch=1, learning_rate=3e-3), seed=0)
    assert mean_kl(tiny, teacher) > 0.05


def mean_kl(loaded: LoadedModel, teacher: list[TeacherSample]) -> float:
    """Mean KL to the teacher's predictions, in nats a token."""
    return sum(divergence(loaded, teacher)) / sum(s.sample.response_tokens for s in teacher)


def test_training_with_it_learns_and_stays_closer_to_the_teacher(tiny_folder: Path) -> None:
    distances, losses = {}, {}
    for weight in (0.0, 8.0):
        loaded = load_model(str(tiny_folder))
        teacher = predict(loaded, [loaded.chat.sample(prompt, "A thing of some kind.", 16) for prompt in PROMPTS])
        learn = [loaded.chat.sample("Tell me how to boil an egg.", "No, never.", 16)]
        units = anchored(learn, teacher, benign=2)
        result = fit(
            loaded,
            units,
            Training(steps=30, batch=3, learning_rate=3e-3),
            seed=0,
            objective=AnchoredObjective(weight),
        )
        distances[weight] = mean_kl(loaded, teacher)
        losses[weight] = (result.losses[0], result.losses[-1])
    assert losses[8.0][1] < losses[8.0][0] * 0.8, "it still learns"
    assert distances[8.0] < distances[0.0] / 3


def test_the_first_tokens_of_a_response_count_more(tiny: LoadedModel) -> None:
    sample = tiny.chat.sample("Tell me how to boil an egg.", "No, never, on no day of the year.", 16)
    assert sample.response_tokens > OPENING
    batch = pack_samples([sample], tiny.model.device)
    with torch.no_grad():
        loss = AnchoredObjective(0.0).loss(tiny.model, anchored([sample], [], 0), 1, tiny.model.device)
        logits = packed_logits(tiny.model, batch.row, batch.layout, batch.positions)
    nll = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    weights = nll.new_tensor([OPENING_WEIGHT] * OPENING + [1.0] * (sample.response_tokens - OPENING))
    assert float(loss) == pytest.approx(float((nll * weights).sum() / weights.sum()), rel=1e-3)


def test_units_use_every_sample_of_both_sides(tiny: LoadedModel) -> None:
    learn = [tiny.chat.sample(prompt, "No.", 8) for prompt in PROMPTS[:2]]
    teacher = predict(tiny, [tiny.chat.sample(prompt, "Yes.", 8) for prompt in PROMPTS])
    units = anchored(learn, teacher, benign=2)
    assert {id(unit.learn[0]) for unit in units} == {id(sample) for sample in learn}
    assert {id(part) for unit in units for part in unit.keep} == {id(part) for part in teacher}
    assert [unit.keep for unit in anchored(learn, [], benign=2)] == [(), ()]


def test_a_teacher_survives_a_round_trip_and_its_divergence_is_measured(tiny: LoadedModel, tmp_path: Path) -> None:
    teacher = predict(tiny, [tiny.chat.sample(prompt, "A thing of some kind.", 16) for prompt in PROMPTS])
    save_teacher(tmp_path / "teacher.safetensors", teacher)
    read = load_teacher(tmp_path / "teacher.safetensors")
    assert [s.sample for s in read] == [s.sample for s in teacher]
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(read, teacher, strict=True))
    per_token = [kl / s.sample.response_tokens for kl, s in zip(divergence(tiny, read), read, strict=True)]
    assert per_token == pytest.approx([0.0] * len(read), abs=5e-3)
    fit(tiny, [teacher[0].sample], Training(steps=10, batch=1, learning_rate=3e-3), seed=0)
    assert min(divergence(tiny, read)) > 0.05
    save_teacher(tmp_path / "empty.safetensors", [])
    assert load_teacher(tmp_path / "empty.safetensors") == []
