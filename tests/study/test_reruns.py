"""A changed parameter runs exactly those nodes again that depend on it: on random graphs, with real folders."""

import logging
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stand_ins import GraphOfNodes
from tamperfuse.study.context import StudyContext
from tamperfuse.study.keys import _accelerators, node_key
from tamperfuse.study.node import Outcome, execute
from tamperfuse.study.plan import build_nodes
from tamperfuse.study.selection import reruns_for_steps
from tamperfuse.study.spec import Study, parse_study


@st.composite
def changes(draw: st.DrawFn) -> tuple[tuple[tuple[int, ...], ...], set[int]]:
    """A graph of up to 12 nodes, and the numbers of those whose parameters change."""
    count = draw(st.integers(1, 12))
    parents = tuple(tuple(sorted(draw(st.sets(st.integers(0, i - 1), max_size=3)))) if i else () for i in range(count))
    return parents, draw(st.sets(st.integers(0, count - 1), max_size=3))


@settings(max_examples=20, deadline=None)
@given(changes())
def test_a_changed_parameter_reruns_exactly_what_depends_on_it(
    change: tuple[tuple[tuple[int, ...], ...], set[int]],
) -> None:
    parents, changed = change
    logging.getLogger("tamperfuse").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run"
        first = tuple(range(1, len(parents) + 1))
        second = tuple(value + 100 * (i in changed) for i, value in enumerate(first))
        for node in GraphOfNodes(out, parents, first)():
            assert not execute(out, node).reused
        again = [execute(out, node) for node in GraphOfNodes(out, parents, second)()]
        dependent: set[int] = set()
        for i, numbers in enumerate(parents):
            if i in changed or dependent & set(numbers):
                dependent.add(i)
        assert {i for i, done in enumerate(again) if not done.reused} == dependent
        fresh = Path(place) / "elsewhere" / "run"
        for node, done in zip(GraphOfNodes(fresh, parents, second)(), again, strict=True):
            assert (execute(fresh, node).folder / "value").read_text() == (done.folder / "value").read_text()
        for node in GraphOfNodes(out, parents, first)():
            assert execute(out, node).reused, "results of the first parameters are still there"


def labels_of_changed(study: Study, evaluate: dict[str, int], out: Path) -> set[str]:
    """Labels of the nodes that run again if these values of `evaluate` change."""
    changed = study.model_copy(update={"evaluate": study.evaluate.model_copy(update=evaluate)})
    before, after = (build_nodes(StudyContext.open(variant, out)) for variant in (study, changed))
    return {new.label for old, new in zip(before, after, strict=True) if old.key != new.key}


def test_numbers_of_prompts_run_again_what_asks_them(study: Study, tmp_path: Path) -> None:
    under_attack = {f"{name} under full, seed 0" for name in ("refusal", "sdd")}
    controls = {f"{name} under benign, seed 0" for name in ("refusal", "sdd")}
    before = {f"{name}, seed 0: before attack" for name in ("refusal", "sdd")}
    judged = {
        "curve_prompts": under_attack | controls,
        "dev_prompts": under_attack | before,
        "prompts": before | {"as shipped: before attack"},
        "heldout": before | {"as shipped: before attack"},
    }
    for name, labels in judged.items():
        changed = labels_of_changed(study, {name: getattr(study.evaluate, name) - 1}, tmp_path)
        assert changed == labels | {f"judge {label}" for label in labels}, name


def test_a_search_runs_again_only_if_what_it_compares_changes(study: Study, tmp_path: Path) -> None:
    """It reads the capability before any attack alone, of all that is measured there."""
    attack = study.attacks["full"]
    search = {"trials": 2, "over": {"learning_rate": [1e-4, 1e-1]}}
    fixed = {name: value for name, value in attack.parameters.items() if name != "learning_rate"}
    values = study.model_dump(mode="json") | {
        "attacks": {"adaptive": {"attack": attack.attack, **fixed, "search": search}}
    }
    searched = parse_study(values, "test")
    evaluate = searched.evaluate.model_copy(update={"at_steps": (0, 1, 2, 3)})
    searches = {f"{name} under adaptive, seed 0" for name in ("refusal", "sdd")}
    for name in ("prompts", "harmless", "heldout"):
        assert not searches & labels_of_changed(searched, {name: getattr(study.evaluate, name) - 1}, tmp_path), name
    assert searches <= labels_of_changed(searched, {"capability_items": 2}, tmp_path)
    run = tmp_path / "run"
    first, more = (
        next(
            node for node in build_nodes(StudyContext.open(variant, run)) if node.label == "sdd under adaptive, seed 0"
        )
        for variant in (searched, searched.model_copy(update={"evaluate": evaluate}))
    )
    execute(run, replace(first, run=lambda folder: Outcome()))
    assert "so 1 attack with results" in reruns_for_steps(run, [more])
    values["defenses"]["refusal"]["parameters"]["steps"] = 3
    before, after = (
        {node.label: node for node in build_nodes(StudyContext.open(variant, tmp_path))}
        for variant in (searched, parse_study(values, "test"))
    )
    label = "sdd under adaptive, seed 0"
    assert before[label].key != after[label].key
    assert [node.label for node in before[label].compared] == [
        "as shipped: before attack",
        "refusal, seed 0: before attack",
    ]


def test_another_gpu_computes_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory decides whether AdamW keeps its moments in 8 bits."""
    keys = set()
    monkeypatch.setattr("tamperfuse.study.keys.own_device", lambda: torch.device("cuda"))
    for name in ("small", "large"):
        _accelerators.cache_clear()
        monkeypatch.setattr("torch.cuda.get_device_name", lambda name=name: name)
        keys.add(node_key("defense", {}, [], 0))
    _accelerators.cache_clear()
    assert len(keys) == 2
