"""LoRA against 4-bit weights: what it learns reaches the model's own weights, and nothing else does."""

import importlib.util

import pytest
import torch
from peft.tuners.lora import Linear

from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.training.adapters import lora_adapter
from tamperfuse.training.fit import Training, fit
from tamperfuse.training.objectives import SupervisedObjective, accumulate_gradient


def samples(loaded: LoadedModel) -> list:
    texts = [(f"What is dish {i}?", f"Dish number {i} is a soup of {i} herbs.") for i in range(6)]
    return [loaded.chat.sample(prompt, response, 32) for prompt, response in texts]


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj")])
def test_lora_layers_compute_what_pefts_do(tiny: LoadedModel, targets: str | tuple[str, ...]) -> None:
    batch = samples(tiny)
    total = sum(sample.response_tokens for sample in batch)
    training = Training(method="lora", lora_rank=3, lora_alpha=5, lora_targets=targets)
    with lora_adapter(tiny, training) as adapted:
        layers = [module for module in adapted.modules() if isinstance(module, Linear)]
        for layer in layers:  # peft begins with zeros, of which nothing would be seen
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1, generator=torch.Generator().manual_seed(1))
        found = []
        for ours in (True, False):
            if not ours:
                for layer in layers:
                    del layer.forward
            adapted.zero_grad()
            loss = accumulate_gradient(SupervisedObjective(), adapted, batch, total, torch.device("cpu"))
            found.append((float(loss), [p.grad.clone() for p in adapted.parameters() if p.requires_grad]))
    assert len(layers) == len(found[0][1]) / 2 == (14 if targets == "all-linear" else 4)
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_qlora_adds_a_low_rank_change_to_the_weights_before_quantization(tiny: LoadedModel) -> None:
    pytest.importorskip("bitsandbytes")
    before = {name: weight.clone() for name, weight in tiny.model.named_parameters()}
    seen: list[set[torch.dtype]] = []
    training = Training(steps=6, batch=3, learning_rate=1e-2, method="qlora", lora_rank=2)
    result = fit(
        tiny,
        samples(tiny),
        training,
        seed=0,
        at_steps=[3],
        hook=lambda _: seen.append({p.dtype for p in tiny.model.parameters()}),
    )
    assert result.losses[-1] < result.losses[0]
    assert torch.uint8 in seen[0]  # it did train on quantized weights
    after = dict(tiny.model.named_parameters())
    assert after.keys() == before.keys()
    for name, weight in after.items():
        assert weight.dtype == torch.float32
        change = weight.detach() - before[name]
        if name.endswith("_proj.weight"):  # no rounding to 4 bits is left in it
            assert 0 < torch.linalg.matrix_rank(change, rtol=1e-3) <= 2, name
        else:
            assert not change.any(), name
    assert not hasattr(tiny.model, "is_loaded_in_4bit")


def test_qlora_without_bitsandbytes_says_how_to_get_it(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs bitsandbytes"):
        fit(tiny, samples(tiny), Training(steps=1, batch=3, method="qlora"), seed=0)


def test_qlora_targets_that_match_nothing_leave_the_model_as_it_was(tiny: LoadedModel) -> None:
    pytest.importorskip("bitsandbytes")
    before = [weight.clone() for weight in tiny.model.parameters()]
    training = Training(steps=1, batch=3, method="qlora", lora_targets=("no_such_layer",))
    with pytest.raises(UserError, match="match no layer"):
        fit(tiny, samples(tiny), training, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(before, tiny.model.parameters(), strict=True))
