from unittest.mock import Mock

import pytest
import torch

from tamperfuse.models.chat import Sample
from tamperfuse.models.finite import Diverged, not_finite
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.batching import group_by_budget
from tamperfuse.records.errors import UserError
from tamperfuse.training.batches import schedule
from tamperfuse.training.fit import Training, fit
from tamperfuse.training.objectives import SupervisedObjective, accumulate_gradient


def samples(tiny: LoadedModel, count: int = 6) -> list[Sample]:
    return [tiny.chat.sample(f"request {i}", f"the answer is {i * 3}", 20) for i in range(count)]


def weights(tiny: LoadedModel) -> list[torch.Tensor]:
    return [p.detach().clone() for p in tiny.model.parameters()]


def test_training_lowers_the_loss_and_keeps_float32(tiny: LoadedModel) -> None:
    result = fit(tiny, samples(tiny), Training(steps=30, batch=6, learning_rate=1e-2), seed=0)
    assert len(result.losses) == 30
    assert result.losses[-1] < 0.5 * result.losses[0]
    assert all(p.dtype == torch.float32 for p in tiny.model.parameters())
    assert result.tokens == 5 * sum(len(s.tokens) for s in samples(tiny)) * 6


def test_the_loss_is_a_mean_whatever_the_model_class_takes(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(steps=1, batch=6, learning_rate=1e-2)
    before = {name: p.detach().clone() for name, p in tiny.model.named_parameters()}
    mean = fit(tiny, samples(tiny), training, seed=0)
    tiny.model.load_state_dict(before, strict=False)
    monkeypatch.setattr(type(tiny.model), "accepts_loss_kwargs", False, raising=False)
    assert fit(tiny, samples(tiny), training, seed=0).losses == mean.losses


def test_the_seed_decides_everything(tiny_folder: object, tiny: LoadedModel) -> None:
    from tamperfuse.models.load import load_model

    training = Training(steps=4, batch=2, learning_rate=1e-3, method="lora", lora_rank=2)
    runs = []
    for seed in (1, 1, 2):
        model = load_model(str(tiny_folder))
        fit(model, samples(model), training, seed=seed)
        runs.append(weights(model))
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


def test_lora_changes_linear_layers_only_and_is_merged(tiny: LoadedModel) -> None:
    before = {name: p.detach().clone() for name, p in tiny.model.named_parameters()}
    fit(tiny, samples(tiny), Training(steps=3, batch=3, learning_rate=1e-2, method="lora", lora_rank=2), seed=0)
    after = dict(tiny.model.named_parameters())
    assert set(after) == set(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj" in name}
    delta = after["model.layers.0.mlp.up_proj.weight"] - before["model.layers.0.mlp.up_proj.weight"]
    assert int(torch.linalg.matrix_rank(delta, atol=1e-6)) <= 2


@pytest.mark.parametrize(
    ("settings", "trained"),
    [({"method": "attention"}, "self_attn"), ({"method": "last_layers", "layers": 1}, "model.layers.1.")],
)
def test_only_the_named_weights_change(tiny: LoadedModel, settings: dict, trained: str) -> None:
    before = {name: p.detach().clone() for name, p in tiny.model.named_parameters()}
    fit(tiny, samples(tiny), Training(steps=2, batch=3, learning_rate=1e-2, **settings), seed=0)
    after = dict(tiny.model.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if trained in name}
    assert all(p.requires_grad and p.dtype == torch.float32 for p in after.values())


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 3e-2), ("adafactor", 1e-2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_optimizers_work_on_the_masters(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, optimizer: str, rate: float, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("tamperfuse.training.fit.compute_dtype", lambda device: (dtype, "for the test"))
    training = Training(steps=30, batch=6, learning_rate=rate, optimizer=optimizer, schedule="cosine", warmup=0.1)
    result = fit(tiny, samples(tiny), training, seed=0)
    assert result.losses[-1] < 0.7 * result.losses[0]
    assert all(p.dtype == torch.float32 for p in tiny.model.parameters())


def test_small_steps_of_adafactor_are_not_lost(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tamperfuse.training.fit.compute_dtype", lambda device: (torch.bfloat16, "for the test"))
    before = weights(tiny)
    fit(tiny, samples(tiny), Training(steps=8, batch=2, learning_rate=1e-6, optimizer="adafactor"), seed=0)
    moved = max(float((a - b).abs().max()) for a, b in zip(before, weights(tiny), strict=True))
    assert 2e-6 < moved < 1e-4


def test_hooks_run_at_their_steps_in_evaluation_mode(tiny: LoadedModel) -> None:
    calls = []

    def hook(step: int) -> None:
        calls.append((step, tiny.model.training))

    fit(tiny, samples(tiny), Training(steps=5, batch=2), seed=0, at_steps=(0, 2, 5), hook=hook)
    assert calls == [(0, False), (2, False), (5, False)]


def test_small_updates_are_not_lost_to_rounding(tiny: LoadedModel) -> None:
    """Steps of 1e-6 vanish in bfloat16; the float32 masters must keep them."""
    before = weights(tiny)
    fit(tiny, samples(tiny), Training(steps=8, batch=2, learning_rate=1e-6), seed=0)
    moved = max(float((a - b).abs().max()) for a, b in zip(before, weights(tiny), strict=True))
    assert 2e-6 < moved < 1e-5


def test_every_pass_uses_every_sample_once() -> None:
    order = schedule(count=7, batch=7, steps=3, seed=3)
    assert all(sorted(order[i : i + 7]) == list(range(7)) for i in (0, 7, 14))
    assert order == schedule(7, 7, 3, 3) != schedule(7, 7, 3, 4)


def test_groups_keep_to_their_budget() -> None:
    groups = group_by_budget([5, 9, 2, 4, 9, 1], 12)
    assert sorted(i for group in groups for i in group) == list(range(6))
    assert all(sum([5, 9, 2, 4, 9, 1][i] for i in group) <= 12 for group in groups)


@pytest.mark.parametrize("method", ["full", "attention"])
def test_a_batch_in_several_rows_gives_the_same_gradient(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    batch = samples(tiny)
    if method == "attention":
        for name, parameter in tiny.model.named_parameters():
            parameter.requires_grad_("self_attn" in name)
    total = sum(s.response_tokens for s in batch)
    gradients, losses = [], []
    for limit, rows in ((10_000, 1), (40, 3), (1, len(batch))):
        monkeypatch.setattr("tamperfuse.training.rows.ROW_TOKENS", limit)
        tiny.model.zero_grad()
        backward = Mock(side_effect=torch.autograd.backward)
        for _ in range(2):  # what is there already is added to
            loss = accumulate_gradient(SupervisedObjective(), tiny.model, batch, total, tiny.model.device, backward)
        assert backward.call_count == 2 * rows
        losses.append(float(loss))
        gradients.append({n: p.grad.clone() for n, p in tiny.model.named_parameters() if p.grad is not None})
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-5)
    for gradient in gradients[1:]:
        assert gradient.keys() == gradients[0].keys()
        assert all(torch.allclose(gradient[name], gradients[0][name], atol=1e-6) for name in gradient)


def test_the_configuration_that_is_saved_says_of_the_cache_what_it_said(tiny: LoadedModel) -> None:
    assert tiny.model.config.use_cache is True
    for method in ("full", "lora"):
        fit(tiny, samples(tiny), Training(steps=1, batch=3, method=method, lora_rank=2), seed=0)
        assert tiny.model.config.use_cache is True


def test_bad_training_input(tiny: LoadedModel) -> None:
    with pytest.raises(UserError, match="nothing to train on"):
        fit(tiny, [], Training(steps=1), seed=0)
    with pytest.raises(UserError, match="lora_targets"):
        fit(tiny, samples(tiny), Training(steps=1, method="lora", lora_targets=("no_such",)), seed=0)
    with pytest.raises(UserError, match="has 2 layers, not 3"):
        fit(tiny, samples(tiny), Training(steps=1, method="last_layers", layers=3), seed=0)
    with pytest.raises(UserError, match="600 tokens or more, 512 allowed"):
        fit(tiny, [Sample([1] * 600, 5)], Training(steps=1), seed=0)


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"steps": 60, "learning_rate": 9.9, "optimizer": "sgd", "clip": 0}, "diverged at step"),
        (
            {"steps": 1, "method": "lora", "lora_alpha": 1e38, "optimizer": "sgd", "clip": 0},
            "weights are not finite, in model.layers",
        ),
    ],
)
def test_a_training_that_diverges_is_an_error_also_after_its_last_step(
    tiny: LoadedModel, settings: dict, place: str
) -> None:
    with pytest.raises(Diverged, match=place) as caught:
        fit(tiny, samples(tiny), Training(batch=3, **settings), seed=0, label="sdd")
    assert 1 <= caught.value.step <= settings["steps"]
    assert str(caught.value).startswith("sdd: the training diverged at step") and "learning_rate" in str(caught.value)


def test_finite_weights_with_logits_that_are_not_finite_have_diverged(tiny: LoadedModel) -> None:
    assert not_finite(tiny.model) == ""
    tiny.model.model.layers[1].mlp.down_proj.weight.data.fill_(3e38)
    assert not_finite(tiny.model) == "logits are not finite" and not tiny.model.training
