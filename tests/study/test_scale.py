"""A study of many models in one file: what they share is computed once, and the disk holds no attacked model."""

from collections import Counter
from pathlib import Path

import pytest

from tamperfuse.records.files import read_json
from tamperfuse.records.summary import read_summary
from tamperfuse.records.yaml import parse_yaml
from tamperfuse.study.node import FinishedNode, Node, execute
from tamperfuse.study.remaining import folder_bytes
from tamperfuse.study.run import run_study
from tamperfuse.study.spec import Study, parse_study

SEEDS, ATTACKS = (0, 1, 2), ("full", "fast", "lora", "sgd", "benign")
CEILING = 0.010  # GB


def large(study: Study) -> Study:
    """The small study with two defenses, five attacks and three seeds."""
    full = {"attack": "harmful_finetune", "shots": 2, "steps": 1, "batch": 2}
    attacks = {
        "full": full,
        "fast": {**full, "learning_rate": 1e-2},
        "lora": {**full, "method": "lora"},
        "sgd": {**full, "optimizer": "sgd"},
        "benign": {"attack": "benign_finetune", "steps": 1, "batch": 2},
    }
    assert tuple(attacks) == ATTACKS
    two_each = dict.fromkeys(("prompts", "curve_prompts", "dev_prompts", "harmless", "heldout"), 2)
    evaluate = {"at_steps": [0, 1], "response_tokens": 8, **two_each}
    return parse_study(
        parse_yaml(study.to_yaml()) | {"seeds": list(SEEDS), "attacks": attacks, "evaluate": evaluate}, "large"
    )


def test_thirty_attacked_models_from_one_file(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two defenses under five attacks with three seeds, all of it trained and measured on the tiny model."""
    computed: Counter[str] = Counter()
    keys: Counter[str] = Counter()
    sizes: list[int] = []
    out = tmp_path / "run"

    def count(run: Path, node: Node, *rest: tuple[str, ...]) -> FinishedNode:
        done = execute(run, node, *rest)
        assert not done.reused
        computed[node.kind] += 1
        keys[node.key] += 1
        sizes.append(folder_bytes(out))
        return done

    monkeypatch.setattr("tamperfuse.study.run.compute", count)
    monkeypatch.setattr("tamperfuse.study.disk.TABLES", 50_000)  # bytes; that of real studies is 4 MB
    run_study(large(study), out, disk=CEILING)

    models = len(SEEDS) * 2
    attacked = models * len(ATTACKS)
    assert computed == {
        "answers before hardening": 1,
        "calibration": 1,
        "defender answers": 1,
        "self-made samples": 1,
        "benign set": 1,
        "pairs": len(SEEDS),
        "defense": models,
        "measure": 1 + models,
        "attack": attacked,
        "judge": 1 + models + attacked,
    }
    assert set(keys.values()) == {1}
    weights = [path.parent for path in out.rglob("model*.safetensors")]
    assert len(weights) == models, "only hardened models have weights"
    assert {read_json(folder.parent / "node.json")["kind"] for folder in weights} == {"defense"}
    assert not (out / "unfinished").exists()
    assert max(sizes) < CEILING * 1e9
    assert max(sizes) + attacked * folder_bytes(weights[0]) > CEILING * 1e9, "attacked models would not have fitted"
    assert read_summary(out).seeds == list(SEEDS)
