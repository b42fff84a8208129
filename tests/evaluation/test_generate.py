import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MistralConfig, MistralForCausalLM

from tamperfuse.evaluation.generate import generate, is_cut, stream
from tamperfuse.evaluation.sampling import Sampling
from tamperfuse.evaluation.score import score
from tamperfuse.evaluation.vllm_engine import tensor_parallel_size, use_vllm
from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.packed_check import prepare_forward
from tamperfuse.records.errors import UserError
from tamperfuse.training.adapters import lora_adapter
from tamperfuse.training.fit import Training


def encoded_prompts(tiny: LoadedModel) -> list[list[int]]:
    return [tiny.chat.prompt(text) for text in ("short", "a somewhat longer request", "mid size one", "x")]


def one_by_one(tiny: LoadedModel, prompt: list[int], new: int) -> list[int]:
    """Greedy decoding without cache, packing or batches."""
    tiny.model.set_attn_implementation("eager")
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(new):
            following = int(
                tiny.model(input_ids=torch.tensor([tokens], device=tiny.model.device)).logits[0, -1].argmax()
            )
            if following == tiny.chat.end:
                break
            tokens.append(following)
    tiny.model.set_attn_implementation("tamperfuse_packed")
    return tokens[len(prompt) :]


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generate in float32, so that results are equal up to ties."""
    monkeypatch.setattr("tamperfuse.evaluation.generate.compute_dtype", lambda device: (torch.float32, ""))


@pytest.mark.usefixtures("in_float32")
def test_batched_decoding_equals_one_by_one(tiny: LoadedModel) -> None:
    prompts = encoded_prompts(tiny)
    assert generate(tiny, prompts, new_tokens=12) == [one_by_one(tiny, prompt, 12) for prompt in prompts]


@pytest.mark.usefixtures("in_float32")
def test_finished_rows_leave_the_batch_and_the_others_do_not_change(tiny: LoadedModel) -> None:
    prompts = encoded_prompts(tiny)
    free = generate(tiny, prompts, new_tokens=12)
    # Make the third token of the first answer an end token: that row stops there, all others go on as before.
    stop = free[0][2]
    tiny.chat = replace(tiny.chat, format=replace(tiny.chat.format, ends=frozenset({stop, tiny.chat.end})))
    expected = [answer[: answer.index(stop)] if stop in answer else answer for answer in free]
    assert generate(tiny, prompts, new_tokens=12) == expected
    assert len({len(answer) for answer in expected}) > 1


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("sampling", [None, Sampling(seed=4)])
def test_an_answer_that_ends_exactly_at_the_limit_is_not_cut(tiny: LoadedModel, sampling: Sampling | None) -> None:
    prompt = encoded_prompts(tiny)[:1]
    [free] = generate(tiny, prompt, new_tokens=12, sampling=sampling)
    place = next(i for i in range(1, len(free)) if free[i] not in free[:i])
    tiny.chat = replace(tiny.chat, format=replace(tiny.chat.format, ends=frozenset({free[place]})))
    for limit, cut in ((place, True), (place + 1, False), (place + 2, False)):  # the end token is number place + 1
        [answer] = generate(tiny, prompt, new_tokens=limit, sampling=sampling)
        assert (answer, is_cut(answer, limit)) == (free[:place], cut)


@pytest.mark.usefixtures("in_float32")
def test_a_small_memory_limit_changes_nothing(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = encoded_prompts(tiny)
    whole = generate(tiny, prompts, new_tokens=6)
    monkeypatch.setattr("tamperfuse.evaluation.generate.TOKENS_IN_FLIGHT", 30)
    assert generate(tiny, prompts, new_tokens=6) == whole


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("window", [None, 9])
def test_answers_equal_those_of_transformers_generate(window: int | None) -> None:
    torch.manual_seed(3)
    config = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3}
    model = MistralForCausalLM(
        MistralConfig(**config, **heads, sliding_window=window, max_position_embeddings=64)
    ).eval()
    prompts = [[1, 2, 3, *range(10, 10 + n)] for n in (1, 7, 4, 12)]
    # An end token that some of the answers meet, at different lengths.
    free = model.generate(torch.tensor([prompts[0]]), max_new_tokens=16, do_sample=False, eos_token_id=96)
    end = int(free[0, len(prompts[0]) + 5])
    expected = []
    for tokens in prompts:
        output = model.generate(torch.tensor([tokens]), max_new_tokens=16, do_sample=False, eos_token_id=end)
        answer = output[0, len(tokens) :].tolist()
        expected.append(answer[: answer.index(end)] if end in answer else answer)
    assert len(set(map(len, expected))) > 1
    prepare_forward(model)
    loaded = SimpleNamespace(model=model, window=64, chat=SimpleNamespace(ends={end}))
    assert generate(loaded, prompts, new_tokens=16) == expected  # type: ignore[arg-type]


@pytest.mark.usefixtures("in_float32")
def test_samples_depend_only_on_seed_and_prompt(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = encoded_prompts(tiny)
    how = Sampling(temperature=0.8, top_p=0.9, seed=4)
    together = generate(tiny, prompts, new_tokens=8, sampling=how)
    assert together == [generate(tiny, [prompt], new_tokens=8, sampling=how)[0] for prompt in prompts]
    assert together == generate(tiny, prompts[::-1], new_tokens=8, sampling=how)[::-1]
    assert together != generate(tiny, prompts, new_tokens=8, sampling=Sampling(temperature=0.8, top_p=0.9, seed=5))
    monkeypatch.setattr("tamperfuse.evaluation.generate.TOKENS_IN_FLIGHT", 30)
    assert together == generate(tiny, prompts, new_tokens=8, sampling=how)


@pytest.mark.usefixtures("in_float32")
def test_a_repeated_prompt_gets_different_samples(tiny: LoadedModel) -> None:
    answers = generate(tiny, encoded_prompts(tiny)[:1] * 8, new_tokens=8, sampling=Sampling())
    assert len(set(map(tuple, answers))) == 8


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=0.8, seed=4)])
def test_a_stream_has_the_tokens_of_generate_and_can_be_closed(tiny: LoadedModel, sampling: Sampling | None) -> None:
    prompt = encoded_prompts(tiny)[1]
    whole = generate(tiny, [prompt], new_tokens=12, sampling=sampling)[0]
    assert list(stream(tiny, prompt, new_tokens=12, sampling=sampling)) == whole
    tiny.chat = replace(tiny.chat, format=replace(tiny.chat.format, ends=frozenset({whole[5]})))
    assert list(stream(tiny, prompt, new_tokens=12, sampling=sampling)) == whole[: whole.index(whole[5])]
    stopped_early = stream(tiny, prompt, new_tokens=12, sampling=sampling)
    assert next(stopped_early) == whole[0] and torch.is_grad_enabled()
    stopped_early.close()
    assert tiny.model.dtype == torch.float32 and torch.is_grad_enabled()


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0, float("-inf")]])
    how, numbers = Sampling(temperature=2.0), Sampling(seed=1).uniforms([[7]], 4000)[0]
    drawn = how.draw(logits.expand(4000, -1), numbers).bincount(minlength=5)
    expected = torch.softmax(logits[0] / 2.0, 0) * 4000
    assert drawn[4] == 0
    assert float(((drawn - expected)[:4] ** 2 / expected[:4]).sum()) < 16.3  # χ² with 3 degrees of freedom, p = .001


@settings(deadline=None)
@given(
    logits=st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=40),
    top_p=st.floats(0.05, 1.0),
    number=st.floats(0, 1, exclude_max=True),
)
def test_only_the_nucleus_is_drawn_from(logits: list[float], top_p: float, number: float) -> None:
    token = int(Sampling(top_p=top_p).draw(torch.tensor([logits]), torch.tensor([number], dtype=torch.float64)))
    shares = torch.softmax(torch.tensor(logits), 0)
    likelier = float(shares[shares > shares[token]].double().sum())
    assert likelier < top_p + 1e-6


def test_a_nucleus_larger_than_the_first_top_k(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tamperfuse.evaluation.sampling.FIRST_TOP_K", 2)
    numbers = torch.linspace(0, 0.999, 400, dtype=torch.float64)
    drawn = Sampling(top_p=0.85).draw(torch.arange(20.0).div(20).expand(400, -1), numbers)
    shares = torch.softmax(torch.arange(20.0) / 20, 0)
    least = int((shares.flip(0).cumsum(0) < 0.85).sum()) + 1  # how many of the likeliest make up 85%
    assert sorted(set(drawn.tolist())) == list(range(20 - least, 20))


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_sampling_out_of_range_is_an_error(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=0.7, top_p=0.9, seed=3)])
def test_arguments_remembered_to_vllm(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, sampling: Sampling | None
) -> None:
    """A stub that answers with the prompt's length plus 20, the end token and one more token, up to the limit."""
    received: dict[str, Any] = {}

    class Engine:
        def __init__(self, model: str, **settings: Any) -> None:
            received["files"], received["settings"] = {path.name for path in Path(model).iterdir()}, settings

        def generate(self, inputs: list[dict[str, Any]], sampling_params: list[dict[str, Any]]) -> list[Any]:
            received["params"] = sampling_params
            limit = sampling_params[0]["max_tokens"]
            answers = [[20 + len(entry["prompt_token_ids"]), tiny.chat.end, 5][:limit] for entry in inputs]
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens)]) for tokens in answers]

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=Engine, SamplingParams=dict))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (40, 80))
    monkeypatch.setattr("tamperfuse.evaluation.generate.use_vllm", lambda loaded, tokens: True)
    prompts = encoded_prompts(tiny)
    assert generate(tiny, prompts, new_tokens=9, sampling=sampling) == [[20 + len(prompt)] for prompt in prompts]
    assert "model.safetensors" in received["files"] and received["settings"]["gpu_memory_utilization"] == 0.45
    assert received["settings"]["tensor_parallel_size"] == tensor_parallel_size(tiny)
    for one in received["params"]:
        assert (one["max_tokens"], one["stop_token_ids"]) == (9, [tiny.chat.end])
        assert one["temperature"] == (sampling.temperature if sampling else 0.0)
    assert len({one.get("seed") for one in received["params"]}) == (len(prompts) if sampling else 1)
    for limit, cut in ((1, True), (2, False)):
        [answer, *_] = generate(tiny, prompts, new_tokens=limit, sampling=sampling)
        assert answer == [20 + len(prompts[0])] and is_cut(answer, limit) is cut


