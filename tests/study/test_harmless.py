"""Which harmless prompts are asked, and that half of them are near the threat at hand."""

import numpy as np
import pytest

from stand_ins import WordCountEncoder
from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.corpora.threats import PARTS, Threat, ThreatPrompt, load_threat
from tamperfuse.models.encoder import SentenceEncoder
from tamperfuse.study.observe import HarmlessPrompt, harmless_prompts
from tamperfuse.study.tables import HARMLESS_FAR, HARMLESS_NEAR

SUBJECTS = {str(row["id"]): str(row["subject"]) for row in builtin_rows("harmless")}
GARDEN = "garden plants"


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder()


def threat_of(prompts: list[str]) -> Threat:
    """A threat whose parts all hold these prompts."""
    return Threat(
        "made up", {part: tuple(ThreatPrompt(f"{part}-{i}", p) for i, p in enumerate(prompts)) for part in PARTS}
    )


def subjects(prompts: list[HarmlessPrompt], part: str) -> list[str]:
    return [SUBJECTS[p.id] for p in prompts if p.part == part]


def test_near_follows_the_threat(encoder: SentenceEncoder) -> None:
    about_restaurants = ["Which restaurant table should I reserve?", "How much do I tip the waiter at dinner?"]
    about_computers = ["Why is my computer slow?", "Which password is safe on a website?", "What does a browser do?"]
    restaurants = harmless_prompts(12, threat_of(about_restaurants), encoder)
    assert [p.part for p in restaurants] == [HARMLESS_NEAR] * 6 + [HARMLESS_FAR] * 6
    assert subjects(restaurants, HARMLESS_NEAR).count("dining out") >= 4
    computers = subjects(harmless_prompts(12, threat_of(about_computers), encoder), HARMLESS_NEAR)
    assert computers.count("computers") >= 4 and "dining out" not in computers


def test_the_near_half_is_nearer(encoder: SentenceEncoder) -> None:
    threat = load_threat("builtin:gardening")
    prompts = harmless_prompts(128, threat, encoder)
    defender = encoder.encode([p.prompt for p in threat.part("defender")])
    mean = {
        part: float(np.mean(encoder.encode([p.prompt for p in prompts if p.part == part]) @ defender.T))
        for part in (HARMLESS_NEAR, HARMLESS_FAR)
    }
    assert mean[HARMLESS_NEAR] > mean[HARMLESS_FAR] + 0.05


def test_prompts_of_the_threat_and_of_its_subject_are_left_out() -> None:
    words = WordCountEncoder()
    cooking, gardening = (
        harmless_prompts(132, load_threat(f"builtin:{name}"), words) for name in ("cooking", "gardening")
    )
    assert GARDEN in {SUBJECTS[p.id] for p in cooking} and GARDEN not in {SUBJECTS[p.id] for p in gardening}
    taken = [str(row["prompt"]) for row in builtin_rows("harmless")[:5]]
    rest = harmless_prompts(132, threat_of([taken[0].upper(), *taken[1:]]), words)
    assert not {p.prompt for p in rest} & set(taken)


@pytest.mark.parametrize("limit", [2, 5, 100])
def test_half_are_near_and_the_choice_is_always_the_same(limit: int) -> None:
    words, threat = WordCountEncoder(), load_threat("builtin:cooking")
    prompts = harmless_prompts(limit, threat, words)
    assert prompts == harmless_prompts(limit, threat, words)
    assert len({p.id for p in prompts}) == len(prompts) == limit
    assert sum(p.part == HARMLESS_NEAR for p in prompts) == (limit + 1) // 2
