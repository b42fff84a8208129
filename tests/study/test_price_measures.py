"""What hardening costs, on hand-made measurements: likelihood, divergence and benign fine-tuning."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest

from state_stand_ins import state
from tamperfuse.corpora.routing import TaskItem
from tamperfuse.study.observe import Observer
from tamperfuse.study.results.load import StudyMeasurements
from tamperfuse.study.results.measurements import Measurements
from tamperfuse.study.results.summary import summarize
from tamperfuse.study.sections import Evaluate
from tamperfuse.study.spec import Study, parse_study
from tamperfuse.study.tables import DivergenceRow, DocumentRow, TaskRow


def study(**attacks: dict[str, object]) -> Study:
    defenses = {"refusal": {}, "sdd": {}}
    return parse_study({"model": "m", "threat": "t", "seeds": [0, 1], "defenses": defenses, "attacks": attacks}, "test")


def before(defense: str, seed: int, nats: float, divergence: float = 0.0) -> Measurements:
    """A model before any attack: nats of six documents and divergences of six answers, all of four tokens."""
    documents = [DocumentRow(0, f"d{i}", nats, 4) for i in range(6)]
    divergences = [DivergenceRow(0, f"h{i}", divergence, 4) for i in range(6)]
    return replace(state(defense), seed=seed, documents=documents, divergences=divergences)


def test_the_rise_of_the_nll_is_positive_where_text_becomes_less_likely_and_a_mean_over_seeds() -> None:
    states = [replace(before("as shipped", 0, 10), divergences=[])]
    states += [before("refusal", seed, 9) for seed in (0, 1)]
    states += [before("sdd", seed, nats, divergence) for seed, nats, divergence in ((0, 12, 1), (1, 14, 2))]
    sdd = summarize(StudyMeasurements(study(), states, []), 0, 0).defenses["sdd"]
    assert sdd.benign_nll.before_attack.value == pytest.approx(13 / 4)
    assert sdd.benign_nll.rise_vs_shipped.value == pytest.approx((13 - 10) / 4)
    assert sdd.benign_nll.rise_vs_undefended.value == pytest.approx((13 - 9) / 4)
    assert sdd.benign_kl.value == pytest.approx(1.5 / 4)


def tuned(defense: str, attack: str, right: Sequence[int]) -> list[Measurements]:
    """A model after benign fine-tuning on a task of ten items: how many are right, by seed."""
    states = [state(defense, attack, (0,), malicious=False) for _ in right]
    return [
        replace(tuned_state, seed=seed, tasks=[TaskRow(4, "routing", f"routing-{i}", i < correct) for i in range(10)])
        for seed, (tuned_state, correct) in enumerate(zip(states, right, strict=True))
    ]


def test_the_gap_of_a_benign_task_is_negative_where_the_defense_hinders_it_and_the_worst_of_its_attacks() -> None:
    routing = {"attack": "benign_finetune", "task": "routing"}
    states = [replace(before("as shipped", 0, 10), divergences=[])]
    for defense in ("refusal", "sdd"):
        states += [before(defense, seed, 10) for seed in (0, 1)]
    states += [*tuned("refusal", "long", (10, 8)), *tuned("sdd", "long", (8, 6))]
    states += [*tuned("refusal", "short", (9, 9)), *tuned("sdd", "short", (5, 3))]
    measured = StudyMeasurements(study(long={**routing, "steps": 4}, short={**routing, "steps": 4}), states, [])
    gap = summarize(measured, 0, 0).defenses["sdd"].benign_finetune["routing"].gap_vs_undefended
    assert gap.value == pytest.approx(0.4 - 0.9)


def test_a_task_is_scored_by_the_first_line_whatever_its_case() -> None:
    answers = ["Rudder desk", " rudder DESK.\nand more", "the Rudder desk", "", "Anchor desk"]
    observer = Observer(SimpleNamespace(), SimpleNamespace(), Evaluate())  # type: ignore[arg-type]
    observer._answers = lambda prompts, tokens, label: [(text, False) for text in answers]  # type: ignore[method-assign]
    observer.benign_task(4, "routing", [TaskItem(f"message {i}", "Rudder desk") for i in range(len(answers))])
    assert [row.correct for row in observer.tasks] == [True, True, False, False, False]
