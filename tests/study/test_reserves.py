"""What a training takes in memory and on the disk, where it simulates an attacker beside the weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tamperfuse.defenses import DEFENSES
from tamperfuse.defenses.fuse import FuseParameters, _objective, budget, resolve
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.precision import reduced_precision
from tamperfuse.records.registry import Budget
from tamperfuse.study.context import StudyContext
from tamperfuse.study.disk import result_bytes, working_bytes
from tamperfuse.study.estimates import OVERHEAD_MEMORY, Costs
from tamperfuse.study.execution.cluster import node_memory
from tamperfuse.study.node import Node, Outcome
from tamperfuse.study.plan import build_nodes
from tamperfuse.study.spec import Study, parse_study


def training(budget: Budget) -> Node:
    return Node("sdd, seed 0", "defense", (), {}, 0, lambda folder: Outcome(), Costs(trained=1), budget=budget)


def stored_bytes(state: Any) -> int:
    """Bytes of all tensors with more than one number in a state."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size() if state.numel() > 1 else 0
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(map(stored_bytes, parts))


def test_the_reserve_of_fuse_has_room_for_what_its_objective_stores(tiny: LoadedModel) -> None:
    parameters = resolve(FuseParameters(), 1)
    objective = _objective(tiny, parameters, 0)
    with reduced_precision(tiny.model, torch.float32) as masters:
        objective.begin(masters)
        trained = [master for _, master in masters.trainable()]
        objective.attackers.attacks[0].attacker.step([torch.ones_like(master) for master in trained])
        size = sum(master.numel() for master in trained)
        copies = stored_bytes(objective.state_dict()) / (4 * size)
    assert budget(parameters).resume_copies == 3 + round(copies)
    assert working_bytes(training(budget(parameters)), size) == 2 * 4 * size * (3 + round(copies))


def test_other_trainings_reserve_what_they_did() -> None:
    parameters = FuseParameters(strength=0)
    for plain in (Budget(1, 1), budget(parameters), DEFENSES.get("repnoise").traits.budget(defaults("repnoise"))):
        assert working_bytes(training(plain), 1_000) == 24_000
        assert node_memory(training(plain), 1_000) == OVERHEAD_MEMORY + 16_000


def defaults(name: str) -> Any:
    component = DEFENSES.get(name)
    return component.traits.resolve(component.parse({}, name), 1)


@pytest.mark.parametrize(("name", "copies"), [("fuse", 9), ("tar", 8), ("seam", 9), ("booster", 6), ("ctrap", 6)])
def test_defenses_that_simulate_attackers_need_more_memory(name: str, copies: int) -> None:
    node = training(DEFENSES.get(name).traits.budget(defaults(name)))
    assert node_memory(node, 1_000) == OVERHEAD_MEMORY + copies * 4_000


def test_the_disk_of_predictions_grows_with_the_benign_set(study: Study, tmp_path: Path) -> None:
    def benign_bytes(prompts: int, sources: tuple[str, ...] = ("self",)) -> int:
        values = study.model_dump(mode="json") | {
            "benign": {"prompts": prompts, "sources": list(sources)},
            "defenses": {"refusal": {"steps": 1}, "fuse": {"defense": "fuse", "steps": 1, "batch": 3}},
            "attacks": {},
        }
        nodes = build_nodes(StudyContext.open(parse_study(values, "test"), tmp_path))
        return next(result_bytes(node, 10) for node in nodes if node.kind == "benign set")

    tokens = study.evaluate.response_tokens
    assert benign_bytes(20_000) - benign_bytes(10_000) == 16_000 * tokens * 320, "built-in samples are limited"
    assert benign_bytes(1_000, ("self", "documents")) > benign_bytes(1_000)


def test_what_trains_nothing_needs_no_resume_state() -> None:
    node = Node("judge", "judge", (), {}, 0, lambda folder: Outcome(), Costs())
    assert working_bytes(node, 1_000) == 0 and node_memory(node, 1_000) == OVERHEAD_MEMORY + 6_000
