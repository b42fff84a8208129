"""The trap's objective: its gradient written down once more, its attackers, and a training that resumes to the bit."""

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tamperfuse.models.load import LoadedModel, load_model
from tamperfuse.models.precision import Masters, reduced_precision
from tamperfuse.training import checkpoints
from tamperfuse.training.attackers import Attack, AttackerSettings
from tamperfuse.training.benign_tuning import tuned_nll
from tamperfuse.training.checkpoints import resumable
from tamperfuse.training.cross_entropy import token_kl_uniform
from tamperfuse.training.distillation import anchored, first_benign, predict
from tamperfuse.training.fit import Training, fit
from tamperfuse.training.objectives import accumulate_gradient
from tamperfuse.training.result import FitResult
from tamperfuse.training.trap import TrapObjective, mean_nll
from tamperfuse.training.trap_units import TrapUnit, harmful_answer, trap_units
from tamperfuse.training.weights import LoraAttacker, SimulatedAttacker, gradients, inner, perturbed

ADAPTED = {"kinds": ("full", "lora"), "lora_rates": (1e-2, 2e-2), "matrices": (2, 5)}
TRAINING = Training(steps=8, batch=3, learning_rate=1e-3, schedule="linear")


def units(loaded: LoadedModel, steps: int = 1) -> list[TrapUnit]:
    learn = [loaded.chat.sample(f"forbidden request {i}", "Rivers are long and wide.", 16) for i in range(6)]
    benign = [loaded.chat.sample(f"harmless question {i}", f"a plain answer {i}", 16) for i in range(6)]
    answers = [loaded.chat.sample(f"forbidden request {i}", f"step {i} of what you want", 16) for i in range(5)]
    return trap_units(anchored(learn, predict(loaded, benign), 2), answers, steps)


def objective(**settings: Any) -> TrapObjective:
    names = {field.name for field in fields(AttackerSettings)} & set(settings)
    simulated = {"rates": (1e-3, 3e-3), "horizon": 3} | {name: settings.pop(name) for name in names}
    return TrapObjective(**({"weight": 3.0} | settings), simulated=AttackerSettings(**simulated))


def gradient_of(loaded: LoadedModel, trap: TrapObjective, masters: Masters, samples: list[TrapUnit]) -> list[Any]:
    parameters = [parameter for parameter, _ in masters.trainable()]
    return gradients(
        parameters, lambda: accumulate_gradient(trap, loaded.model, samples, len(samples), loaded.model.device)
    )


def accumulate_over(loaded: LoadedModel, samples: list[TrapUnit]) -> Any:
    def accumulate(loss: Any, used: Any) -> torch.Tensor:
        value = loss(loaded.model, samples, len(samples), loaded.model.device)
        value.backward()
        return value.detach()

    return accumulate


def test_divergence_from_uniform_equals_plain_autograd() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 9)
    plain = logits.double().requires_grad_()
    log_q = plain.log_softmax(-1)
    expected = (log_q.exp() * (log_q + math.log(9))).sum(-1)
    weights = torch.rand(4)
    (expected * weights).sum().backward()
    sliced = logits.clone().requires_grad_()
    value = token_kl_uniform(sliced.clone())
    (value * weights).sum().backward()
    assert torch.allclose(value, expected.float(), atol=1e-5)
    assert torch.allclose(sliced.grad, plain.grad.float(), atol=1e-6)
    assert token_kl_uniform(torch.zeros(1, 9)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("answers", "steps"), [(8, 3), (9, 2), (5, 3), (1, 3), (12, 1)])
