"""The paper's rule, on made-up texts."""

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairing_stand_ins import WordHashEncoder, benign_responses, harmful_prompts
from tamperfuse.corpora.examples import Example
from tamperfuse.corpora.overlap import plain
from tamperfuse.corpora.sources import read_source
from tamperfuse.corpora.texts import normalise
from tamperfuse.corpora.threats import load_threat
from tamperfuse.pairing import FilterSettings, combined, make_pairs, read_pairs, sample_responses, write_pairs
from tamperfuse.pairing.diverse_sampling import DiverseSampler
from tamperfuse.pairing.filters import ResponseFilters
from tamperfuse.pairing.matching import match
from tamperfuse.pairing.options import PairOptions
from tamperfuse.pairing.pairs import draw_pairs
from tamperfuse.pairing.pipeline import pair_corpora
from tamperfuse.pairing.response_pool import ListPool
from tamperfuse.pairing.sampling import positions_of_draw, strides, text_key
from tamperfuse.records.errors import UserError

texts = st.text(alphabet="abcd é🙂ש", min_size=1, max_size=12).filter(str.strip)
corpora = st.lists(texts, min_size=1, max_size=25)


@settings(max_examples=60, deadline=None)
@given(texts=corpora, pool=corpora, threshold=st.floats(-0.5, 1), seed=st.integers(0, 3))
def test_no_kept_pair_is_above_the_threshold_nor_equal(texts, pool, threshold, seed):
    encoder = WordHashEncoder()
    ask, give = [Example(t, origin=str(n)) for n, t in enumerate(texts)], [Example("", t) for t in pool]
    try:
        pair_set = make_pairs(ask, give, encoder, threshold=threshold, seed=seed, filters=None)
    except UserError:
        return
    assert all(pair.similarity <= threshold and pair.prompt != pair.response for pair in pair_set.pairs)
    assert len(pair_set.pairs) + len(pair_set.dropped) == len({plain(normalise(text)) for text in texts})


@settings(max_examples=60, deadline=None)
@given(texts=corpora, pool=corpora, threshold=st.floats(-0.5, 1))
def test_diverse_match_keeps_the_threshold_and_every_response_to_its_share(texts, pool, threshold):
    deck = ListPool([Example("", text) for text in sorted(set(pool))])
    prompts = [Example(text) for text in sorted(set(texts))]
    dealer = DiverseSampler(deck, len(prompts))
    matched = match(prompts, dealer, deck, WordHashEncoder(), threshold=threshold, max_draws=20)
    pairs = [(ask.prompt, got.response) for ask, got in zip(prompts, matched.responses, strict=True) if got]
    assert all(ask != got for ask, got in pairs)
    assert not (matched.similarity > threshold).any()
    assert max(Counter(got for _, got in pairs).values(), default=0) <= -(-len(prompts) // len(deck))


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 30), pool=st.integers(1, 60), threshold=st.floats(-0.2, 1), seed=st.integers(0, 3))
def test_only_what_is_drawn_is_encoded_and_that_once(count, pool, threshold, seed):
    encoder, texts = WordHashEncoder(), {example.response for example in benign_responses(pool)}
    try:
        pair_set = make_pairs(
            harmful_prompts(count), benign_responses(pool), encoder, threshold=threshold, seed=seed, filters=None
        )
    except UserError:
        return
    encoded = [text for text in encoder.encoded if text in texts]
    assert len(encoded) == len(set(encoded)) == pair_set.encoded_responses <= count + pair_set.redraws
    assert {pair.response for pair in pair_set.pairs} <= set(encoded)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 5), shuffle=st.integers(0, 100))
def test_same_seed_same_pairs_whatever_the_order(seed, shuffle):
    ask, give = harmful_prompts(40), [*benign_responses(25), *benign_responses(5)]
    first = make_pairs(ask, give, WordHashEncoder(), seed=seed, filters=None)
    random.Random(shuffle).shuffle(ask)
    random.Random(shuffle).shuffle(give)
    assert make_pairs(ask, give, WordHashEncoder(), seed=seed, filters=None).pairs == first.pairs


def test_another_seed_gives_other_pairs():
    one, other = (
        make_pairs(harmful_prompts(40), benign_responses(50), WordHashEncoder(), seed=seed, filters=None).pairs
        for seed in (0, 1)
    )
    assert {(p.prompt, p.response) for p in one} != {(p.prompt, p.response) for p in other}


def test_responses_that_are_not_drawn_cost_no_encoding():
    encoder = WordHashEncoder()
    pair_set = make_pairs(harmful_prompts(10), benign_responses(500), encoder, threshold=1, filters=None)
    assert pair_set.redraws == 0
    assert pair_set.encoded_responses == 10
    assert len(encoder.encoded) == len(set(encoder.encoded)) == 20


def test_first_draws_are_all_different_while_the_deck_lasts():
    pair_set = make_pairs(harmful_prompts(30), benign_responses(30), WordHashEncoder(), threshold=1, filters=None)
    assert len({pair.response for pair in pair_set.pairs}) == 30