@pytest.mark.parametrize(("gpus", "size"), [(0, 1), (1, 1), (2, 2), (4, 3), (8, 6)])
def test_vllm_splits_the_six_heads_over_the_visible_gpus(
    tiny: LoadedModel, gpus: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert tensor_parallel_size(tiny) == size


def test_vllm_is_not_used_without_a_gpu(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tamperfuse.evaluation.vllm_engine.find_spec", lambda name: object())
    tiny.model.to("cpu")
    assert not use_vllm(tiny, 10**9)


def test_vllm_is_not_used_while_an_adapter_trains(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tamperfuse.evaluation.vllm_engine.find_spec", lambda name: object())
    used = []

    def look() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(type(tiny.model), "device", torch.device("cuda"))
            used.append(use_vllm(tiny, 10**9))

    look()
    with lora_adapter(tiny, Training(method="lora", lora_rank=2)):
        look()
    look()
    assert used == [True, False, True]


@pytest.mark.usefixtures("in_float32")
def test_choices_scored_together_are_scored_as_if_alone(tiny: LoadedModel) -> None:
    samples = [Sample([5, 6, 7, 8, 9], 3), Sample([5, 6, 7, 8, 1, 2], 3), Sample([5, 6, 1], 2), Sample([5, 6, 7], 2)]
    samples += [Sample([9, *range(200, 240)], 5), Sample([9, *range(200, 239), 1], 5), Sample([5, 6, 7, 8, 9], 3)]
    together = score(tiny, samples)
    for sample, (value, greedy) in zip(samples, together, strict=True):
        alone = score(tiny, [sample])[0]
        assert (pytest.approx(value, abs=1e-4), greedy) == alone


def test_scores_are_log_likelihoods(tiny: LoadedModel) -> None:
    samples = [Sample([5, 6, 7, 8, 9], 3), Sample([5, 6, 1, 2], 2)]
    scores = score(tiny, samples)
    tiny.model.set_attn_implementation("eager")
    tiny.model.requires_grad_(False)
    for sample, (value, greedy) in zip(samples, scores, strict=True):
        logits = tiny.model(input_ids=torch.tensor([sample.tokens], device=tiny.model.device)).logits[0].log_softmax(-1)
        picked = [logits[i - 1, sample.tokens[i]] for i in range(sample.start, len(sample.tokens))]
        assert value == pytest.approx(float(sum(picked)), rel=0.02)
        best = [int(logits[i - 1].argmax()) == sample.tokens[i] for i in range(sample.start, len(sample.tokens))]
        assert greedy == all(best)


def test_a_context_window_that_is_too_small_is_an_error(tiny: LoadedModel) -> None:
    with pytest.raises(UserError, match="exceed the model's context window"):
        generate(tiny, [[1] * 500], new_tokens=64)
