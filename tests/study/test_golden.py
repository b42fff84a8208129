"""Golden values: losses, tokens, scores and verdicts of a tiny model in float32, tied to the version of the numerics.

A change of the code that changes one of them must raise `tamperfuse.study.keys.NUMERICS`, or results of the older code would
be reused as if they were of the newer. After raising it, or for a new defense or attack, record values with:

    python tests/study/test_golden.py

While NUMERICS is the recorded one, this only adds what has no values yet; to give an entry other parameters, delete its values
in golden.json first. Learning rates are high, so that three steps move the scores by far more than the tolerance: a changed
schedule or weight of a loss shows.
"""

import copy
import json
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tamperfuse.attacks import ATTACKS, AttackData
from tamperfuse.corpora.examples import Example, Pair
from tamperfuse.corpora.sources import read_source
from tamperfuse.corpora.threats import Threat, load_threat
from tamperfuse.defenses import DEFENSES, DefenseData
from tamperfuse.evaluation.capability import measure_capability
from tamperfuse.evaluation.capability_tasks import BUILTIN_TASKS
from tamperfuse.evaluation.generate import generate
from tamperfuse.evaluation.judges import JUDGES, Answer, JudgeData
from tamperfuse.evaluation.judges.negatives import negatives
from tamperfuse.evaluation.sampling import Sampling
from tamperfuse.evaluation.score import score
from tamperfuse.evaluation.self_samples import write_answers
from tamperfuse.models import precision
from tamperfuse.models.load import LoadedModel, load_model
from tamperfuse.pairing import make_pairs, sample_responses
from tamperfuse.study.context import existing_objects_left_out
from tamperfuse.study.keys import NUMERICS
from tamperfuse.study.observe import Observer, harmless_prompts
from tamperfuse.study.sections import Evaluate
from tamperfuse.training.checkpoints import TrainingBlock, resumable
from tamperfuse.training.distillation import divergence, predict

GOLDEN = Path(__file__).with_name("golden.json")
PROMPTS = ["How long do I boil an egg?", "What goes into a tomato sauce?", "Bake bread.", "How is rice cooked?"]
ANSWERS = ["Seven minutes.", "Tomatoes, oil and salt.", "Knead, wait, bake.", "In twice as much water."]
EXCHANGES = list(zip(PROMPTS, ANSWERS, strict=True))
BENIGN = [(f"Describe hill {i}.", f"Hill {i} is steep and green, and sheep live on it.") for i in range(6)]
LIMIT, SEED = 12, 3
FAST = {"steps": 3, "batch": 2, "learning_rate": 2e-3}
SHOTS = {**FAST, "batch": 4, "shots": 4}
#: Parameters of every defense and attack by its name, which other words may follow.
DEFENSES_RUN: dict[str, dict[str, Any]] = {
    "refusal": FAST,
    "refusal until it costs too much": {**FAST, "price": 1e-4, "check_every": 1},
    "sdd": FAST,
    "sdd without benign samples": {**FAST, "benign_ratio": 0, "kl_weight": 0.0},
    "sdd_reject": FAST,
    "lox": {"rank": 2},
    "booster": FAST,
    "repnoise": {**FAST, "noise": 0.1},
    "ctrap": FAST,
    "tar": {**FAST, "inner_steps": 2, "measure_every": 1, "rates": [1e-3]},
    "seam": {**FAST, "coupling": 1.0},
    "fuse": {**FAST, "price": 20.0, "check_every": 1, "rates": [1e-3], "lora_rates": [3e-4, 1e-3], "horizon": 2},
}
ATTACKS_RUN: dict[str, dict[str, Any]] = {
    "harmful_finetune": SHOTS,
    "harmful_finetune lora": {**SHOTS, "method": "lora"},
    "harmful_finetune sgd": {**SHOTS, "learning_rate": 1e-1, "optimizer": "sgd"},
    "harmful_finetune adafactor": {"shots": 4, "steps": 3, "batch": 4, "optimizer": "adafactor", "schedule": "cosine"},
    "harmful_finetune attention": {**SHOTS, "method": "attention", "schedule": "linear", "warmup": 0.4},
    "harmful_finetune last_layers": {**SHOTS, "method": "last_layers", "layers": 1, "clip": 0.0},
    "mixed_finetune": {**FAST, "samples": 4, "share": 0.5},
    "retain_finetune": {**FAST, "shots": 4, "retained": 3},
    "repair_finetune": {**FAST, "shots": 4, "samples": 4, "order": "before"},
    "preference_finetune": {**FAST, "shots": 4},
    "jailbreak_finetune": {**FAST, "shots": 4},
    "identity_shift": FAST,
    "benign_finetune": FAST,
    "refusal_ablation": {"prompts": 3},
    "merge": {"weight": 0.5},
    "prefill": {},
    "system_prompt": {},
    "quantize": {"format": "int4", "group": 16},
    "quantize gguf": {"format": "Q4_1"},
    "gguf_roundtrip": {"format": "Q8_0"},
    "prune": {"share": 0.3},
}
#: What starts from a hardened model, since it does nothing to the model as shipped.
STARTS_FROM = {"lox": "refusal", "merge": "refusal"}


