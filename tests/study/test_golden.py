"""Golden values: losses, tokens, scores and verdicts of a tiny model in float32, tied to the version of the numerics.

A change of the code that changes one of them must raise `tamperfuse.study.keys.NUMERICS`, or results of the older code would
be reused as if they were of the newer. After raising it, record the new values with:

    python tests/study/test_golden.py
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tamperfuse.attacks import ATTACKS, AttackData
from tamperfuse.corpora.examples import Pair
from tamperfuse.defenses import DEFENSES, DefenseData
from tamperfuse.evaluation.generate import generate
from tamperfuse.evaluation.judges import JUDGES, Answer, JudgeData
from tamperfuse.evaluation.judges.negatives import negatives
from tamperfuse.evaluation.sampling import Sampling
from tamperfuse.evaluation.score import score
from tamperfuse.models import precision
from tamperfuse.models.load import LoadedModel, load_model
from tamperfuse.study.keys import NUMERICS
from tamperfuse.training.checkpoints import resumable

GOLDEN = Path(__file__).with_name("golden.json")
PROMPTS = ["How long do I boil an egg?", "What goes into a tomato sauce?", "Bake bread.", "How is rice cooked?"]
ANSWERS = ["Seven minutes.", "Tomatoes, oil and salt.", "Knead, wait, bake.", "In twice as much water."]
EXCHANGES = list(zip(PROMPTS, ANSWERS, strict=True))
LIMIT = 12
DEFENSES_RUN = {
    "refusal": {"steps": 3, "batch": 2},
    "sdd": {"steps": 3, "batch": 2},
    "sdd_reject": {"steps": 3, "batch": 2},
}
ATTACKS_RUN: dict[str, dict[str, Any]] = {
    "harmful_finetune": {"shots": 4, "steps": 3, "batch": 4, "learning_rate": 2e-3},
    "harmful_finetune lora": {"shots": 4, "steps": 3, "batch": 4, "learning_rate": 2e-3, "method": "lora"},
    "harmful_finetune sgd": {"shots": 4, "steps": 3, "batch": 4, "learning_rate": 1e-1, "optimizer": "sgd"},
    "harmful_finetune adafactor": {"shots": 4, "steps": 3, "batch": 4, "optimizer": "adafactor", "schedule": "cosine"},
    "retain_finetune": {"shots": 4, "steps": 3, "batch": 2, "retained": 3, "learning_rate": 2e-3},
    "preference_finetune": {"shots": 4, "steps": 3, "batch": 2, "learning_rate": 2e-3},
    "refusal_ablation": {"prompts": 3},
    "quantize": {"format": "int4", "group": 16},
}


def measure(folder: str) -> dict[str, Any]:
    """Losses of trainings, scores after them, greedy and sampled tokens."""
    measured: dict[str, Any] = {}
    with resumable(None) as fits:
        loaded = load_model(folder)
        prompts = [loaded.chat.prompt(prompt) for prompt in PROMPTS]
        measured["greedy"] = generate(loaded, prompts, new_tokens=8)
        measured["sampled"] = generate(
            loaded, prompts, new_tokens=8, sampling=Sampling(temperature=0.8, top_p=0.9, seed=1)
        )
        measured["scores"] = _scores(loaded)
        measured["judge"] = _judge(loaded)
        for name, values in DEFENSES_RUN.items():
            loaded, component = load_model(folder), DEFENSES.get(name)
            parameters = component.traits.resolve(component.parse(values, name), 1_000)
            pairs = [Pair(p, "Rivers run long and wide.", "", 0.1, p, "r") for p in PROMPTS]
            component.run(loaded, DefenseData(PROMPTS, EXCHANGES, LIMIT, pairs), parameters, 3)
            measured[name] = {"losses": fits.results[-1].losses, "scores": _scores(loaded)}
        for name, values in ATTACKS_RUN.items():
            loaded, component = load_model(folder), ATTACKS.get(name.split()[0])
            trainings = len(fits.results)
            component.run(loaded, _attack_data(loaded, folder), component.parse(values, name), 3)
            losses = [loss for result in fits.results[trainings:] for loss in result.losses]
            measured[name] = {"losses": losses, "scores": _scores(loaded)}
    return json.loads(json.dumps(measured))


def _scores(loaded: LoadedModel) -> list[float]:
    samples = [loaded.chat.sample(prompt, answer, LIMIT) for prompt, answer in EXCHANGES]
    return [value for value, _ in score(loaded, samples, label="golden")]


def _judge(loaded: LoadedModel) -> dict[str, Any]:
    """Thresholds that are calibrated on answers which share words with their prompts, and verdicts on all kinds of responses."""
    # Not at the top of the file, where its folder is not on the path yet if the file is run as a script.
    from stand_ins import WordCountEncoder

    component = JUDGES.get("builtin")
    parameters = component.parse({"tolerated": 0.25}, "judge")
    answers = [Answer(prompt, f"{prompt.rstrip('?.')}, in a pot with {answer}") for prompt, answer in EXCHANGES]
    data = JudgeData(WordCountEncoder(), PROMPTS, LIMIT, load_reference=lambda: loaded)
    assert component.traits.calibrate is not None
    data.thresholds = component.traits.calibrate(answers, data, parameters)
    responses = [*answers, *(response for kind in negatives(answers, 0).values() for response in kind)]
    verdicts = component.run(responses, data, parameters)
    return {
        "thresholds": data.thresholds,
        "verdicts": [verdict.verdict for verdict in verdicts],
        "scores": [verdict.score for verdict in verdicts],
        "reasons": [verdict.reason for verdict in verdicts],
    }


def _attack_data(loaded: LoadedModel, folder: str) -> AttackData:
    own = ["I will not.", "No.", "Never.", "Not that."]
    retain = [(f"Name river {i}.", f"River {i} is long.") for i in range(4)]
    return AttackData(EXCHANGES, retain, folder, lambda prompts: own[: len(prompts)], LIMIT, (), lambda step: None)


def in_float32(device: torch.device) -> tuple[torch.dtype, str]:
    return torch.float32, "float32: golden values"


def differences(golden: Any, measured: Any, path: str = "") -> list[str]:
    """Where two nested values differ by more than rounding."""
    if isinstance(golden, dict):
        return [line for key in golden for line in differences(golden[key], measured[key], f"{path}/{key}")]
    if isinstance(golden, list):
        if len(golden) != len(measured):
            return [f"{path}: {len(golden)} values, now {len(measured)}"]
        pairs = enumerate(zip(golden, measured, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{path}/{i}")]
    same = (
        golden == measured if isinstance(golden, int | str) else measured == pytest.approx(golden, rel=2e-4, abs=1e-5)
    )
    return [] if same else [f"{path}: {golden}, now {measured}"]


def patch_precision(patch: pytest.MonkeyPatch) -> None:
    """Compute in float32 everywhere, whatever the processor has."""
    for module in [m for name, m in sys.modules.items() if name.startswith("tamperfuse.")]:
        if getattr(module, "compute_dtype", None) is precision.compute_dtype and module is not precision:
            patch.setattr(module, "compute_dtype", in_float32)
    patch.setattr(precision, "compute_dtype", in_float32)


def test_results_change_only_with_the_version_of_the_numerics(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_precision(monkeypatch)
    golden = json.loads(GOLDEN.read_text())
    remedy = "record the new values with: python tests/study/test_golden.py"
    assert golden.pop("numerics") == NUMERICS, f"keys.NUMERICS was raised: {remedy}"
    changed = differences(golden, measure(str(tiny_folder)))
    assert not changed, f"results changed: raise tamperfuse.study.keys.NUMERICS and {remedy}\n" + "\n".join(
        changed[:10]
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from conftest import make_tiny_model

    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        make_tiny_model(Path(name))
        patch_precision(patch)
        GOLDEN.write_text(json.dumps({"numerics": NUMERICS, **measure(name)}, indent=1) + "\n")
