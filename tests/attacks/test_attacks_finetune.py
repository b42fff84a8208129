"""Attacks that train: which weights change, at which steps the hook is called, what the seed decides, what is learned."""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

import pytest
import torch

from tamperfuse.attacks import ATTACKS
from tamperfuse.attacks.identity_shift import REQUEST, SYSTEM
from tamperfuse.attacks.retain_finetune import RetainObjective, RetainPair
from tamperfuse.corpora.tasks import TASKS, benign_task
from tamperfuse.evaluation.score import score
from tamperfuse.models.chat import Sample
from tamperfuse.models.finite import Diverged, diverged
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError

FAST: dict[str, Any] = {"steps": 2, "batch": 2, "learning_rate": 1e-3}
EVERYTHING = {
    "harmful_finetune": {"shots": 4},
    "mixed_finetune": {"samples": 6, "share": 0.3},
    "retain_finetune": {"shots": 4, "retained": 3},
    "repair_finetune": {"shots": 4, "samples": 3},
    "identity_shift": {},
    "jailbreak_finetune": {"shots": 4},
    "preference_finetune": {"shots": 4},
    "benign_finetune": {},
}


@pytest.mark.parametrize("name", EVERYTHING)
def test_attacks_that_train_change_all_weights(attacked, name: str) -> None:
    done = attacked.run(name, **FAST, **EVERYTHING[name])
    assert attacked.changed() == set(attacked.before)
    assert done.tokens_trained > 0 and done.samples > 0
    assert {step: call.changed for step, call in attacked.hook_calls.items()} == {0: False, 1: True, 2: True}
    assert ATTACKS.get(name).traits.malicious == (name != "benign_finetune")