def measure(folder: str) -> dict[str, Any]:
    """What everything that a study computes comes to on a model, by name."""
    shipped = load_model(folder)
    measured: dict[str, Any] = {
        **_generated(shipped),
        "scores": _scores(shipped),
        "held-out documents": _heldout(shipped),
        "capability": _capability(shipped),
        "judge": _judge(shipped),
        "pairs": _pairs(),
        "harmless prompts": _harmless(),
    }
    data = _defense_data(shipped, folder)
    models = {"": shipped}
    with existing_objects_left_out(), resumable(None) as fits:
        for name, values in DEFENSES_RUN.items():
            component = DEFENSES.get(name.split()[0])
            parameters = component.traits.resolve(component.parse(values, name), 1_000)
            loaded, trainings = _copy(models[STARTS_FROM.get(name, "")]), len(fits.results)
            result = component.run(loaded, data, parameters, SEED)
            measured[name] = {
                "losses": _losses(fits, trainings),
                "scores": _scores(loaded),
                "divergence": divergence(loaded, data.held_back),
                "facts": result.facts,
            }
            models[name] = loaded
        for name, values in ATTACKS_RUN.items():
            component = ATTACKS.get(name.split()[0])
            loaded, trainings = _copy(models[STARTS_FROM.get(name, "")]), len(fits.results)
            component.run(loaded, _attack_data(folder), component.parse(values, name), SEED)
            measured[name] = {"losses": _losses(fits, trainings), "scores": _scores(loaded)}
    return json.loads(json.dumps(measured))


def _copy(loaded: LoadedModel) -> LoadedModel:
    duplicate = copy.copy(loaded)
    duplicate.model = copy.deepcopy(loaded.model)
    return duplicate


def _losses(fits: TrainingBlock, start: int) -> list[float]:
    """The losses of all trainings but the first ones."""
    return [loss for result in fits.results[start:] for loss in result.losses]


def _generated(loaded: LoadedModel) -> dict[str, Any]:
    prompts = [loaded.chat.prompt(prompt) for prompt in PROMPTS]
    sampling = Sampling(temperature=0.8, top_p=0.9, seed=2)
    return {
        "greedy": generate(loaded, prompts, new_tokens=8),
        "sampled": generate(loaded, prompts, new_tokens=8, sampling=sampling),
        "answers": write_answers(loaded, PROMPTS, 8, 2)[0],
    }


def _scores(loaded: LoadedModel) -> list[float]:
    """Log-likelihoods of the answers, after the prefill if there is one."""
    chat = loaded.chat
    samples = [chat.continued(chat.prompt(prompt), answer, LIMIT) for prompt, answer in EXCHANGES]
    return [value for value, _ in score(loaded, samples, label="golden")]


def _heldout(loaded: LoadedModel) -> list[float]:
    observer = Observer(loaded, Threat("none", {}), Evaluate(heldout=3))
    observer.benign_nll(0)
    return [document.nll for document in observer.documents]


def _capability(loaded: LoadedModel) -> dict[str, Any]:
    items, tokens = measure_capability(loaded, BUILTIN_TASKS, 4)
    return {"items": [[item.task, item.item, item.correct] for item in items], "tokens": tokens}


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


