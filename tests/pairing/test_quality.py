"""Filters, balance, decontamination, weights, diverse match, variants, the cache."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairing_stand_ins import WordHashEncoder, benign_responses, harmful_prompts, prose
from tamperfuse.corpora.examples import PAPER_REFUSAL_PREFIX, Example
from tamperfuse.corpora.texts import normalise
from tamperfuse.pairing.cache import BATCH, VectorCache, batch_ranges, in_batches
from tamperfuse.pairing.diverse_sampling import DiverseSampler, form, stratified_order
from tamperfuse.pairing.filters import RULES, FilterSettings, ResponseFilters
from tamperfuse.pairing.matching import match
from tamperfuse.pairing.options import split_weights
from tamperfuse.pairing.prompts import EvaluationPrompts, PromptReport, balance, clean_prompts, equal_shares
from tamperfuse.pairing.response_pool import DiskPool, ListPool, Source
from tamperfuse.pairing.variants import Exchanges, PrefixChoice, replay_pairs
from tamperfuse.records.errors import UserError

REFUSED = {
    "too short": "Yes, of course.",
    "too long": "word " * 4000,
    "refusal or apology": "I'm sorry, but I can't help with that request, whatever the reason for it may be.",
    "boilerplate": "Rivers are long. As an AI language model, I have never seen one of them myself, though.",
    "markup debris": "<div>Rivers are long and slow, and they carry sand to the sea</div> all through the year.",
    "personal data": "Write to Jane at jane.doe@example.com if you want to know more about the slow rivers.",
    "toxic words": "Rivers are long and slow, and they carry a lot of shit down to the sea all year round.",
    "truncated": "Rivers are long and slow, and all through the year they carry sand and gravel to the",
    "repetition": "the river runs and runs. " * 12,
}


@pytest.mark.parametrize("name", RULES)
def test_each_filter_takes_what_it_is_for_and_counts_it(name):
    filters = ResponseFilters(FilterSettings(language="any"))
    assert filters([Example("", REFUSED[name]), Example("", prose(1))]) == [False, True]
    assert filters.refused == {name: 1}
    assert filters.examples[name][0] == REFUSED[name][:200]


PROSE = "Rivers are long and slow, and they carry sand and gravel to the sea; {} is what the sign there says."


@pytest.mark.parametrize(
    "said",
    [
        "555-123-4567",
        "(555) 123-4567",
        "+1 555 123 4567",
        "+44 20 7946 0958",
        "+49 (0)30 1234567",
        "jane.doe@example.com",
        "123-45-6789",
        "4111 1111 1111 1111",
        "4111111111111111",
        "DE89 3704 0044 0532 0130 00",
        "192.168.17.4",
    ],
)
def test_personal_data_is_seen(said):
    assert RULES["personal data"](PROSE.format(said))


@pytest.mark.parametrize(
    "said",
    ["no 12 of 1,000", "1990-2024", "+1000 points", "version 1.2.3", "999.999.999.999", "vm10 with some more text"],
)
def test_other_numbers_are_let_be(said):
    assert not RULES["personal data"](PROSE.format(said))


@pytest.mark.parametrize(
    "said", ["I can’t help you with that.", "Sorry, but no.", "I’m unable to do so.", "Unfortunately, I must decline."]
)
def test_refusals_are_seen_whatever_their_apostrophes(said):
    assert RULES["refusal or apology"](f"{said} Rivers are long and slow.")
    assert not RULES["refusal or apology"]("Unfortunately the old bridge was washed away, and nobody was sorry for it.")


def test_language_and_near_duplicates():
    german = "Flüsse sind lang und langsam, und sie tragen das ganze Jahr über Sand und Kies in das weite Meer hinaus."
    near = prose(1).replace("calm", "quiet")
    filters = ResponseFilters(FilterSettings(near_duplicates=0.6))
    assert filters([Example("", text) for text in (prose(1), german, near, prose(2))]) == [True, False, False, True]
    assert filters.refused == {"other language": 1, "near duplicate": 1}
    assert filters([Example("", prose(1))]) == [True]  # a text is no near duplicate of itself
    assert filters.judged == 4


def test_a_response_of_low_quality_refuses_no_near_duplicate():
    first, second = prose(1), prose(1).replace("calm", "quiet")
    settings = FilterSettings(near_duplicates=0.6)
    filters = ResponseFilters(settings, quality=lambda texts: [text != first for text in texts])
    assert filters([Example("", first), Example("", second)]) == [False, True]
    assert filters.refused == {"low quality": 1} and filters.names[-2:] == ["low quality", "near duplicate"]


def test_built_in_responses_pass_the_filters():
    from tamperfuse.corpora.sources import read_source

    cards = list(read_source("builtin:benign"))
    filters = ResponseFilters()
    assert sum(filters(cards)) >= 0.98 * len(cards), filters.examples


def test_prompts_are_normalised_and_kept_once():
    report = PromptReport()
    rows = ["Harmful request 1", "harmful  request 1!", "a\x00b\r\nc", "", "x" * 9000, "שלום 🙂"]
    remaining = clean_prompts([Example(text, origin=f"f#{n}") for n, text in enumerate(rows)], report)
    assert [example.prompt for example in remaining] == ["Harmful request 1", "ab\nc", "שלום 🙂"]
    assert (report.read, report.empty, report.too_long, report.duplicates) == (5, 1, 1, 1)


def test_decontamination_finds_exact_13_grams_and_near_duplicates():
    long = "one two three four five six seven eight nine ten eleven twelve thirteen"
    rows = ["Harmful request one", f"please {long} now", "zeta eta theta iota kappa", "something else"]
    evaluation = ["harmful request ONE!", f"{long} fourteen fifteen", "eta zeta theta iota kappa"]
    report = PromptReport()
    held_out = EvaluationPrompts(evaluation, WordHashEncoder())
    left = held_out.exclude_from([Example(row) for row in rows], report)
    assert [example.prompt for example in left] == ["something else"]
    assert [how for *_, how in report.contaminated] == ["exact", "13-gram", "cosine 1.00"]
    assert EvaluationPrompts([], WordHashEncoder()).exclude_from(left, report) == left


@given(st.permutations(range(5)))
def test_rows_of_one_prompt_are_one_prompt_with_all_their_labels_whatever_their_order(order):
    rows = [("Same one", "a"), ("same  ONE!", "b"), ("Same one", "a | c"), ("other", ""), ("Same one", "")]
    examples = [Example(prompt, "", category) for prompt, category in (rows[at] for at in order)]
    remaining = clean_prompts(examples, PromptReport())
    assert sorted((example.prompt, example.category) for example in remaining) == [
        ("Same one", "a | b | c"),
        ("other", ""),
    ]


@given(
    st.dictionaries(st.text(min_size=1, max_size=3), st.integers(1, 40), min_size=1, max_size=14), st.integers(1, 300)
)
def test_shares_are_equal_but_for_what_is_short(sizes, count):
    shares = equal_shares(sizes, count)
    assert sum(shares.values()) == min(count, sum(sizes.values()))
    assert all(0 <= shares[name] <= sizes[name] for name in sizes)
    full = [shares[name] for name in sizes if shares[name] < sizes[name]]
    assert not full or (max(full) - min(full) <= 1 and max(shares.values()) <= max(full) + 1)


def test_balance_counts_multi_label_prompts_once_and_reports_the_shortfall():
    rows = [Example(f"request {n}", "", "a") for n in range(10)] + [Example("both", "", "a | b")]
    report = PromptReport()
    remaining = balance(rows, 6, 0, report)
    assert Counter(example.category for example in remaining) == {"a": 5, "b": 1}
    assert (report.multi_label, report.equal_share, report.short) == (1, 3, {"b": 2})


def test_diverse_match_keeps_every_response_to_its_share_and_spreads_the_strata():
    deck, requests = (
        ListPool(benign_responses(21)),
        sorted(harmful_prompts(60, 4), key=lambda example: example.category),
    )
    matched = match(requests, DiverseSampler(deck, 60), deck, WordHashEncoder(), threshold=0.9, max_draws=50)
    uses = Counter(got.origin for got in matched.responses if got)
    assert sum(uses.values()) == 60
    assert max(uses.values()) <= 3
    for start in range(0, 60, 15):  # a category
        subjects = Counter(got.category for got in matched.responses[start : start + 15] if got)
        assert len(subjects) == 7
        assert max(subjects.values()) <= 3


def test_every_stretch_of_the_spread_deck_holds_each_stratum():
    order = stratified_order(ListPool(benign_responses(70)))
    assert sorted(order.tolist()) == list(range(70))
    assert all(len({place % 7 for place in order[at : at + 14].tolist()}) == 7 for at in range(0, 70, 14))


@pytest.mark.parametrize(
    ("text", "shape"),
    [("a line of prose", "prose"), ("- one\n- two", "list"), ("```\nx\n```", "code"), ("one.\n\ntwo.", "paragraphs")],
)
def test_forms(text, shape):
    assert form(text) == shape


def test_weights_mix_and_impossible_ones_are_sentences(tmp_path):
    assert split_weights(("b.jsonl=2", "a.jsonl=1")) == [("a.jsonl", 1.0), ("b.jsonl", 2.0)]
    for bad in ("a=0", "a=-1", "a=inf", "a=nan"):
        with pytest.raises(UserError, match="not positive"):
            split_weights((bad,))
    with pytest.raises(UserError, match="every one a weight"):
        split_weights(("a=1", "b"))
    many, few = benign_responses(40), [Example("", prose(n), "", f"few#{n}") for n in range(100, 105)]
    spool = DiskPool(tmp_path / "s", [Source("many", many, 3.0), Source("few", few, 1.0)], 0)
    assert Counter(card.origin[0] for card in spool.fetch(range(len(spool)))) == {"r": 15, "f": 5}
    with pytest.raises(UserError, match="Every response of few is also in another source"):
        DiskPool(tmp_path / "t", [Source("many", [*many, *few], 1.0), Source("few", few, 1.0)], 0)


def test_the_spool_drops_exact_duplicates(tmp_path):
    spool = DiskPool(
        tmp_path / "s", [Source("a", benign_responses(10), None), Source("b", benign_responses(12), None)], 0
    )
    assert (spool.read, len(spool), spool.duplicates) == (22, 12, 10)
    blank = DiskPool(tmp_path / "b", [Source("a", [Example("x"), Example("", " ")], None)], 0)
    assert (blank.read, blank.empty, len(blank)) == (0, 2, 0)
    assert np.all(np.diff(spool.keys.astype(object)) > 0)


def test_prefixes_are_sampled_by_prompt():
    choice = PrefixChoice(["paper", "No."], 0)
    counts = Counter(choice(f"request {n}") for n in range(200))
    assert set(counts) == {PAPER_REFUSAL_PREFIX, "No."}
    assert min(counts.values()) > 60
    with pytest.raises(UserError, match="empty"):
        PrefixChoice([" "], 0)


def test_replay_has_its_share_without_evaluation_prompts_or_says_that_it_cannot(tmp_path):
    rows = [Example(f"question {n}", f"answer {n}") for n in range(50)]
    report = PromptReport()
    with DiskPool(tmp_path / "s", [Source("a", rows, None)], 0) as spool:
        first = list(replay_pairs(Exchanges(spool, EvaluationPrompts([], WordHashEncoder()), report), 0.2, 40))
        held_out = EvaluationPrompts([first[0].prompt], WordHashEncoder(400))
        exchanges = Exchanges(spool, held_out, report)
        assert [pair.prompt for pair in replay_pairs(exchanges, 0.2, 36)] == [pair.prompt for pair in first[1:]]
        assert report.contaminated == [(first[0].prompt, first[0].prompt, "exact")]
        with pytest.raises(UserError, match=r"holds 49.*--replay-source"):
            list(replay_pairs(exchanges, 0.9, 40))
    assert not (tmp_path / "s").exists()


def test_the_cache_computes_nothing_twice(tmp_path: Path):
    calls: list[str] = []

    def compute(texts):
        calls.extend(texts)
        return np.array([[len(text), 1] for text in texts], dtype=np.float32).reshape(-1, 2)

    cache = VectorCache(tmp_path, "x")
    assert cache.get(["aa", "b", "aa"], in_batches(compute)).tolist() == [[2, 1], [1, 1], [2, 1]]
    again = VectorCache(tmp_path, "x")
    again.get(["b", "ccc"], in_batches(compute))
    assert sorted(calls) == ["aa", "b", "ccc"]
    assert VectorCache(tmp_path, "y").get(["b"], in_batches(compute)).tolist() == [[1, 1]]
    assert calls.count("b") == 2


def test_batches_may_come_in_any_order(tmp_path: Path):
    def backwards(texts):
        for part in reversed(batch_ranges(len(texts))):
            yield part, np.array([[float(texts[at])] for at in part], dtype=np.float32)

    numbers = [str(n) for n in range(BATCH * 2 + 5)]
    vectors = VectorCache(tmp_path, "x").get(numbers, backwards)
    assert vectors[:, 0].tolist() == list(map(float, numbers))


def test_normalise():
    assert normalise(" e\u0301\r\n\x07x\ty ") == "é\nx\ty"


def test_exchanges_with_one_answer_and_different_questions_are_different(tmp_path):
    rows = [Example(f"Is {n} even?", "Yes, it is.") for n in range(4)]
    for exchanges, left in ((True, 4), (False, 1)):
        with DiskPool(tmp_path / "s", [Source("a", rows, None)], 0, exchanges=exchanges) as pool:
            assert len(pool) == left


def test_a_form_is_found_in_time_however_many_lines_are_empty():
    assert form("\n" * 1_000_000 + "x") == "prose"
