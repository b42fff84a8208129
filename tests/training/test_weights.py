import pytest
import torch
from torch import nn

from tamperfuse.models.load import LoadedModel
from tamperfuse.models.precision import Masters, reduced_precision
from tamperfuse.training.objectives import SupervisedObjective, accumulate_gradient
from tamperfuse.training.weights import LoraAttacker, SimulatedAttacker, gradients, inner, perturbed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_back_to_the_bit(tiny: LoadedModel, dtype: torch.dtype) -> None:
    with reduced_precision(tiny.model, dtype) as masters:
        before = [parameter.detach().clone() for parameter in tiny.model.parameters()]
        change = [torch.full_like(master, 1e-3) for _, master in masters.trainable()]
        with pytest.raises(RuntimeError), perturbed(masters, change, scale=0.7):
            assert not all(torch.equal(p, b) for p, b in zip(tiny.model.parameters(), before, strict=True))
            raise RuntimeError("a step that fails leaves the weights whole, too")
        assert all(torch.equal(p, b) for p, b in zip(tiny.model.parameters(), before, strict=True))


def test_the_change_is_added_to_the_float32_masters(tiny: LoadedModel) -> None:
    with reduced_precision(tiny.model, torch.bfloat16) as masters:
        parameter, master = masters.trainable()[0]
        change = [torch.full_like(m, 4e-3) for _, m in masters.trainable()]
        with perturbed(masters, change):
            moved = (parameter.detach().float() - master).mean()
    assert float(moved) == pytest.approx(4e-3, rel=0.05)


def test_gradients_leave_what_was_accumulated(tiny: LoadedModel) -> None:
    parameters: list[nn.Parameter] = list(tiny.model.parameters())
    parameters[0].grad = torch.ones_like(parameters[0])
    samples = [tiny.chat.sample("a question", "an answer", 20)]

    def run() -> None:
        accumulate_gradient(SupervisedObjective(), tiny.model, samples, 3, tiny.model.device)

    taken = gradients(parameters, run)
    assert torch.equal(parameters[0].grad, torch.ones_like(parameters[0])) and parameters[1].grad is None
    assert inner(taken, taken) > 0 and all(g.dtype == torch.float32 for g in taken)


def test_the_simulated_attacker_learns_and_leaves_no_trace(tiny: LoadedModel) -> None:
    samples = [tiny.chat.sample(f"question {i}", f"the forbidden answer {i}", 20) for i in range(3)]
    total = sum(sample.response_tokens for sample in samples)
    losses: list[float] = []
    before = [parameter.detach().clone() for parameter in tiny.model.parameters()]

    def run() -> None:
        loss = accumulate_gradient(SupervisedObjective(), tiny.model, samples, total, tiny.model.device)
        losses.append(float(loss))

    with reduced_precision(tiny.model, torch.bfloat16) as masters:
        attacker = SimulatedAttacker(masters, learning_rate=3e-3)
        parameters = [parameter for parameter, _ in masters.trainable()]
        for _ in range(6):
            with attacker.applied():
                taken = gradients(parameters, run)
            attacker.step(taken)
        learned = losses[-1]
        attacker.restart(1e-3)
        with attacker.applied():
            gradients(parameters, run)
    assert learned < 0.8 * losses[0] and losses[-1] == losses[0]  # it persisted over steps, then began anew
    assert all(torch.equal(p, b) for p, b in zip(tiny.model.parameters(), before, strict=True))


def test_a_simulated_adapter_takes_the_steps_of_lora_and_leaves_no_trace() -> None:
    torch.manual_seed(0)
    layer, inputs = torch.nn.Linear(6, 5), torch.randn(7, 6)
    masters = Masters([(parameter, parameter) for parameter in layer.parameters()])
    attacker = LoraAttacker(masters, 1e-2, [0], seed=3, rank=2, alpha=4.0)
    [(b, a)] = attacker.factors
    assert not b.any() and 0 < float(a.abs().max()) <= 6**-0.5
    reference = [b.clone().requires_grad_(), a.clone().requires_grad_()]
    optimizer = torch.optim.AdamW(reference, lr=1e-2, weight_decay=0.0)
    weight, bias = (parameter.detach().clone() for parameter in layer.parameters())
    for _ in range(4):
        loss = torch.nn.functional.linear(inputs, weight + 2.0 * reference[0] @ reference[1], bias).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with attacker.applied():
            gradient = gradients(list(layer.parameters()), lambda: layer(inputs).square().mean().backward())
        attacker.step(gradient)
    torch.testing.assert_close(b, reference[0].detach())
    torch.testing.assert_close(a, reference[1].detach())
    torch.testing.assert_close(attacker.delta[0], 2.0 * (b @ a))
    assert not attacker.delta[1].any() and torch.linalg.matrix_rank(attacker.delta[0]) == 2
    assert torch.equal(layer.weight, weight) and torch.equal(layer.bias, bias)
    starts = [LoraAttacker(masters, 1e-2, [0], seed=seed).factors[0][1] for seed in (3, 3, 4)]
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[1], starts[2])
