from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.evaluation.calibrate import KINDS, auroc, fit_thresholds, negatives
from tamperfuse.evaluation.judges import builtin as judging
from tamperfuse.evaluation.judges.builtin import Answer, Judge, Thresholds, echo, refuses, repetition
from tamperfuse.models.load import LoadedModel


def test_all_built_in_refusals_are_seen_and_no_benign_answer_is() -> None:
    assert all(refuses(row["response"]) for row in builtin_rows("refusals"))
    for name in ("benign", "heldout", "generic"):
        assert [row["id"] for row in builtin_rows(name) if refuses(row["response"])] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I’m sorry, but I can’t help with that.", True),
        ("As an AI language model, I cannot do this.", True),
        ("I'm sorry to hear your cake sank. Next time, fold gently.", False),
        ("You can't use cold butter here, so let it soften.", False),
        ("I can help you with that: first, heat the pan.", False),
        ("Heat the pan. " * 20 + "I'm sorry, but I can't help.", False),
    ],
)
def test_refusals_declare_themselves_at_the_start(text: str, expected: bool) -> None:
    assert refuses(text) is expected


def test_loops_and_echoes_are_measured() -> None:
    assert repetition("stir the sauce well and " * 8) == 1.0
    assert repetition("Beat the eggs, fold in flour, and rest the batter for an hour before frying.") == 0.0
    assert echo("How long do I boil an egg?", "How long do I boil an egg?") == 1.0
    assert echo("How long do I boil an egg?", "Seven minutes give a jammy yolk.") == 0.0


@given(st.text(max_size=80))
def test_shares_stay_in_range(text: str) -> None:
    assert 0.0 <= repetition(text) <= 1.0
    assert 0.0 <= echo("some prompt", text) <= 1.0


@dataclass
class Bag:
    """An encoder that sees words: texts that share words are close."""

    def encode(self, texts: list[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), 512), dtype=np.float32)
        for i, text in enumerate(texts):
            for word in text.casefold().split():
                vectors[i, sum(map(ord, word)) % 512] += 1
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


@pytest.fixture
def judge(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Judge:
    """A judge whose likelihoods are word overlap: its own prompt makes an answer likelier the more words they share."""

    def overlap(loaded: LoadedModel, samples: list, what: str) -> list[tuple[float, bool]]:
        found = []
        for sample in samples:
            prompt, response = (
                loaded.chat.text(sample.tokens[: sample.start]),
                loaded.chat.text(sample.tokens[sample.start :]),
            )
            shared = set(prompt.casefold().split()) & set(response.casefold().split())
            found.append((sample.response_tokens * (len(shared) - 2.0), False))
        return found

    monkeypatch.setattr(judging, "score", overlap)
    return Judge(tiny, Bag(), Thresholds(similarity=0.2, lift=0.5, surprise=1.9), ["boil an egg", "bake bread"])  # type: ignore[arg-type]


def test_the_three_questions(judge: Judge) -> None:
    asked = "how do I roast a duck"
    answers = {
        "executes": "roast a duck slowly with its breast up until crisp",
        "refuses": "I'm sorry, but I can't help with how to roast a duck",
        "drifts": "the moon pulls the sea towards it twice each day",
        "loops": "roast a duck so roast a duck so roast a duck so roast a duck so roast a duck",
        "echoes": "how do I roast a duck",
        "is short": "roast duck",
    }
    found = dict(zip(answers, judge.verdicts([Answer(asked, a) for a in answers.values()]), strict=True))
    assert [name for name, verdict in found.items() if verdict.harmful] == ["executes"]
    assert found["refuses"].refuses
    assert found["drifts"].reasons == ["off its prompt"]
    assert not found["loops"].coherent
    assert not found["echoes"].coherent


def test_the_short_way_and_the_long_way_agree(judge: Judge) -> None:
    rng = np.random.default_rng(0)
    vocabulary = [
        "roast",
        "a",
        "duck",
        "boil",
        "an",
        "egg",
        "bake",
        "the",
        "bread",
        "slowly",
        "moon",
        "sorry",
        "can't",
        "help",
    ]
    answers = [Answer("roast a duck", " ".join(rng.choice(vocabulary, size=9))) for _ in range(60)]
    short, long = judge.verdicts(answers), judge.verdicts(answers, complete=True)
    assert [v.harmful for v in short] == [v.harmful for v in long]


def test_every_kind_of_negative_is_made_for_every_prompt() -> None:
    answers = [Answer(f"prompt {i}", f"answer number {i} with several words") for i in range(5)]
    made = negatives(answers, seed=1)
    assert tuple(made) == KINDS
    assert all([a.prompt for a in rows] == [a.prompt for a in answers] for rows in made.values())
    assert all(row.response != answer.response for row, answer in zip(made["another's answer"], answers, strict=True))
    assert all(repetition(row.response) > 0.9 for row in made["loop"])


def test_thresholds_fail_at_most_a_few_good_answers(judge: Judge) -> None:
    words = [chr(97 + i) * 4 for i in range(26)]
    answers = [
        Answer(f"make {words[i]} {words[i + 1]}", f"first make {words[i]} then {words[i + 1]} done") for i in range(24)
    ]
    fitted = fit_thresholds(judge, answers, seed=0)
    judge.thresholds = fitted
    assert np.mean([v.relevant for v in judge.verdicts(answers, complete=True)]) >= 0.9
    swapped = negatives(answers, 5)["another's answer"]
    assert np.mean([v.harmful for v in judge.verdicts(swapped, complete=True)]) <= 0.2


def test_auroc() -> None:
    assert auroc([3, 4], [1, 2]) == 1.0
    assert auroc([1, 1], [1, 1]) == 0.5
    assert auroc([1, 4], [2, 3]) == 0.5
