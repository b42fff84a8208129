"""Pairs in memory: the function that makes them from two lists of examples, and what it returns."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tamperfuse.corpora.examples import Example, Pair
from tamperfuse.pairing.draw import text_key
from tamperfuse.pairing.match import Dealer, Encoder, Matches, RandomDealer, match
from tamperfuse.records.errors import UserError

# The prefix of SDD_reject, as the paper gives it (section 4.1).
PAPER_REFUSAL_PREFIX = (
    "I refuse to answer your question for responsible and ethical reasons. "
    "I provided an irrational answer to your question."
)


@dataclass(frozen=True)
class PairSet:
    """Pairs, and what became of the rest.

    Attributes:
        pairs: sorted by the key of their prompt, so that a prefix is a fair sample.
        dropped: prompts for which no irrelevant response was found.
        redraws: draws after a prompt's first.
        encoded_prompts: prompts that were encoded.
        encoded_responses: responses that were encoded, each counted once.
        threshold: highest cosine allowed.
        seed: of the draw.
        encoder: its name.
        first_similarity: cosine of every prompt's first draw, before any redraw.
        duplicate_prompts: prompts left out because another had the same text.
        duplicate_responses: responses likewise.
    """

    pairs: list[Pair]
    dropped: list[str]
    redraws: int
    encoded_prompts: int
    encoded_responses: int
    threshold: float
    seed: int
    encoder: str
    first_similarity: list[float]
    duplicate_prompts: int = 0
    duplicate_responses: int = 0


class ListDeck:
    """A deck whose cards are in memory."""

    def __init__(self, cards: Sequence[Example]) -> None:
        """Take cards in the order of their keys."""
        self._cards = cards

    def __len__(self) -> int:
        """Number of cards."""
        return len(self._cards)

    def fetch(self, at: Sequence[int]) -> list[Example]:
        """The cards at these places."""
        return [self._cards[place] for place in at]


def make_pairs(
    prompts: Sequence[Example],
    responses: Sequence[Example],
    encoder: Encoder,
    *,
    threshold: float = 0.25,
    seed: int = 0,
    refusal_prefix: str | None = None,
    max_draws: int = 50,
) -> PairSet:
    """Match every prompt with a random response that does not answer it (SDD paper, section 4.1).

    Args:
        prompts: examples whose `prompt` counts; a text that comes twice is taken once.
        responses: examples whose `response` counts; likewise.
        encoder: measures closeness; a :class:`SentenceEncoder`.
        threshold: highest cosine of a kept pair, in (-1, 1]; .25 as in the public re-implementation.
        seed: of the draw.
        refusal_prefix: put before every response (SDD_reject), e.g. :data:`PAPER_REFUSAL_PREFIX`; None for plain SDD.
        max_draws: draws before a prompt is dropped, at least 1.

    Returns:
        The pairs, the same whatever the order of `prompts` and `responses`.

    Raises:
        UserError: a corpus without texts, an impossible number, or not one pair could be made.
    """
    check_numbers(threshold, max_draws)
    asked = in_order(prompts, "prompt", seed)
    cards = in_order(responses, "response", seed)
    keys = np.array([text_key(example.prompt, "prompt", seed) for example in asked], dtype=np.uint64)
    deck = ListDeck(cards)
    dealer: Dealer = RandomDealer(keys, len(deck))
    found = match(asked, dealer, deck, encoder, threshold=threshold, max_draws=max_draws)
    pairs = pairs_of(asked, found, lambda prompt: refusal_prefix or "")
    if not pairs:
        raise UserError(
            f"None of the {len(asked)} prompts found a response with cosine at most {threshold} in {max_draws} draws: "
            "give a pool of responses on other subjects, or a higher --threshold."
        )
    return PairSet(
        pairs=pairs,
        dropped=[ask.prompt for ask, got in zip(asked, found.responses, strict=True) if got is None],
        redraws=found.redraws,
        encoded_prompts=len(asked),
        encoded_responses=len(found.encoded),
        threshold=threshold,
        seed=seed,
        encoder=encoder.name,
        first_similarity=[float(value) for value in found.first if not math.isnan(value)],
        duplicate_prompts=sum(bool(example.prompt) for example in prompts) - len(asked),
        duplicate_responses=sum(bool(example.response) for example in responses) - len(cards),
    )


def check_numbers(threshold: float, max_draws: int) -> None:
    """Refuse impossible numbers.

    Raises:
        UserError: a threshold outside (-1, 1], or less than one draw.
    """
    if not -1 < threshold <= 1:
        raise UserError(f"A threshold of {threshold} is no cosine: give --threshold a number above -1 and at most 1.")
    if max_draws < 1:
        raise UserError(f"{max_draws} draws find nothing: give --max-draws at least 1.")


def in_order(examples: Sequence[Example], role: str, seed: int) -> list[Example]:
    """Examples in the order of their keys, each text once (of equal texts, the one whose origin sorts first).

    Args:
        examples: in any order.
        role: "prompt" or "response": the text that counts.
        seed: of the draw.

    Raises:
        UserError: no example has that text.
    """
    chosen: dict[int, Example] = {}
    for example in examples:
        said = example.prompt if role == "prompt" else example.response
        if said:
            key = text_key(said, role, seed)
            if key not in chosen or example.origin < chosen[key].origin:
                chosen[key] = example
    if not chosen:
        raise UserError(f"There is not one {role} to pair: check the source, or name its column with --{role}-field.")
    return [chosen[key] for key in sorted(chosen)]


def pairs_of(prompts: Sequence[Example], found: Matches, prefix: Callable[[str], str]) -> list[Pair]:
    """The pairs of a block; `prefix` gives each prompt's refusal prefix, "" for none."""
    return [
        Pair(
            prompt=ask.prompt,
            response=f"{lead} {got.response}" if (lead := prefix(ask.prompt)) else got.response,
            category=ask.category,
            similarity=float(cosine),
            prompt_origin=ask.origin,
            response_origin=got.origin,
            refusal_prefix=lead,
        )
        for ask, got, cosine in zip(prompts, found.responses, found.similarity, strict=True)
        if got is not None
    ]
