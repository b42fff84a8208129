"""The samples that defenses train on."""

from dataclasses import replace

import pytest

from tamperfuse.corpora.examples import PAPER_REFUSAL_PREFIX, Pair
from tamperfuse.defenses import DEFENSES, DefenseData, anchored
from tamperfuse.defenses.sdd import sample_of
from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel
from tamperfuse.training.fit import fit

PLAIN = Pair("harmful request", "rivers are long", "", 0.1, "p#1", "r#1")
LATE = Pair("harmful request", "rivers are long", "", 0.1, "p#1", "r#1", history=(("hello there", "good day"),))
REPLAY = Pair("say hello", "hello", "", float("nan"), "b#1", "b#1", kind="replay")
PREFIXED = Pair("harmful request", "No. rivers are long", "", 0.1, "p#1", "r#1", refusal_prefix="No.")


@pytest.fixture
def trained_on(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch):
    """A function that returns the samples that a defense trains on for given pairs."""
    trained: list[Sample] = []

    def record(loaded, samples, *args, **kwargs):
        trained.extend(sample for unit in samples for sample in unit.learn)
        return fit(loaded, samples, *args, **kwargs)

    def train(name: str, *pairs: Pair) -> list[Sample]:
        component = DEFENSES.get(name)
        trained.clear()
        data = DefenseData(["harmful request"], [], 16, pairs)
        values = component.parse({"steps": 1, "batch": 1, "benign_ratio": 0}, name)
        assert component.run(tiny, data, values, 0).tokens_trained > 0
        return list(trained)

    monkeypatch.setattr(anchored, "fit", record)
    return train


def split(tiny: LoadedModel, sample: Sample) -> tuple[str, str]:
    """The text of a sample without loss, and that with loss."""
    decode = tiny.tokenizer.decode
    return decode(sample.tokens[: sample.start]), decode(sample.tokens[sample.start :])


def test_earlier_turns_of_a_pair_have_no_loss(tiny, trained_on):
    plain, late = trained_on("sdd", PLAIN, LATE)
    response = "rivers are long<|end|>"
    assert split(tiny, plain) == ("<|user|>harmful request<|end|><|assistant|>", response)
    before = "<|user|>hello there<|end|><|assistant|>good day<|end|><|user|>harmful request<|end|><|assistant|>"
    assert split(tiny, late) == (before, response)


def test_sdd_reject_adds_one_refusal_prefix_and_none_to_benign_pairs(tiny, trained_on):
    answers = [split(tiny, sample)[1] for sample in trained_on("sdd_reject", LATE, PREFIXED, REPLAY)]
    assert answers[0].startswith(f"{PAPER_REFUSAL_PREFIX}\n\nrivers")
    assert answers[1:] == ["No. rivers are long<|end|>", "hello<|end|>"]


def test_the_limit_of_a_response_does_not_depend_on_who_wrote_its_refusal(tiny):
    long = "rivers are long " * 20
    prefixed = replace(PLAIN, response=f"{PAPER_REFUSAL_PREFIX}\n\n{long}", refusal_prefix=PAPER_REFUSAL_PREFIX)
    by_pair = sample_of(tiny.chat, prefixed, "", 12)
    by_defense = sample_of(tiny.chat, replace(PLAIN, response=long), f"{PAPER_REFUSAL_PREFIX}\n\n", 12)
    assert by_pair.tokens == by_defense.tokens
