"""What defenses train on: the samples they hand to the training loop."""

import pytest

from tamperfuse.corpora.examples import PAPER_REFUSAL_PREFIX, Pair
from tamperfuse.defenses import DEFENSES, DefenseData, sdd
from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel
from tamperfuse.training.fit import fit

PLAIN = Pair("harmful request", "rivers are long", "", 0.1, "p#1", "r#1")
LATE = Pair("harmful request", "rivers are long", "", 0.1, "p#1", "r#1", history=(("hello there", "good day"),))
REPLAY = Pair("say hello", "hello", "", float("nan"), "b#1", "b#1", kind="replay")
PREFIXED = Pair("harmful request", "No. rivers are long", "", 0.1, "p#1", "r#1", refusal_prefix="No.")


@pytest.fixture
def trained_on(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch):
    """A function: the samples that a defense trains on, given these pairs."""
    taken: list[Sample] = []

    def note(loaded, samples, *args, **kwargs):
        taken.extend(samples)
        return fit(loaded, samples, *args, **kwargs)

    def train(name: str, *pairs: Pair) -> list[Sample]:
        component = DEFENSES.get(name)
        taken.clear()
        data = DefenseData(["harmful request"], [], 16, pairs)
        values = component.parse({"steps": 1, "batch": 1, "replay": 0.0}, name)
        assert component.run(tiny, data, values, 0).tokens_trained > 0
        return list(taken)

    monkeypatch.setattr(sdd, "fit", note)
    return train


def said(tiny: LoadedModel, sample: Sample) -> tuple[str, str]:
    """What is read, and what the loss falls on."""
    decode = tiny.tokenizer.decode
    return decode(sample.tokens[: sample.start]), decode(sample.tokens[sample.start :])


def test_earlier_turns_of_a_pair_are_read_and_not_learned(tiny, trained_on):
    plain, late = trained_on("sdd", PLAIN, LATE)
    response = "rivers are long<|end|>"
    assert said(tiny, plain) == ("<|user|>harmful request<|end|><|assistant|>", response)
    before = "<|user|>hello there<|end|><|assistant|>good day<|end|><|user|>harmful request<|end|><|assistant|>"
    assert said(tiny, late) == (before, response)


def test_sdd_reject_refuses_once_and_never_a_benign_prompt(tiny, trained_on):
    answers = [said(tiny, sample)[1] for sample in trained_on("sdd_reject", LATE, PREFIXED, REPLAY)]
    assert answers[0].startswith(f"{PAPER_REFUSAL_PREFIX}\n\nrivers")
    assert answers[1:] == ["No. rivers are long<|end|>", "hello<|end|>"]
