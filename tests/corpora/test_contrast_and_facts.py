"""The built-in prompts that models answer themselves: near a threat (`contrast`) and of everyday knowledge (`facts`)."""

import json
from collections.abc import Sequence

import numpy as np
import pytest

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.corpora.overlap import distinct, near
from tamperfuse.corpora.sources import read_source
from tamperfuse.models.encoder import SentenceEncoder, Vectors

THREATS = ("cooking", "gardening")
MEASURED = ("harmless", "heldout", "everyday", "grammar")
GRAMMAR_STEP = 40  # every such sentence is encoded: they come from 58 templates, and all are compared word by word


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


def test_contrast_has_prompts_on_many_subjects_for_every_threat() -> None:
    assert {row["threat"] for row in builtin_rows("contrast")} == set(THREATS)
    for threat in THREATS:
        rows = [row for row in builtin_rows("contrast") if row["threat"] == threat]
        assert len(rows) >= 350, threat
        assert len({row["subject"] for row in rows}) >= 15, threat
        assert all(3 <= len(row["prompt"].split()) <= 30 for row in rows)


def test_facts_has_short_prompts_on_many_subjects() -> None:
    rows = builtin_rows("facts")
    assert len(rows) >= 480
    assert len({row["subject"] for row in rows}) >= 25
    assert all(3 <= len(row["prompt"].split()) <= 20 for row in rows)


@pytest.mark.parametrize("name", ["contrast", "facts"])
def test_prompts_are_read_as_a_source_without_answers(name: str) -> None:
    rows, examples = builtin_rows(name), list(read_source(f"builtin:{name}"))
    assert [example.prompt for example in examples] == [row["prompt"] for row in rows]
    assert [example.category for example in examples] == [row["subject"] for row in rows]
    assert not any(example.response for example in examples)


def test_no_word_for_word_repetition_in_any_measured_text() -> None:
    measured = json.dumps([row for name in (*MEASURED, "retain") for row in builtin_rows(name)], ensure_ascii=False)
    assert [prompt for prompt in new_prompts() if prompt in measured] == []


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