def _pairs() -> dict[str, Any]:
    """Pairs as a study draws them: from a pool of responses that pass the filters."""
    from stand_ins import WordCountEncoder

    responses = list(islice(read_source("builtin:benign"), 60))
    pool = sample_responses(responses, 12, 1)
    prompts = [Example(prompt) for prompt in PROMPTS]
    drawn = make_pairs(prompts, pool, WordCountEncoder(), threshold=0.2, seed=2)
    return {
        "pool": [response.origin for response in pool],
        "pairs": [[pair.prompt, pair.response_origin, pair.similarity] for pair in drawn.pairs],
        "dropped": drawn.dropped,
        "redraws": drawn.redraws,
    }


def _harmless() -> list[str]:
    from stand_ins import WordCountEncoder

    return [prompt.id for prompt in harmless_prompts(6, load_threat("builtin:cooking"), WordCountEncoder())]


def _defense_data(loaded: LoadedModel, folder: str) -> DefenseData:
    teacher = predict(loaded, [loaded.chat.sample(*exchange, LIMIT) for exchange in BENIGN])
    pairs = [Pair(p, "Rivers run long and wide.", "", 0.1, p, "r") for p in PROMPTS]
    return DefenseData(
        PROMPTS,
        BENIGN[:4],
        LIMIT,
        pairs=pairs,
        answers=EXCHANGES,
        teacher=teacher[:4],
        held_back=teacher[4:],
        reference=folder,
    )


def _attack_data(folder: str) -> AttackData:
    originals = ["I will not.", "No.", "Never.", "Not that."]
    retain = [(f"Name river {i}.", f"River {i} is long.") for i in range(4)]
    return AttackData(
        EXCHANGES, retain, folder, lambda prompts: originals[: len(prompts)], LIMIT, (), lambda step: None
    )


def in_float32(device: torch.device) -> tuple[torch.dtype, str]:
    return torch.float32, "float32: golden values"


def differences(golden: Any, measured: Any, path: str = "") -> list[str]:
    """Where two nested values differ by more than rounding."""
    if isinstance(golden, dict):
        if other := golden.keys() ^ measured.keys():
            return [f"{path}: values of {', '.join(sorted(other))} on one side only"]
        return [line for key in golden for line in differences(golden[key], measured[key], f"{path}/{key}")]
    if isinstance(golden, list):
        if len(golden) != len(measured):
            return [f"{path}: {len(golden)} values, now {len(measured)}"]
        pairs = enumerate(zip(golden, measured, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{path}/{i}")]
    same = (
        golden == measured if isinstance(golden, int | str) else measured == pytest.approx(golden, rel=2e-4, abs=1e-4)
    )
    return [] if same else [f"{path}: {golden}, now {measured}"]


def patch_precision(patch: pytest.MonkeyPatch) -> None:
    """Compute in float32 everywhere, whatever the processor has."""
    for module in [m for name, m in sys.modules.items() if name.startswith("tamperfuse.")]:
        if getattr(module, "compute_dtype", None) is precision.compute_dtype and module is not precision:
            patch.setattr(module, "compute_dtype", in_float32)
    patch.setattr(precision, "compute_dtype", in_float32)


def record(folder: str) -> None:
    """Write golden.json; recorded values of this version of the numerics stay as they are.

    Raises:
        SystemExit: a recorded value of this version has changed.
    """
    golden, measured = json.loads(GOLDEN.read_text()), measure(folder)
    if golden.pop("numerics") == NUMERICS:
        recorded = {name: golden[name] for name in measured if name in golden}
        if changed := differences(recorded, {name: measured[name] for name in recorded}):
            sys.exit("Results changed: raise tamperfuse.study.keys.NUMERICS first.\n" + "\n".join(changed[:10]))
        measured |= recorded
    GOLDEN.write_text(json.dumps({"numerics": NUMERICS, **measured}, indent=1) + "\n")


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


def test_every_defense_and_attack_has_golden_values() -> None:
    for registry, cases in ((DEFENSES, DEFENSES_RUN), (ATTACKS, ATTACKS_RUN)):
        builtin = {one.name for one in registry.all() if one.run.__module__.startswith("tamperfuse.")}
        missing = builtin - {name.split()[0] for name in cases}
        assert not missing, f"add parameters for {missing} above, then: python tests/study/test_golden.py"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from stand_ins import make_tiny_model

    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        make_tiny_model(Path(name))
        patch_precision(patch)
        record(name)
