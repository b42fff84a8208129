"""Prompts and answers that a model writes by itself."""

import pytest

from stand_ins import TEMPLATE, make_tokenizer
from tamperfuse.evaluation import self_samples
from tamperfuse.evaluation.self_samples import opening_of_user_turn, write_answers, write_neighbours, write_prompts
from tamperfuse.models.chat import Chat
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError


def test_the_opening_is_what_the_template_writes_before_the_user(tiny: LoadedModel) -> None:
    opening, stop = opening_of_user_turn(tiny.chat)
    prompt = tiny.chat.prompt("hello")
    assert opening == prompt[: len(opening)]
    assert tiny.tokenizer.decode(opening) == "<|user|>"
    assert stop.startswith("<|end|>")


def test_a_template_that_changes_the_user_has_no_opening() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    chat = Chat.of(tokenizer)
    tokenizer.chat_template = TEMPLATE.replace("m['content']", "m['content'] | upper")
    with pytest.raises(UserError, match="name a source"):
        opening_of_user_turn(chat)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch):
    """A function that lets the model write certain texts instead of sampling."""

    def use(*batches: list[str]) -> list[int]:
        sizes: list[int] = []
        texts = iter(batches)

        def generate(loaded, prompts, *, new_tokens, sampling, label):
            sizes.append(len(prompts))
            batch = [loaded.tokenizer.encode(text, add_special_tokens=False) for text in next(texts)]
            return [tokens[:new_tokens] for tokens in batch][: len(prompts)]

        monkeypatch.setattr(self_samples, "generate", generate)
        return sizes

    return use


def test_prompts_are_different_complete_and_not_too_short(tiny: LoadedModel, written) -> None:
    sizes = written(
        ["How does a kettle work?", "How  does a kettle work?", "word " * 60], ["hi", "Why is the sky blue?"]
    )
    prompts, generated = write_prompts(tiny, 2, seed=0)
    assert prompts == ["How does a kettle work?", "Why is the sky blue?"]
    assert sizes == [3, 2], "a fifth more than are missing, and one"
    assert generated > self_samples.PROMPT_TOKENS


def test_a_prompt_ends_where_the_template_goes_on(tiny: LoadedModel) -> None:
    tokens = tiny.tokenizer.encode("Why is the sky blue? [/INST] Because", add_special_tokens=False)
    assert self_samples._prompt(tiny.chat, tokens, "[/INST]") == "Why is the sky blue?"
    long = tiny.tokenizer.encode("Why is the sky blue? [/INST] Because" + " it is" * 40, add_special_tokens=False)
    assert self_samples._prompt(tiny.chat, long, "[/INST]") == "Why is the sky blue?", "the prompt itself is complete"


def test_a_prompt_ends_at_a_control_token_that_is_no_end_token(tiny: LoadedModel) -> None:
    tokens = tiny.tokenizer.encode("Why is the sky blue?<|assistant|>Because", add_special_tokens=False)
    assert "<|assistant|>" in tiny.tokenizer.all_special_tokens
    assert self_samples._prompt(tiny.chat, tokens, "<|assistant|>") == "Why is the sky blue?"
    tokens = tiny.tokenizer.encode("Why is the sky blue?<|assistant|><think>Because", add_special_tokens=False)
    assert self_samples._prompt(tiny.chat, tokens, "<|assistant|><think>") == "Why is the sky blue?"


def test_drawing_ends_when_the_model_repeats_itself(tiny: LoadedModel, written) -> None:
    sizes = written(*[["How does a kettle work?"] * 100] * 20)
    prompts, _ = write_prompts(tiny, 10, seed=0)
    assert prompts == ["How does a kettle work?"]
    assert sum(sizes) == self_samples.MOST_DRAWS * 10


def test_a_model_that_writes_no_prompt_is_refused(tiny: LoadedModel, written) -> None:
    written(*[["no"] * 100] * 20)
    with pytest.raises(UserError, match="wrote no usable prompt"):
        write_prompts(tiny, 4, seed=0)


def test_neighbours_are_asked_for_with_the_prompt(tiny: LoadedModel, written) -> None:
    written(['"What grows in a desert?"', "What grows in a desert?"])
    prompts, generated = write_neighbours(tiny, ["How do I cook rice?", "How do I fry an egg?"], seed=0)
    assert prompts == ["What grows in a desert?"]
    assert generated > 0


def test_samples_depend_on_the_seed_alone(tiny: LoadedModel) -> None:
    first = write_answers(tiny, ["hello there", "good day"], 6, seed=0)
    assert first == write_answers(tiny, ["hello there", "good day"], 6, seed=0)
    assert first[0] != write_answers(tiny, ["hello there", "good day"], 6, seed=1)[0]
