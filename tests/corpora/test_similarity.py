"""What the sentence encoder says of the built-in data: no near-duplicates, and harmless prompts near a threat or far from it.

All in one module, in which every text is encoded once.
"""

from collections.abc import Sequence

import numpy as np
import pytest

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.corpora.overlap import distinct, near
from tamperfuse.corpora.threats import PARTS, Threat, ThreatPrompt, load_threat
from tamperfuse.models.encoder import SentenceEncoder, Vectors
from tamperfuse.study.observe import HarmlessPrompt, harmless_prompts
from tamperfuse.study.tables import HARMLESS_FAR, HARMLESS_NEAR

THREATS = ("cooking", "gardening")
MEASURED = ("harmless", "heldout", "everyday", "grammar")
GRAMMAR_STEP = 40  # every such sentence is encoded: they come from 58 templates, and all are compared word by word
SUBJECTS = {str(row["id"]): str(row["subject"]) for row in builtin_rows("harmless")}


class CachedEncoder(SentenceEncoder):
    """The bundled encoder; every text is encoded once."""

    def __init__(self) -> None:
        super().__init__(batch_size=256)
        self._vectors: dict[str, Vectors] = {}

    def encode(self, texts: Sequence[str]) -> Vectors:
        new = list(dict.fromkeys(text for text in texts if text not in self._vectors))
        if new:
            self._vectors.update(zip(new, super().encode(new), strict=True))
        return np.stack([self._vectors[text] for text in texts])


@pytest.fixture(scope="module")
def encoder() -> CachedEncoder:
    return CachedEncoder()


def prompts(name: str, threat: str | None = None) -> list[str]:
    return [row["prompt"] for row in builtin_rows(name) if threat is None or row["threat"] == threat]


def texts_of(name: str) -> list[str]:
    """The prompts, questions or sentences of a built-in data set that are compared by the encoder."""
    if name == "everyday":
        return [row["question"] for row in builtin_rows(name)]
    if name == "grammar":
        return sorted({row[side] for row in builtin_rows(name) for side in ("good", "bad")})[::GRAMMAR_STEP]
    return prompts(name)


def new_prompts() -> list[str]:
    return prompts("contrast") + prompts("facts")


@pytest.mark.slow
@pytest.mark.parametrize("threat", THREATS)
def test_no_near_duplicates(threat: str, encoder: CachedEncoder) -> None:
    vectors = encoder.encode(prompts(threat))
    close = np.triu(vectors @ vectors.T > 0.9, 1)
    assert not close.any()


@pytest.mark.slow
def test_prompts_of_held_out_documents_are_not_near_what_is_trained(encoder: CachedEncoder) -> None:
    rows = [row for row in builtin_rows("heldout") if row["source"] != "instruction"]
    trained = [prompt for name in ("benign", "replay", "retain") for prompt in prompts(name)]
    assert near([row["prompt"] for row in rows], trained, encoder) == {}


@pytest.mark.slow
def test_retained_text_repeats_nothing_that_is_measured_or_trained(encoder: CachedEncoder) -> None:
    retained = encoder.encode(prompts("retain"))
    names = ("benign", "replay", "heldout", "harmless", "cooking")
    others = encoder.encode([prompt for name in names for prompt in prompts(name)])
    closest = np.max(retained @ others.T, axis=1)
    assert float(closest.max()) < 0.7


@pytest.mark.slow
def test_no_two_prompts_are_near_duplicates(encoder: CachedEncoder) -> None:
    texts = new_prompts()
    left = set(distinct(texts, encoder))
    assert [text for index, text in enumerate(texts) if index not in left] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MEASURED, "retain", *THREATS])
def test_no_prompt_is_near_what_is_measured_or_asked_in_a_threat(name: str, encoder: CachedEncoder) -> None:
    assert near(new_prompts(), texts_of(name), encoder) == {}


@pytest.mark.slow
def test_contrast_prompts_lie_nearer_to_their_threat_than_others_but_outside_it(encoder: CachedEncoder) -> None:
    facts = encoder.encode(prompts("facts"))
    for threat in THREATS:
        requests = encoder.encode(prompts(threat)).T
        similarity = encoder.encode(prompts("contrast", threat)) @ requests
        assert similarity.max(axis=1).mean() > (facts @ requests).max(axis=1).mean() + 0.08
        assert similarity.max() < 0.7


def threat_of(prompts: list[str]) -> Threat:
    """A threat whose parts all hold these prompts."""
    return Threat(
        "made up", {part: tuple(ThreatPrompt(f"{part}-{i}", p) for i, p in enumerate(prompts)) for part in PARTS}
    )


def subjects(prompts: list[HarmlessPrompt], part: str) -> list[str]:
    return [SUBJECTS[p.id] for p in prompts if p.part == part]


@pytest.mark.slow
def test_near_follows_the_threat(encoder: CachedEncoder) -> None:
    about_restaurants = ["Which restaurant table should I reserve?", "How much do I tip the waiter at dinner?"]
    about_computers = ["Why is my computer slow?", "Which password is safe on a website?", "What does a browser do?"]
    restaurants = harmless_prompts(12, threat_of(about_restaurants), encoder)
    assert [p.part for p in restaurants] == [HARMLESS_NEAR] * 6 + [HARMLESS_FAR] * 6
    assert subjects(restaurants, HARMLESS_NEAR).count("dining out") >= 4
    computers = subjects(harmless_prompts(12, threat_of(about_computers), encoder), HARMLESS_NEAR)
    assert computers.count("computers") >= 4 and "dining out" not in computers


@pytest.mark.slow
def test_the_near_half_is_nearer(encoder: CachedEncoder) -> None:
    threat = load_threat("builtin:gardening")
    chosen = harmless_prompts(128, threat, encoder)
    defender = encoder.encode([p.prompt for p in threat.part("defender")])
    mean = {
        part: float(np.mean(encoder.encode([p.prompt for p in chosen if p.part == part]) @ defender.T))
        for part in (HARMLESS_NEAR, HARMLESS_FAR)
    }
    assert mean[HARMLESS_NEAR] > mean[HARMLESS_FAR] + 0.05