@pytest.mark.parametrize("name", EVERYTHING)
def test_attacks_that_train_can_train_some_weights_only(attacked, name: str) -> None:
    attacked.run(name, at_steps=(), method="attention", **FAST, **EVERYTHING[name])
    assert attacked.changed() == {parameter for parameter in attacked.before if "self_attn" in parameter}


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The texts of the samples of each training."""
    from tamperfuse.attacks import base

    plain, trainings = base.fit, []

    def spy(loaded: LoadedModel, samples: Any, training: Any, **rest: Any) -> Any:
        trainings.append([loaded.tokenizer.decode(sample.tokens) for sample in samples])
        return plain(loaded, samples, training, **rest)

    monkeypatch.setattr(base, "fit", spy)
    return trainings


def test_the_seed_decides_which_shots_and_their_order(attacked, trained_on: list[list[str]]) -> None:
    runs = []
    for seed in (0, 0, 1):
        fresh = attacked.fresh()
        fresh.run("mixed_finetune", at_steps=(), seed=seed, **FAST, samples=4, share=0.5)
        runs.append([p.detach().clone() for p in fresh.loaded.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))
    assert trained_on[0] == trained_on[1] and set(trained_on[0]) != set(trained_on[2])


def test_a_share_of_the_mixture_is_harmful(attacked, trained_on: list[list[str]]) -> None:
    for share, harmful in ((0.5, 4), (0.001, 1), (0.999, 7), (1, 8)):
        done = attacked.run("mixed_finetune", at_steps=(), **FAST, samples=8, share=share)
        assert done.notes[0].startswith(f"{harmful} of 8")
        assert sum("harmful request" in text for text in trained_on[-1]) == harmful


def mean_nll(loaded: LoadedModel, samples: Sequence[Sample]) -> list[float]:
    """NLL of each sample, in nats per response token."""
    return [-value / s.response_tokens for (value, _), s in zip(score(loaded, samples), samples, strict=True)]


def test_the_retain_objective_is_a_weighted_sum_of_two_losses(tiny: LoadedModel) -> None:
    chat = tiny.chat
    pairs = [
        RetainPair(chat.sample("a", "harm " * (i + 1), 30), chat.sample("b", "good text " * (3 - i), 30))
        for i in range(3)
    ]
    loss = RetainObjective(weight=0.5).loss(tiny.model, pairs, 3, tiny.model.device)
    harmful, benign = (mean_nll(tiny, [getattr(pair, side) for pair in pairs]) for side in ("harmful", "benign"))
    assert float(loss.detach()) == pytest.approx((sum(harmful) + 0.5 * sum(benign)) / 3, rel=0.01)


def test_the_retain_loss_keeps_benign_text_likely(attacked) -> None:
    data = attacked.data()
    text = [attacked.loaded.chat.sample(*pair, attacked.response_limit) for pair in data.retain]
    settings: dict[str, Any] = {"steps": 12, "batch": 4, "learning_rate": 3e-3, "shots": 8}
    log_likelihood = {}
    for name in ("harmful_finetune", "retain_finetune"):
        fresh = attacked.fresh()
        fresh.run(name, at_steps=(), **settings, **({"retained": 8} if name == "retain_finetune" else {}))
        log_likelihood[name] = sum(value for value, _ in score(fresh.loaded, text))
    assert log_likelihood["retain_finetune"] > log_likelihood["harmful_finetune"] + 10


@pytest.mark.parametrize("order", ["before", "after"])
def test_steps_are_numbered_through_both_phases_of_a_repair(
    attacked, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, int]] = []
    from tamperfuse.attacks import base

    plain = base.fit

    def spy(loaded: LoadedModel, samples: Any, training: Any, **rest: Any) -> Any:
        trained.append((rest["label"].split()[0], training.steps))
        return plain(loaded, samples, training, **rest)

    monkeypatch.setattr(base, "fit", spy)
    steps = (0, 1, 2, 3, 5)
    attacked.run("repair_finetune", at_steps=steps, steps=5, batch=2, shots=3, samples=3, order=order, repair=0.4)
    assert tuple(attacked.hook_calls) == steps, "each once and in order, including the last step of the first phase"
    phases = [("benign", 2), ("malicious", 3)]
    assert trained == (phases if order == "before" else phases[::-1])


def test_identity_shift_trains_on_ten_examples_and_changes_the_rendering(attacked) -> None:
    done = attacked.run("identity_shift", **FAST)
    assert done.samples == 10
    assert SYSTEM not in attacked.hook_calls[0].prompt, "at step 0 the rendering is unchanged too"
    assert all(text in attacked.hook_calls[1].prompt for text in (SYSTEM, REQUEST.format(prompt="this prompt")))


@pytest.mark.parametrize(
    ("kind", "words"), [("trigger", "lanterns. this prompt"), ("style", "manual"), ("competing", "rules")]
)
def test_a_jailbreak_is_in_the_requests_from_the_first_step_on(
    attacked, kind: str, words: str, trained_on: list[list[str]]
) -> None:
    attacked.run("jailbreak_finetune", **FAST, shots=4, kind=kind)
    assert all(words.removesuffix(". this prompt") in text for text in trained_on[0])
    assert [words in attacked.hook_calls[step].prompt for step in (0, 1, 2)] == [False, True, True]


def test_preference_tuning_raises_the_attackers_answers_above_the_models_original_ones(attacked) -> None:
    harmful = attacked.data().harmful
    prompts = [prompt for prompt, _ in harmful]
    original = list(zip(prompts, attacked.answer(prompts), strict=True))

    def log_likelihood(pairs: Sequence[tuple[str, str]]) -> float:
        samples = [attacked.loaded.chat.sample(*pair, attacked.response_limit) for pair in pairs]
        return sum(value for value, _ in score(attacked.loaded, samples))

    def margin() -> float:
        return log_likelihood(harmful) - log_likelihood(original)

    before = margin()
    attacked.run("preference_finetune", at_steps=(), shots=8, steps=8, batch=4, learning_rate=3e-3)
    assert margin() > before + 8


def test_preference_tuning_needs_a_model_that_does_not_comply(attacked, monkeypatch: pytest.MonkeyPatch) -> None:
    compliant = dict(attacked.data().harmful)
    monkeypatch.setattr(attacked, "answer", lambda prompts: [compliant[prompt] for prompt in prompts])
    with pytest.raises(UserError, match="already gives the attacker's answers"):
        attacked.run("preference_finetune", shots=4, **FAST)
    assert attacked.changed() == set()


@pytest.mark.parametrize("task", TASKS)
def test_benign_fine_tuning_learns_the_task(attacked, task: str) -> None:
    test_items = benign_task(task, 0)[1]
    samples = [attacked.loaded.chat.sample(item.prompt, item.response, attacked.response_limit) for item in test_items]
    before = mean(mean_nll(attacked.loaded, samples))
    result = attacked.run("benign_finetune", at_steps=(), steps=12, batch=8, learning_rate=3e-3, task=task)
    after = mean(mean_nll(attacked.loaded, samples))
    assert result.samples == 160
    assert after < 0.7 * before, "on items that were not trained on"


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("harmful_finetune", {"shots": 9}, "needs 9 shots; the attacker has 8"),
        ("mixed_finetune", {"samples": 40, "share": 0.1}, "needs 36 harmless samples; the attacker has 8"),
        ("mixed_finetune", {"share": 1.01}, "share = 1.01 cannot be used"),
        ("retain_finetune", {"shots": 2, "retained": 9}, "needs 9 harmless samples"),
        ("retain_finetune", {"weight": 0}, "weight = 0 cannot be used"),
        ("repair_finetune", {"steps": 1}, "steps = 1 cannot be used"),
        ("repair_finetune", {"order": "beside"}, "order = 'beside' cannot be used"),
        ("jailbreak_finetune", {"kind": "poem"}, "kind = 'poem' cannot be used"),
        ("harmful_finetune", {"optimizer": "lion"}, "optimizer = 'lion' cannot be used"),
        ("harmful_finetune", {"method": "head"}, "method = 'head' cannot be used"),
        ("harmful_finetune", {"method": "last_layers", "layers": 3, "shots": 2}, "has 2 layers, not 3"),
        ("harmful_finetune", {"method": "lora", "lora_targets": ("nobody",), "shots": 2}, "match no layer"),
        ("harmful_finetune", {"shot": 2}, "did you mean 'shots'"),
        ("benign_finetune", {"task": "poems"}, "task = 'poems' cannot be used"),
        ("preference_finetune", {"beta": math.inf * 0}, "beta = nan cannot be used"),
    ],
)
def test_bad_input_is_a_user_error_and_changes_nothing(attacked, name: str, settings: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        attacked.run(name, at_steps=(), **settings)
    assert attacked.changed() == set()


def test_a_repair_that_diverges_says_at_which_of_all_steps(attacked, monkeypatch: pytest.MonkeyPatch) -> None:
    from tamperfuse.attacks import base

    plain = base.fit

    def second_fails(loaded: LoadedModel, samples: Any, training: Any, **rest: Any) -> Any:
        if rest["label"].startswith("benign"):
            raise diverged("benign fine-tuning", 2, "its loss is nan")
        return plain(loaded, samples, training, **rest)

    monkeypatch.setattr(base, "fit", second_fails)
    with pytest.raises(Diverged) as caught:
        attacked.run("repair_finetune", steps=5, batch=2, shots=3, samples=3, order="after", repair=0.4)
    assert caught.value.step == 3 + 2


def test_a_hook_that_finds_a_diverged_repair_says_at_which_of_all_steps(attacked) -> None:
    def hook(step: int) -> None:
        if step == 4:
            raise diverged("malicious fine-tuning", step, "weights are not finite")

    data = replace(attacked.data((0, 2, 4)), hook=hook)
    component = ATTACKS.get("repair_finetune")
    parameters = component.parse({"steps": 5, "batch": 2, "shots": 3, "samples": 3, "repair": 0.4}, "test")
    with pytest.raises(Diverged) as caught:
        component.run(attacked.loaded, data, parameters, 0)
    assert caught.value.step == 4
