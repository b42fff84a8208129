"""The defense of examples/plugin: compliant answers become less likely up to a ceiling, benign samples do not."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from tamperfuse.defenses import DEFENSES, DefenseData
from tamperfuse.evaluation.score import score
from tamperfuse.models.load import LoadedModel

SOURCE = Path(__file__).parents[2] / "examples" / "plugin" / "src"
LIMIT = 12
ANSWERS = [(f"harmful request {i}", f"compliant answer {i * 7}") for i in range(4)]
BENIGN = [(f"ordinary question {i}", f"ordinary reply {i * 3}") for i in range(8)]


@pytest.fixture
def plugin(registries: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SOURCE)
    yield importlib.import_module("tamperfuse_example.gradient_ascent")
    for name in [name for name in sys.modules if name.startswith("tamperfuse_example")]:
        del sys.modules[name]


def nll(loaded: LoadedModel, pairs: list[tuple[str, str]]) -> float:
    """Mean NLL, in nats per response token."""
    samples = [loaded.chat.sample(prompt, response, LIMIT) for prompt, response in pairs]
    return -sum(value for value, _ in score(loaded, samples)) / sum(sample.response_tokens for sample in samples)


def test_compliant_answers_become_unlikely_and_benign_text_does_not(plugin: Any, tiny: LoadedModel) -> None:
    component = DEFENSES.get("gradient_ascent")
    assert component.traits.needs_answers and not component.traits.needs_pairs
    before = {"answers": nll(tiny, ANSWERS), "benign": nll(tiny, BENIGN)}
    ceiling = before["answers"] + 4
    settings = {"steps": 16, "batch": 6, "learning_rate": 3e-3, "ceiling": ceiling}
    data = DefenseData([prompt for prompt, _ in ANSWERS], BENIGN, LIMIT, answers=ANSWERS)
    result = component.run(tiny, data, component.parse(settings, "test"), 0)
    assert result.tokens_trained > 0
    assert nll(tiny, ANSWERS) > before["answers"] + 1
    assert nll(tiny, BENIGN) < before["benign"]


def test_an_answer_beyond_the_ceiling_has_no_gradient(plugin: Any, tiny: LoadedModel) -> None:
    sample = tiny.chat.sample(*ANSWERS[0], LIMIT)
    for ceiling, has_gradient in ((0.01, False), (100.0, True)):
        tiny.model.zero_grad()
        objective = plugin.AscentObjective(ceiling)
        loss = objective.loss(tiny.model, [plugin.SignedSample(sample, forget=True)], 1, tiny.model.device)
        loss.backward()
        gradients = [p.grad for p in tiny.model.parameters() if p.grad is not None]
        assert any(bool(gradient.abs().max() > 0) for gradient in gradients) == has_gradient
    assert float(loss.detach()) == pytest.approx(-nll(tiny, ANSWERS[:1]), rel=0.01)