@given(key=st.integers(0, 2**64 - 1), deck=st.integers(1, 200))
def test_a_prompt_meets_every_card_once(key, deck):
    import numpy as np

    step = strides(np.array([key], dtype=np.uint64), deck)
    met = {int(positions_of_draw(np.array([3]), step, draw, deck)[0]) for draw in range(deck)}
    assert met == set(range(deck))


def test_a_prompt_without_an_irrelevant_response_is_dropped_and_counted():
    pool = [Example("", "alpha beta gamma"), Example("", "delta epsilon")]
    ask = [Example("alpha beta gamma delta epsilon"), Example("something else entirely")]
    pair_set = make_pairs(ask, pool, WordHashEncoder(400), threshold=0.4, filters=None)
    assert pair_set.dropped == ["alpha beta gamma delta epsilon"]
    assert [pair.prompt for pair in pair_set.pairs] == ["something else entirely"]


def test_a_pool_without_an_irrelevant_response_is_a_sentence():
    with pytest.raises(UserError, match=r"None of the 1 prompts found a response.*--threshold"):
        make_pairs(
            [Example("alpha beta")],
            [Example("", "alpha beta gamma")],
            WordHashEncoder(400),
            threshold=0.1,
            filters=None,
        )


@pytest.mark.parametrize(
    ("options", "word"),
    [({"threshold": -1}, "threshold"), ({"threshold": 1.1}, "threshold"), ({"max_draws": 0}, "draws")],
)
def test_impossible_numbers(options, word):
    with pytest.raises(UserError, match=word):
        make_pairs(harmful_prompts(1), benign_responses(1), WordHashEncoder(), **options)


def test_empty_corpora_are_sentences():
    with pytest.raises(UserError, match="--prompt-field"):
        make_pairs([Example("", "x")], benign_responses(1), WordHashEncoder())
    with pytest.raises(UserError, match="--response-field"):
        make_pairs(harmful_prompts(1), [Example("x")], WordHashEncoder())


def test_refusal_prefix_is_in_the_response_and_not_in_the_similarity():
    without = make_pairs(harmful_prompts(5), benign_responses(9), WordHashEncoder(), filters=None)
    reject = make_pairs(
        harmful_prompts(5), benign_responses(9), WordHashEncoder(), refusal_prefix="I will not.", filters=None
    )
    assert [p.similarity for p in without.pairs] == [p.similarity for p in reject.pairs]
    assert all(p.response == f"I will not.\n\n{q.response}" for p, q in zip(reject.pairs, without.pairs, strict=True))
    assert {p.refusal_prefix for p in reject.pairs} == {"I will not."}


def test_pairs_survive_the_disk(tmp_path):
    pair_set = make_pairs(harmful_prompts(9), benign_responses(9), WordHashEncoder(), filters=None)
    write_pairs(tmp_path / "pairs", pair_set)
    assert read_pairs(tmp_path / "pairs") == pair_set.pairs
    write_pairs(tmp_path / "pairs", pair_set)  # replaces
    with pytest.raises(UserError, match="tamperfuse pair"):
        read_pairs(tmp_path / "nowhere")


def test_make_pairs_and_the_command_make_the_same_pairs(tmp_path):
    unfit = [Example("", "I'm sorry, but I can't help with that request, whatever it is."), Example("", "No.")]
    pool = [*read_source("builtin:benign"), *unfit]
    file = tmp_path / "responses.jsonl"
    file.write_text("".join(json.dumps({"prompt": "", "response": row.response}) + "\n" for row in pool))
    options = PairOptions(harmful=("builtin:cooking",), responses=(str(file),), out=tmp_path / "pairs", seed=3)
    pair_corpora(options, WordHashEncoder())
    written = read_pairs(tmp_path / "pairs")
    pair_set = make_pairs(load_threat("builtin:cooking").examples("defender"), pool, WordHashEncoder(), seed=3)
    assert [(p.prompt, p.response, p.similarity) for p in pair_set.pairs] == [
        (p.prompt, p.response, p.similarity) for p in written
    ]
    assert pair_set.refused["too short"] == 1 and pair_set.refused["refusal or apology"] >= 1
    unfiltered = make_pairs(
        load_threat("builtin:cooking").examples("defender"), pool, WordHashEncoder(), seed=3, filters=None
    )
    assert not unfiltered.refused and unfiltered.pairs != pair_set.pairs


def test_filters_that_refuse_everything_are_named():
    pool = [Example("", f"No {n}.") for n in range(9)]
    with pytest.raises(UserError, match=r"refused each of the .* 'too short'"):
        make_pairs(harmful_prompts(5), pool, WordHashEncoder())


