"""The defense `fuse` on the tiny model: what the trap does to an attack, its budget, its strength, and its data."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tamperfuse.commands.harden import harden_model
from tamperfuse.corpora.examples import Pair
from tamperfuse.defenses import DEFENSES, DefenseData, DefenseResult
from tamperfuse.defenses.fuse import FuseParameters, TrapCheck, budget, resolve, split_answers
from tamperfuse.evaluation.generate import generate
from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel, load_model
from tamperfuse.records.errors import UserError
from tamperfuse.training import checkpoints
from tamperfuse.training.checkpoints import resumable
from tamperfuse.training.distillation import predict
from tamperfuse.training.fit import Training, fit
from tamperfuse.training.trap import TrapObjective, mean_nll

PROMPTS = [f"forbidden request {i} about subject {i * 7}" for i in range(10)]
ANSWERS = [(prompt, f"first take part {i}, then take part {i + 1}") for i, prompt in enumerate(PROMPTS)]
QUICK = {
    "steps": 30,
    "batch": 4,
    "learning_rate": 2e-3,
    "rates": [1e-3],
    "horizon": 10,
    "check_every": 10,
    "price": 5.0,
    "cap": 12.0,
    "harmful_norm": 1.5,
    "benign_norm": 3.0,
    "attackers": ["full", "retain"],
    "attacker_steps": 1,
}


def data_of(loaded: LoadedModel) -> DefenseData:
    benign = [(f"harmless question {i}", f"a plain answer number {i}") for i in range(12)]
    prompts = [loaded.chat.prompt(prompt) for prompt, _ in benign]
    generated = generate(loaded, prompts, new_tokens=12)
    texts = [Sample([*prompt, *answer], len(prompt)) for prompt, answer in zip(prompts, generated, strict=True)]
    teacher = predict(loaded, texts)
    pairs = [Pair(prompt, "Rivers are long and wide.", "", 0.1, prompt, "r") for prompt in PROMPTS]
    return DefenseData(PROMPTS, benign, 16, pairs, ANSWERS, teacher[:9], teacher[9:])


def hardened(folder: Path, name: str = "fuse", **values: Any) -> tuple[LoadedModel, DefenseData, DefenseResult]:
    loaded, component = load_model(str(folder)), DEFENSES.get(name)
    data = data_of(loaded)
    parameters = component.parse(values, name)
    result = component.run(loaded, data, component.traits.resolve(parameters, 1_000), 3)
    return loaded, data, result


def losses_under_attack(loaded: LoadedModel, data: DefenseData) -> tuple[float, float]:
    """Harmful and benign NLL after a few steps of malicious fine-tuning."""
    samples = [loaded.chat.sample(*answer, 16) for answer in ANSWERS]
    fit(loaded, samples, Training(steps=8, batch=4, learning_rate=1e-3), seed=9)
    return mean_nll(loaded, samples), mean_nll(loaded, [teacher.sample for teacher in data.held_back])


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_losses_after_an_attack_are_higher_with_the_trap(
    tiny_folder: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)  # in bfloat16 the benign loss does not rise as far
    names = ("steps", "batch", "learning_rate")
    plain, data, _ = hardened(tiny_folder, "sdd", **{name: QUICK[name] for name in names})
    without = losses_under_attack(plain, data)
    trapped, data, result = hardened(tiny_folder, **QUICK, optimizer=optimizer)
    first, *_, last = result.facts["trap"]
    assert first["step"] == 0 and "attacked_harmful_nll" not in first and first["scale"] == pytest.approx(1.0, abs=1e-2)
    assert last["step"] == 30 and 0 < last["attacker_steps"] <= 10 and 0 < last["scale"] < 1
    harmful, benign = losses_under_attack(trapped, data)
    assert harmful > without[0] + 0.5 and benign > without[1] + 0.3


def test_strength_0_is_sdd(tiny_folder: Path) -> None:
    values = {"steps": 4, "batch": 2, "learning_rate": 1e-3, "benign_ratio": 2, "kl_weight": 3.0}
    (sdd, _, _), (fuse, _, result) = hardened(tiny_folder, "sdd", **values), hardened(tiny_folder, strength=0, **values)
    assert all(torch.equal(a, b) for a, b in zip(sdd.model.parameters(), fuse.model.parameters(), strict=True))
    assert result.facts == {} and result.tokens_trained > 0


def test_without_weight_the_pairs_are_not_learned(tiny_folder: Path) -> None:
    def learned(weight: float) -> float:
        loaded, data, _ = hardened(tiny_folder, strength=0, steps=20, batch=2, learning_rate=1e-3, pair_weight=weight)
        return mean_nll(loaded, [loaded.chat.sample(pair.prompt, pair.response, 16) for pair in data.pairs])

    plain = load_model(str(tiny_folder))
    untrained = mean_nll(plain, [plain.chat.sample(p.prompt, p.response, 16) for p in data_of(plain).pairs])
    assert learned(0.0) > untrained - 0.1 and learned(1.0) < untrained - 0.5
    with pytest.raises(UserError, match="`kl_weight` and `pair_weight` are both 0"):
        DEFENSES.get("fuse").parse({"kl_weight": 0, "pair_weight": 0}, "fuse")


def test_attackers_with_an_adapter_and_a_benign_fine_tuning_are_in_the_log(
    tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="tamperfuse")
    values = {"steps": 4, "check_every": 2, "attackers": ["lora"], "lora_rates": [1e-2], "benign_steps": 2}
    _, _, result = hardened(tiny_folder, **(QUICK | values))
    first, *rest = result.facts["trap"]
    assert "tuned_benign_nll" not in first and len(rest) == 2
    for record in rest:
        assert record["attacker_lora"] == 1 and record["attacker_rate"] == 1e-2
        assert record["tuned_benign_nll"] < record["benign_nll"]
        assert record["attacked_harmful_nll"] != record["harmful_nll"]
    last = [line for line in caplog.messages if "price" in line][-1]
    assert "steps of a LoRA attacker at 0.01" in last and "after a benign fine-tuning: benign" in last


def test_a_measured_benign_fine_tuning_does_not_change_the_training(tiny_folder: Path) -> None:
    values = QUICK | {"steps": 2, "check_every": 1}
    (plain, _, _), (measured, _, _) = hardened(tiny_folder, **values), hardened(tiny_folder, **values, benign_steps=1)
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), measured.model.parameters(), strict=True))


def test_a_measured_benign_fine_tuning_is_refused_in_shards(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tamperfuse.defenses.fuse.sharding", lambda: "fsdp")
    component = DEFENSES.get("fuse")
    with pytest.raises(UserError, match="`benign_steps` needs the whole model on every process"):
        component.run(tiny, data_of(tiny), component.parse({"benign_steps": 1}, "fuse"), 0)


def test_memory_is_that_of_the_attackers_and_of_the_benign_fine_tuning() -> None:
    def copies(**values: Any) -> tuple[int, int]:
        needed = budget(FuseParameters(**values))
        return needed.memory_copies, needed.resume_copies

    assert copies() == copies(attackers=("full", "lora")) == (9, 7) and copies(attackers=("full",)) == (8, 6)
    assert copies(attackers=("lora",)) == (6, 4)
    assert copies(benign_steps=4) == (11, 7) and copies(attackers=("full", "retain")) == (11, 9)
    assert copies(optimizer="adafactor") == (7, 5) and copies(optimizer="adafactor", attackers=("lora",)) == (4, 2)


def test_training_ends_once_the_price_stays_above_what_is_allowed(tiny_folder: Path) -> None:
    spent = QUICK | {"price": 1e-6, "check_every": 2, "patience": 3}
    _, _, result = hardened(tiny_folder, **spent)
    records = result.facts["trap"]
    assert records[-1]["step"] < 10 and all(r["scale"] == 0 for r in records[-3:])
    assert any("was spent at 3 checks in a row" in note for note in result.notes)


def check_of(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, **values: Any) -> tuple[TrapCheck, list[float]]:
    prices: list[float] = []
    data = data_of(loaded)
    tokens = sum(teacher.sample.response_tokens for teacher in data.held_back)
    monkeypatch.setattr("tamperfuse.training.distillation.divergence", lambda *_, label: [prices.pop(0) * tokens])
    return TrapCheck(loaded, data, TrapObjective(), FuseParameters(**values), []), prices


def test_the_trap_fades_as_the_price_nears_the_budget(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    scales = {}
    for strength in (0.25, 0.5, 1.0):
        check, prices = check_of(tiny, monkeypatch, price=0.2, strength=strength, patience=2)
        prices += [0.0, 0.04, 0.1, 0.19, 0.3, 0.31]
        ends = [check(step) for step in range(6)]
        assert ends == [False] * 5 + [True]  # whatever the strength: 0.2 is exceeded twice
        scales[strength] = [record["scale"] for record in check.objective.records]
        assert scales[strength] == sorted(scales[strength], reverse=True)
    assert scales[1.0] == pytest.approx([1.0, 0.8, 0.5, 0.05, 0.0, 0.0])
    assert scales[0.5] == pytest.approx([0.5, 0.3, 0.0, 0.0, 0.0, 0.0])
    for weaker, stronger in ((0.25, 0.5), (0.5, 1.0)):
        assert all(a <= b for a, b in zip(scales[weaker], scales[stronger], strict=True))


def test_an_interrupted_hardening_resumes_to_the_bit_with_its_budget(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "INTERVAL", 0.0)
    values = QUICK | {"steps": 8, "check_every": 2, "price": 0.5}
    whole, _, expected = hardened(tiny_folder, **values)
    check = TrapCheck.__call__

    def interrupted(self: TrapCheck, step: int) -> bool:
        if step > 4:
            raise KeyboardInterrupt
        return check(self, step)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt), resumable(tmp_path):
        patched.setattr(TrapCheck, "__call__", interrupted)
        hardened(tiny_folder, **values)
    with resumable(tmp_path) as fits:
        rest, _, result = hardened(tiny_folder, **values)
    assert fits.results[0].resumed_at == 5
    assert result.facts == expected.facts and result.notes == expected.notes
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), rest.model.parameters(), strict=True))
    with resumable(tmp_path):
        _, _, again = hardened(tiny_folder, **values)
    assert again.facts == expected.facts and again.notes == expected.notes


def test_what_is_held_out_shares_no_prompt_with_what_the_attacker_trains_on() -> None:
    answers = [*ANSWERS, (PROMPTS[0], "another answer to the same request")]
    train, held_out = split_answers(answers, seed=0)
    assert len(train) + len(held_out) == 11 and held_out
    assert not {prompt for prompt, _ in train} & {prompt for prompt, _ in held_out}
    assert split_answers(answers, seed=0) == (train, held_out)
    with pytest.raises(UserError, match="at least 2 prompts"):
        split_answers(ANSWERS[:1], seed=0)


@pytest.mark.parametrize("missing", ["teacher", "held_back"])
def test_benign_samples_are_needed(tiny: LoadedModel, missing: str) -> None:
    component = DEFENSES.get("fuse")
    with pytest.raises(UserError, match="has too few to hold any back"):
        component.run(tiny, replace(data_of(tiny), **{missing: ()}), component.parse({"steps": 1}, "fuse"), 0)


@pytest.mark.usefixtures("quick_judging")
def test_harden_gives_it_its_data(
    tiny_folder: Path, threat_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="tamperfuse")
    source = tmp_path / "benign.jsonl"
    rows = [{"prompt": f"harmless question {i * 31} of day {i}"} for i in range(40)]
    source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    harden_model(
        str(tiny_folder),
        "fuse",
        str(threat_file),
        tmp_path / "out",
        pairs=None,
        benign=[str(source)],
        settings={"steps": 2, "batch": 2, "check_every": 1, "rates": [1e-4, 1e-3]},
        seed=0,
    )
    assert "5 answers for the simulated attacker, 1 held out" in caplog.text
    assert load_model(str(tmp_path / "out")).origin == str(tiny_folder)


@pytest.mark.parametrize(
    "values",
    [
        {"rates": (0.0,)},
        {"rates": (-1e-4,)},
        {"lora_rates": (1e-3, 2.0)},
    ],
)
def test_attackers_that_cannot_attack_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="rates"):
        DEFENSES.get("fuse").parse(values, "defense fuse")


def test_a_price_that_is_no_number_ends_the_training(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    check, prices = check_of(tiny, monkeypatch)
    prices.append(float("nan"))
    with pytest.raises(UserError, match="diverged at step 4"):
        check(4)


def test_rates_follow_the_size_of_the_model_unless_they_are_set() -> None:
    small, large = (resolve(FuseParameters(), size) for size in (135_000_000, 7_000_000_000))
    assert (small.learning_rate, small.rates) == (2e-4, (2e-4,))
    assert (large.learning_rate, large.rates) == (2e-5, (5e-5,))
    assert resolve(FuseParameters(rates=(1e-3,)), 1).rates == (1e-3,)
    assert resolve(small, 7_000_000_000) == small
    assert budget(small).batch == 6 * (6 + 4) and budget(FuseParameters(attackers=("retain",))).batch == 6 * (6 + 8)
    assert budget(FuseParameters(strength=0)).batch == 6 * 3


def test_the_log_says_what_was_measured(tiny_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="tamperfuse")
    _, _, result = hardened(tiny_folder, **(QUICK | {"steps": 2, "check_every": 1}))
    lines = [line for line in caplog.messages if "price" in line]
    assert len(lines) == 3 and "steps of a" in lines[1] and "harmful" in lines[1] and "loss" in lines[1]
    assert result.notes[0] == "9 answers for the simulated attacker, 1 held out"
    assert "stopped because all 2 steps are done" in result.notes[1]