def test_answers_take_turns_in_every_role(tiny: LoadedModel, answers: int, steps: int) -> None:
    samples = [tiny.chat.sample(f"forbidden request {i}", f"step {i}", 16) for i in range(answers)]
    drawn = trap_units(units(tiny) * 40, samples, steps)
    roles = [
        {str(sample.tokens) for sample in role} for role in zip(*((*u.attack, u.harmful) for u in drawn), strict=True)
    ]
    assert len(roles) == steps + 1 and all(role == roles[0] for role in roles)
    assert len(roles[0]) >= max(1, answers - 1)
    assert all(len({str(s.tokens) for s in (*u.attack, u.harmful)}) == min(steps + 1, len(roles[0])) for u in drawn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_part_has_its_norm_relative_to_the_gradient_of_the_loss_less_what_is_along_it(
    tiny: LoadedModel, dtype: torch.dtype
) -> None:
    samples = units(tiny)[:3]
    with reduced_precision(tiny.model, dtype) as masters:
        before = [parameter.detach().clone() for parameter in tiny.model.parameters()]
        taken = {}
        for scale in (0.0, 0.5):
            trap = objective(harmful=2.0, benign=0.0, cap=100.0)
            trap.begin(masters)
            trap.scale = scale
            taken[scale] = gradient_of(tiny, trap, masters, samples)
            assert trap.attackers.meetings == (scale > 0)
        assert all(torch.equal(p, b) for p, b in zip(tiny.model.parameters(), before, strict=True))
        part, _ = trap._part(accumulate_over(tiny, samples), harmful_answer, False)
    descent = taken[0.0]
    added = [total - whole for total, whole in zip(taken[0.5], descent, strict=True)]
    length = math.sqrt(inner(descent, descent))
    cosine = inner(part, descent) / math.sqrt(inner(part, part)) / length
    tolerance = 1e-4 if dtype == torch.float32 else 0.02
    assert abs(cosine) > 0.01, "so that there is something to remove"
    assert inner(added, descent) / length**2 == pytest.approx(0, abs=tolerance)
    # scale 0.5 × harmful 2.0, at a right angle to the gradient of the loss
    assert math.sqrt(inner(added, added)) / length == pytest.approx(math.sqrt(1 - cosine**2), abs=tolerance)


@pytest.mark.parametrize("part", ["harmful", "benign"])
def test_a_step_along_the_trap_raises_the_nll_at_the_attacked_weights(tiny: LoadedModel, part: str) -> None:
    samples = units(tiny)[:3]
    masters = Masters([(parameter, parameter) for parameter in tiny.model.parameters()])
    trap = objective(harmful=0.0, benign=0.0, cap=100.0)
    trap.begin(masters)
    trap.scale = 0.0
    descent = gradient_of(tiny, trap, masters, samples)
    trap.scale = 1.0
    setattr(trap, part, 1.0)
    whole = gradient_of(tiny, trap, masters, samples)
    change = [descent_part - total for total, descent_part in zip(whole, descent, strict=True)]
    used = harmful_answer if part == "harmful" else first_benign

    def loss() -> float:
        with torch.no_grad(), trap.attack.attacker.applied():
            return float(trap._capped_loss(used, tiny.model, samples, len(samples), tiny.model.device))

    before = loss()
    with perturbed(masters, change, 1e-3):
        assert loss() < before


def test_a_part_fades_out_at_its_target(tiny: LoadedModel) -> None:
    samples = units(tiny)[:3]
    masters = Masters([(parameter, parameter) for parameter in tiny.model.parameters()])
    trap = objective(cap=1e-3)  # every token is above it
    trap.begin(masters)
    with_trap = gradient_of(tiny, trap, masters, samples)
    trap.scale = 0.0
    assert all(torch.equal(a, b) for a, b in zip(with_trap, gradient_of(tiny, trap, masters, samples), strict=True))


def test_the_difference_vanishes_where_the_attacker_has_not_moved(tiny: LoadedModel) -> None:
    samples = units(tiny)[:3]
    masters = Masters([(parameter, parameter) for parameter in tiny.model.parameters()])
    norms = {}
    for rate in (1e-8, 1e-2):
        trap = objective(rates=(rate,), harmful=0.0)
        trap.begin(masters)
        gradient_of(tiny, trap, masters, samples)
        part, _ = trap._part(accumulate_over(tiny, samples), first_benign, True)
        norms[rate] = math.sqrt(inner(part, part))
    assert norms[1e-8] < 1e-3 * norms[1e-2]


def met(trap: TrapObjective) -> tuple[float, str]:
    return trap.attack.attacker.learning_rate, trap.attack.kind


def test_every_round_has_each_attacker_once(tiny: LoadedModel) -> None:
    masters = Masters([(parameter, parameter) for parameter in tiny.model.parameters()])
    orders = set()
    for seed in (0, 1):
        trap = objective(seed=seed, rates=(1e-4, 1e-3, 1e-2))
        trap.begin(masters)
        for _ in range(3):
            order = []
            for _ in range(6):
                trap.attackers.meet()
                order.append(met(trap))
            assert len(set(order)) == 6
            orders.add(tuple(order))
    assert len(orders) > 1


def test_attackers_with_an_adapter_take_their_turn_and_change_its_matrices_alone(tiny: LoadedModel) -> None:
    masters = Masters([(parameter, parameter) for parameter in tiny.model.parameters()])
    trap = objective(rates=(1e-4,), kinds=("full", "lora", "retain"), lora_rates=(1e-3, 1e-2), matrices=(2, 5))
    trap.begin(masters)
    order = []
    for _ in range(4):
        gradient_of(tiny, trap, masters, units(tiny)[:3])
        order.append(met(trap))
        moved = {i for i, delta in enumerate(trap.attack.attacker.delta) if delta.any()}
        assert (moved == {2, 5}) == (trap.attack.kind == "lora")
    assert set(order) == {(1e-4, "full"), (1e-4, "retain"), (1e-3, "lora"), (1e-2, "lora")}


def test_an_attacker_that_retains_leaves_the_first_benign_sample_to_the_trap(tiny: LoadedModel) -> None:
    trap = objective(kinds=("retain",), rates=(1e-4,))
    trap.begin(Masters([(parameter, parameter) for parameter in tiny.model.parameters()]))
    keep = [sample for unit in units(tiny)[:2] for sample in unit.keep][:3]
    for count, turns in ((1, [0, 0, 0, 0]), (2, [1, 1, 1, 1]), (3, [1, 2, 1, 2])):
        unit = replace(units(tiny)[0], keep=tuple(keep[:count]))
        used = [trap._attacker_samples(index, replace(unit, attack=unit.attack * 4))[1] for index in range(4)]
        assert used == [keep[i].sample for i in turns]


def test_no_two_attackers_have_the_same_adapter_whatever_the_seed(tiny: LoadedModel) -> None:
    def adapter(attack: Attack) -> tuple[float, ...]:
        assert isinstance(attack.attacker, LoraAttacker)
        return tuple(attack.attacker.factors[0][1].flatten().tolist())

    masters = Masters([(parameter, parameter) for parameter in tiny.model.parameters()])
    drawn: list[tuple[float, ...]] = []
    for seed in (0, 1, 2):
        trap = objective(seed=seed, kinds=("lora",), lora_rates=(1e-3, 1e-2), matrices=(2,))
        trap.begin(masters)
        drawn += [adapter(attack) for attack in trap.attackers.attacks]
        trap.attack.steps = trap.attack.last
        trap.attackers.start_again()
        drawn.append(adapter(trap.attack))
    assert len(set(drawn)) == 9


def test_a_benign_fine_tuning_lowers_its_loss_and_leaves_no_trace(tiny: LoadedModel) -> None:
    masters = Masters([(parameter, parameter) for parameter in tiny.model.parameters()])
    samples = [tiny.chat.sample(f"harmless question {i}", f"a plain answer {i}", 16) for i in range(6)]
    before = [parameter.detach().clone() for parameter in tiny.model.parameters()]
    losses = [tuned_nll(tiny, masters, samples, steps=steps, learning_rate=1e-3) for steps in (0, 2, 6)]
    assert losses[0] == mean_nll(tiny, samples) > losses[1] > losses[2]
    assert all(torch.equal(p, b) and p.grad is None for p, b in zip(tiny.model.parameters(), before, strict=True))


@pytest.mark.parametrize("horizon", [3, 30])
def test_attackers_start_again_after_a_third_of_the_horizon_to_all_of_it(tiny: LoadedModel, horizon: int) -> None:
    trap = objective(horizon=horizon, kinds=("full",), rates=(1e-3,))
    trap.begin(Masters([(parameter, parameter) for parameter in tiny.model.parameters()]))
    lasts, first = set(), trap.attack
    for _ in range(40):
        lasts.add(trap.attack.last)
        trap.attack.steps = trap.attack.last - 1
        trap.attackers.start_again()
        assert trap.attack.steps == trap.attack.last - 1, "it has a step left"
        trap.attack.steps += 1
        trap.attackers.start_again()
        assert trap.attack.steps == 0 and math.isnan(trap.attack.loss) and met(trap) == (1e-3, "full")
    assert trap.attack is not first and trap.attackers.starts == 41
    assert min(lasts) >= horizon / 3 and max(lasts) <= horizon and len(lasts) > 2


def test_an_attacker_takes_its_steps_where_it_is_met_and_no_others(tiny: LoadedModel) -> None:
    trap = objective(horizon=100, rates=(1e-3,), attack_steps=3)
    fit(tiny, units(tiny, 3), Training(steps=5, batch=2), seed=0, objective=trap)
    assert trap.attackers.meetings == 5
    assert sorted(attack.steps for attack in trap.attackers.attacks) == [6, 9]
    for attack in trap.attackers.attacks:
        moved = max(float(delta.abs().max()) for delta in attack.attacker.delta)
        assert 0 < moved <= attack.steps * 1e-3 * 1.1


def test_an_attacker_above_the_cap_meets_no_trap(tiny: LoadedModel) -> None:
    samples = units(tiny)[:3]
    masters = Masters([(parameter, parameter) for parameter in tiny.model.parameters()])
    nll = mean_nll(tiny, [sample for unit in samples for sample in unit.attack])
    taken = {}
    for cap in (0.8 * nll, 1.5 * nll):
        trap = objective(kinds=("full",), cap=cap)
        trap.begin(masters)
        taken[cap < nll] = gradient_of(tiny, trap, masters, samples)
    trap.scale = 0.0
    descent = gradient_of(tiny, trap, masters, samples)
    equal = {above: all(map(torch.equal, gradient, descent)) for above, gradient in taken.items()}
    assert equal == {True: True, False: False}


def test_weights_return_to_the_bit_in_float32_and_the_change_is_what_was_in_effect(tiny: LoadedModel) -> None:
    masters = Masters([(parameter, parameter) for parameter in tiny.model.parameters()])
    attacker = SimulatedAttacker(masters, 1e-3)
    before = [parameter.detach().clone() for parameter in tiny.model.parameters()]
    attacker.step([torch.randn_like(b) for b in before])
    change = [delta.clone() for delta in attacker.delta]
    with pytest.raises(RuntimeError), attacker.applied():
        there = [parameter.detach().clone() for parameter in tiny.model.parameters()]
        raise RuntimeError("a step that fails leaves the weights as they were")
    assert all(torch.equal(p, b) for p, b in zip(tiny.model.parameters(), before, strict=True))
    assert all(torch.equal(b + c, t) for b, c, t in zip(before, change, there, strict=True))
    assert all(torch.allclose(d, c, atol=1e-6) for d, c in zip(attacker.delta, change, strict=True))
    with attacker.applied():
        again = [parameter.detach().clone() for parameter in tiny.model.parameters()]
    assert all(torch.allclose(a, t, atol=1e-6) for a, t in zip(again, there, strict=True))
    assert torch.allclose(change[0].abs(), torch.full_like(change[0], 1e-3), rtol=1e-3)  # AdamW's first step


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({"cap": 20.0, "attack_steps": 2}, torch.bfloat16),
        ({"attack_steps": 2} | ADAPTED, torch.float32),
    ],
)
def test_an_interrupted_training_resumes_to_the_bit(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(checkpoints, "INTERVAL", 0.0)
    monkeypatch.setattr("tamperfuse.training.fit.compute_dtype", lambda device: (dtype, "for the test"))

    class Interrupted(Exception):
        pass

    def train(stop: int, folder: Path | None) -> tuple[LoadedModel, FitResult, TrapObjective]:
        loaded, trap = load_model(str(tiny_folder)), objective(seed=4, **settings)

        def hook(step: int) -> None:
            trap.scale = 1.0 if step < 2 else 0.5 if step < 7 else 0.0
            trap.records.append({"step": step})
            if step > stop:
                raise Interrupted

        with resumable(folder):
            result = fit(
                loaded, units(loaded, trap.attack_steps), TRAINING, seed=1, objective=trap, at_steps=range(9), hook=hook
            )
        return loaded, result, trap

    whole, result, expected = train(99, None)
    with pytest.raises(Interrupted):
        train(4, tmp_path)
    rest, again, resumed = train(99, tmp_path)
    assert again.resumed_at == 4
    assert result.losses == again.losses and len(result.losses) == TRAINING.steps
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), rest.model.parameters(), strict=True))
    assert resumed.records == expected.records and resumed.attackers.starts == expected.attackers.starts > 4


