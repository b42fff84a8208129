"""Attacks that train: which weights move, which stay, at which steps the hook looks, what the seed decides."""

import math
from typing import Any

import pytest
import torch
from bench import LIMIT, Bench

from tamperfuse.attacks import ATTACKS
from tamperfuse.attacks.identity_shift import REQUEST, SYSTEM
from tamperfuse.attacks.retain_finetune import RetainObjective, RetainPair
from tamperfuse.evaluation.score import score
from tamperfuse.models.load import LoadedModel, load_model
from tamperfuse.records.errors import UserError

FAST: dict[str, Any] = {"steps": 2, "batch": 2, "learning_rate": 1e-3}
CPU = torch.device("cpu")
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
def test_attacks_that_train_change_all_weights_or_those_named(bench: Bench, name: str) -> None:
    done = bench.run(name, **FAST, **EVERYTHING[name])
    assert bench.changed() == set(bench.before)
    assert done.tokens_trained > 0 and done.samples > 0
    assert [changed for _, changed in (bench.seen[step] for step in (0, 1, 2))] == [False, True, True]
    assert set(bench.seen) == {0, 1, 2}
    assert ATTACKS.get(name).traits.malicious == (name != "benign_finetune")


@pytest.mark.parametrize("name", EVERYTHING)
def test_attacks_that_train_may_be_held_to_some_weights(bench: Bench, name: str) -> None:
    bench.run(name, at_steps=(), method="attention", **FAST, **EVERYTHING[name])
    assert bench.changed() == {parameter for parameter in bench.before if "self_attn" in parameter}


def test_the_seed_decides_which_shots_and_their_order(bench: Bench) -> None:
    runs = []
    for seed in (0, 0, 1):
        fresh = Bench(load_model(bench.folder), bench.folder)
        fresh.run("mixed_finetune", at_steps=(), seed=seed, **FAST, samples=4, share=0.5)
        runs.append([p.detach().clone() for p in fresh.loaded.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


def test_a_share_of_the_mixture_is_harmful(bench: Bench) -> None:
    assert bench.run("mixed_finetune", at_steps=(), **FAST, samples=8, share=0.5).notes[0].startswith("4 of 8")
    assert bench.run("mixed_finetune", at_steps=(), **FAST, samples=8, share=0.001).notes[0].startswith("1 of 8")
    assert bench.run("mixed_finetune", at_steps=(), **FAST, samples=8, share=0.999).notes[0].startswith("7 of 8")
    assert bench.run("mixed_finetune", at_steps=(), **FAST, samples=8, share=1).notes[0].startswith("8 of 8")


def test_the_retain_step_weighs_two_losses(tiny: LoadedModel) -> None:
    chat = tiny.chat
    pairs = [
        RetainPair(chat.sample("a", "harm " * (i + 1), 30), chat.sample("b", "good text " * (3 - i), 30))
        for i in range(3)
    ]
    found = RetainObjective(weight=0.5).backward(tiny.model, pairs, 3, lambda loss: loss.backward(), CPU)
    values = score(tiny, [sample for pair in pairs for sample in (pair.harmful, pair.benign)])
    means = [
        -v / s.response_tokens
        for (v, _), s in zip(values, (s for p in pairs for s in (p.harmful, p.benign)), strict=True)
    ]
    assert float(found) == pytest.approx((sum(means[0::2]) + 0.5 * sum(means[1::2])) / 3, rel=0.01)


def test_retaining_keeps_benign_text(bench: Bench) -> None:
    """What a second loss is for: the same attack without it leaves the attacker's benign text less likely."""
    data = bench.data()
    text = [bench.loaded.chat.sample(*pair, LIMIT) for pair in data.retain]
    settings: dict[str, Any] = {"steps": 12, "batch": 4, "learning_rate": 3e-3, "shots": 8}
    likely = {}
    for name in ("harmful_finetune", "retain_finetune"):
        fresh = Bench(load_model(bench.folder), bench.folder)
        fresh.run(name, at_steps=(), **settings, **({"retained": 8} if name == "retain_finetune" else {}))
        likely[name] = sum(value for value, _ in score(fresh.loaded, text))
    assert likely["retain_finetune"] > likely["harmful_finetune"] + 10


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_repair_counts_its_steps_through(bench: Bench, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[str, int]] = []
    from tamperfuse.attacks import base

    plain = base.fit

    def spy(loaded: LoadedModel, samples: Any, training: Any, **rest: Any) -> Any:
        trained.append((rest["what"].split()[0], training.steps))
        return plain(loaded, samples, training, **rest)

    monkeypatch.setattr(base, "fit", spy)
    steps = (0, 1, 2, 3, 5)
    bench.run("repair_finetune", at_steps=steps, steps=5, batch=2, shots=3, samples=3, order=order, repair=0.4)
    assert tuple(bench.seen) == steps, "each once, in this order, the border between the phases included"
    assert trained == (
        [("repairing", 2), ("malicious", 3)] if order == "before" else [("malicious", 3), ("repairing", 2)]
    )


def test_an_identity_is_shifted_by_ten_harmless_examples_and_their_rendering(bench: Bench) -> None:
    done = bench.run("identity_shift", **FAST)
    assert done.samples == 10
    assert SYSTEM not in bench.seen[0][0], "step 0 is before the attack, rendering included"
    assert SYSTEM in bench.seen[1][0] and REQUEST.format(prompt="asked") in bench.seen[1][0]


@pytest.mark.parametrize(
    ("kind", "words"), [("trigger", "lanterns. asked"), ("style", "manual"), ("competing", "rules")]
)
def test_a_jailbreak_is_trained_and_asked_with(bench: Bench, kind: str, words: str) -> None:
    bench.run("jailbreak_finetune", **FAST, shots=4, kind=kind)
    assert words not in bench.seen[0][0] and words in bench.seen[1][0] and words in bench.seen[2][0]


def test_preferences_are_against_the_models_own_answers(bench: Bench) -> None:
    data = bench.data()
    chat = bench.loaded.chat
    own = bench.answer([prompt for prompt, _ in data.harmful])

    def margin() -> float:
        wanted = score(bench.loaded, [chat.sample(p, r, LIMIT) for p, r in data.harmful])
        mine = score(bench.loaded, [chat.sample(p, o, LIMIT) for (p, _), o in zip(data.harmful, own, strict=True)])
        return sum(a - b for (a, _), (b, _) in zip(wanted, mine, strict=True))

    before = margin()
    bench.run("preference_finetune", at_steps=(), shots=8, steps=8, batch=4, learning_rate=3e-3)
    assert margin() > before + 8


def test_a_model_that_complies_leaves_nothing_to_prefer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    compliant = dict(bench.data().harmful)
    monkeypatch.setattr(bench, "answer", lambda prompts: [compliant[prompt] for prompt in prompts])
    with pytest.raises(UserError, match="nothing to prefer"):
        bench.run("preference_finetune", shots=4, **FAST)
    assert bench.changed() == set()


def test_honest_fine_tuning_learns_either_task(bench: Bench) -> None:
    for task in ("routing", "dates"):
        fresh = Bench(load_model(bench.folder), bench.folder)
        assert fresh.run("benign_finetune", at_steps=(), **FAST, task=task).samples == 160


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
def test_bad_input_gets_a_sentence_and_changes_nothing(bench: Bench, name: str, settings: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        bench.run(name, at_steps=(), **settings)
    assert bench.changed() == set()
