import pytest
import torch

from tamperfuse.evaluation.generate import generate
from tamperfuse.evaluation.score import score
from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError


def prompts(tiny: LoadedModel) -> list[list[int]]:
    return [tiny.chat.prompt(text) for text in ("short", "a somewhat longer request", "mid size one", "x")]


def one_by_one(tiny: LoadedModel, prompt: list[int], new: int) -> list[int]:
    """Greedy decoding without cache, packing or batches."""
    tiny.model.set_attn_implementation("eager")
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(new):
            following = int(tiny.model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax())
            if following == tiny.chat.end:
                break
            tokens.append(following)
    tiny.model.set_attn_implementation("tamperfuse_packed")
    return tokens[len(prompt) :]


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding off, so that equality is exact."""
    monkeypatch.setattr("tamperfuse.evaluation.generate.compute_dtype", lambda device: (torch.float32, ""))


@pytest.mark.usefixtures("in_float32")
def test_batched_decoding_equals_one_by_one(tiny: LoadedModel) -> None:
    asked = prompts(tiny)
    assert generate(tiny, asked, new_tokens=12) == [one_by_one(tiny, prompt, 12) for prompt in asked]


@pytest.mark.usefixtures("in_float32")
def test_finished_rows_leave_and_the_rest_is_unharmed(tiny: LoadedModel) -> None:
    asked = prompts(tiny)
    free = generate(tiny, asked, new_tokens=12)
    # Make the third token of the first answer an end token: that row stops there, all others go on as before.
    stop = free[0][2]
    object.__setattr__(tiny.chat, "end", stop)
    expected = [answer[: answer.index(stop)] if stop in answer else answer for answer in free]
    assert generate(tiny, asked, new_tokens=12) == expected
    assert len({len(answer) for answer in expected}) > 1


@pytest.mark.usefixtures("in_float32")
def test_a_small_memory_limit_changes_nothing(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prompts(tiny)
    whole = generate(tiny, asked, new_tokens=6)
    monkeypatch.setattr("tamperfuse.evaluation.generate.TOKENS_IN_FLIGHT", 30)
    assert generate(tiny, asked, new_tokens=6) == whole


def test_scores_are_log_likelihoods(tiny: LoadedModel) -> None:
    samples = [Sample([5, 6, 7, 8, 9], 3), Sample([5, 6, 1, 2], 2)]
    found = score(tiny, samples)
    tiny.model.set_attn_implementation("eager")
    tiny.model.requires_grad_(False)
    for sample, (value, greedy) in zip(samples, found, strict=True):
        logits = tiny.model(input_ids=torch.tensor([sample.tokens])).logits[0].log_softmax(-1)
        picked = [logits[i - 1, sample.tokens[i]] for i in range(sample.start, len(sample.tokens))]
        assert value == pytest.approx(float(sum(picked)), rel=0.02)
        best = [int(logits[i - 1].argmax()) == sample.tokens[i] for i in range(sample.start, len(sample.tokens))]
        assert greedy == all(best)


def test_a_window_that_is_too_small_is_said(tiny: LoadedModel) -> None:
    with pytest.raises(UserError, match="exceed the model's window"):
        generate(tiny, [[1] * 500], new_tokens=64)