def test_keys_are_stable():
    # Fixed for ever: another key, other pairs for the same seed.
    assert text_key("harmful request 1", "prompt", 0) == 4365007582557336506
    assert text_key("a", "prompt", 0) != text_key("a", "response", 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"response": None}, "row 2: it has no response"),
        ({"prompt": " "}, "row 2: it has no prompt"),
        ({"kind": "other"}, "neither 'sdd' nor 'replay'"),
        ({"history": [{"user": "u", "assistant": None}]}, "a field of it is not text"),
        ({"category": None}, "a field of it is not text"),
        ({"more": "x"}, "row 1"),
    ],
)
def test_damaged_pairs_are_sentences(tmp_path, change, words):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pair_set = make_pairs(harmful_prompts(4), benign_responses(30), WordHashEncoder(), threshold=0.9)
    write_pairs(tmp_path / "pairs", pair_set)
    table = tmp_path / "pairs" / "pairs.parquet"
    rows = pq.read_table(table).to_pylist()
    rows[1] |= change
    rows[0] = {**dict.fromkeys(rows[1]), **rows[0]}
    pq.write_table(pa.Table.from_pylist(rows), table)
    with pytest.raises(UserError, match=f"does not hold pairs .*{words}"):
        read_pairs(tmp_path / "pairs")


def test_places_that_hold_no_pairs_are_sentences(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for path, words in (
        (tmp_path / "none", "make one with"),
        (tmp_path / "loop", "loop of links"),
        (tmp_path, "make one"),
    ):
        with pytest.raises(UserError, match=words):
            read_pairs(path)


def test_several_draws_give_every_prompt_several_responses() -> None:
    ask, give = harmful_prompts(20), benign_responses(60)
    draws = [make_pairs(ask, give, WordHashEncoder(), threshold=1, seed=seed, filters=None) for seed in range(4)]
    combination = combined([replace(draw, dropped=[ask[0].prompt, "never paired"]) for draw in draws])
    pairs = combination.pairs
    assert combination.dropped == ["never paired"], "the other one has pairs"
    assert len({(pair.prompt, pair.response) for pair in pairs}) == len(pairs) > 60
    responses = Counter(pair.prompt for pair in pairs)
    assert set(responses) == {example.prompt for example in ask} and min(responses.values()) >= 2


def test_a_sample_of_responses_passes_the_filters_and_depends_on_the_seed_alone() -> None:
    good = [example for example in read_source("builtin:benign") if example.response]
    poor = [Example("", text) for text in ("No.", "???? ????", "aaa " * 400)]
    sample = sample_responses([*good, *poor], 12, 0)
    assert len({example.response for example in sample}) == 12
    assert not {example.response for example in sample} & {example.response.strip() for example in poor}
    assert sample == sample_responses([*poor, *reversed(good)], 12, 0)
    assert sample != sample_responses([*good, *poor], 12, 1)
    assert len(sample_responses(good[:5], 12, 0, FilterSettings(language="any"))) == 5
    assert sample_responses(poor, 12, 0) == []


@pytest.mark.parametrize(("prompts", "responses"), [(1, 2), (3, 4), (9, 10)])
def test_diverse_match_drops_no_prompt_that_an_unused_response_would_fit(prompts: int, responses: int) -> None:
    """Each prompt is too similar to one response only, so all can be paired."""
    for seed in range(20):
        requests = [Example(f"word{i}", "") for i in range(prompts)]
        pool = [Example("", f"word{i}") for i in range(responses)]
        pair_set = make_pairs(requests, pool, WordHashEncoder(400), threshold=0.5, seed=seed, filters=None)
        assert len(pair_set.pairs) == prompts
        blocks = draw_pairs(
            requests,
            ListPool(pool),
            WordHashEncoder(400),
            threshold=0.5,
            seed=seed,
            filters=None,
            max_draws=50,
            strategy="diverse",
        )
        assert sum(len(block.pairs) for block in blocks) == prompts


def test_a_prompt_of_several_categories_gets_one() -> None:
    requests = [Example(f"request {i}", "", "violence | theft") for i in range(4)]
    pair_set = make_pairs(
        requests, [Example("", f"a poem {i}") for i in range(4)], WordHashEncoder(400), threshold=1.0, filters=None
    )
    assert sorted(pair.category for pair in pair_set.pairs) == ["theft", "theft", "violence", "violence"]


def test_diverse_match_shares_the_prompts_among_the_responses_that_pass() -> None:
    """Half of the responses are too short: the others are used twice, and no prompt is dropped."""
    pool = [Example("", f"No. {n}") if n % 2 else response for n, response in enumerate(benign_responses(40))]
    settings = FilterSettings(language="any", near_duplicates=1)
    blocks = draw_pairs(
        harmful_prompts(40),
        ListPool(pool),
        WordHashEncoder(),
        threshold=1,
        seed=0,
        filters=ResponseFilters(settings),
        max_draws=50,
        strategy="diverse",
    )
    uses = Counter(pair.response for block in blocks for pair in block.pairs)
    assert len(uses) == 20 and set(uses.values()) == {2}