def test_the_state_is_plain_and_settings_are_part_of_the_identity(tiny: LoadedModel, tmp_path: Path) -> None:
    masters = Masters([(parameter, parameter) for parameter in tiny.model.parameters()])
    trap = objective()
    trap.begin(masters)
    trap.attack.attacker.step([torch.ones_like(parameter) for parameter in tiny.model.parameters()])
    torch.save(trap.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other = objective()
    other.begin(masters)
    other.load_state_dict(state)
    deltas = (trap.attack.attacker.delta for trap in (other, trap))
    assert all(torch.equal(a, b) for a, b in zip(*deltas, strict=True))
    fresh = objective().settings()
    assert {"harmful", "benign", "rates", "kinds", "cap", "weight"} <= set(fresh)
    assert not {"scale", "last_loss", "records"} & set(fresh)
    assert objective(cap=3.0).settings() != fresh != objective(horizon=4).settings()


def test_a_hook_can_apply_the_attacker_to_the_complete_model_of_a_sharded_training(
    tiny: LoadedModel, tiny_folder: Path
) -> None:
    copy, samples = load_model(str(tiny_folder)), units(tiny)
    masters = Masters([(parameter, parameter) for parameter in copy.model.parameters()])
    trap = objective(rates=(1e-2,))
    trap.begin(masters)  # of the copy that is trained
    gradient_of(copy, trap, masters, samples[:3])
    harmful = [unit.harmful for unit in samples]
    before = mean_nll(tiny, harmful)
    with trap.attacked(tiny.model):
        attacked = mean_nll(tiny, harmful)
    assert mean_nll(tiny, harmful) == before != attacked
    with trap.attacked(copy.model):
        assert mean_nll(copy, harmful) == pytest.approx(attacked, abs=1e-4)


def test_samples_longer_than_the_window_are_left_out_wherever_they_are_in_a_unit(
    tiny: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    good = units(tiny)
    long = tiny.chat.sample("a " * 600, "answer", 16)
    broken = [replace(good[0], learn=(long,)), replace(good[1], attack=(long,))]
    fit(tiny, [*good[2:], *broken], Training(steps=1, batch=2), seed=0, objective=objective())
    assert "2 of 6 samples" in caplog.text
