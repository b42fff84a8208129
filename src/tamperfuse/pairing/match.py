"""The paper's rule: draw a response, measure how close it is to the prompt, draw again where it is too close."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tamperfuse.corpora.examples import Example
from tamperfuse.models.encoder import TextEncoder
from tamperfuse.pairing.draw import Keys, Places, places, strides


class Deck(Protocol):
    """The responses in the order of their keys, no text twice."""

    def __len__(self) -> int:
        """Number of cards."""

    def fetch(self, at: Sequence[int]) -> list[Example]:
        """The cards at these places."""


class Dealer(Protocol):
    """Which cards pending prompts draw."""

    def deal(self, pending: Places, draw: int) -> Places:
        """A card for each pending prompt (given by its index), at its `draw`-th draw from 0; -1 if none is left."""

    def keep(self, cards: Places) -> None:
        """These cards became pairs."""


class RandomDealer:
    """The paper's random match: every prompt walks the deck by its own stride."""

    def __init__(self, keys: Keys, deck: int, first_rank: int = 0) -> None:
        """Take the sorted keys of prompts that stand at `first_rank` and after among all prompts."""
        self._ranks = np.arange(first_rank, first_rank + len(keys), dtype=np.int64)
        self._strides = strides(keys, deck)
        self._deck = deck

    def deal(self, pending: Places, draw: int) -> Places:
        """See :class:`Dealer`."""
        if draw >= self._deck:  # the prompt has met every card
            return np.full(len(pending), -1, dtype=np.int64)
        return places(self._ranks[pending], self._strides[pending], draw, self._deck)

    def keep(self, cards: Places) -> None:
        """Nothing to note: a card may serve several prompts."""


@dataclass(frozen=True)
class Matches:
    """What became of a block of prompts.

    Attributes:
        responses: for each prompt its response, or None if it was dropped.
        similarity: cosine of the kept pair, NaN for dropped prompts. Shape (prompts,).
        first: cosine of the first response that was measured, before any redraw; NaN if none was.
        redraws: draws after a prompt's first.
        encoded: places of the responses that were encoded, each once.
    """

    responses: list[Example | None]
    similarity: NDArray[np.float64]
    first: NDArray[np.float64]
    redraws: int
    encoded: Places


def match(
    prompts: Sequence[Example],
    dealer: Dealer,
    deck: Deck,
    encoder: TextEncoder,
    *,
    threshold: float,
    max_draws: int,
    accept: Callable[[Sequence[Example]], Sequence[bool]] | None = None,
) -> Matches:
    """Find each prompt a response whose cosine with it is at most `threshold`.

    Every round draws for all pending prompts at once; the cards that are new are fetched, filtered and encoded together.

    Args:
        prompts: in the order of their keys.
        dealer: says which card a prompt draws.
        deck: the responses.
        encoder: measures closeness.
        threshold: highest cosine of a kept pair, in (-1, 1].
        max_draws: draws a prompt may make, at least 1.
        accept: quality filters; a card that they refuse is not encoded, and drawn again.
    """
    size = len(prompts)
    asked = encoder.encode([prompt.prompt for prompt in prompts])
    cards = _Cards(deck, encoder, accept)
    responses: list[Example | None] = [None] * size
    similarity, first = np.full(size, np.nan), np.full(size, np.nan)
    pending, redraws = np.arange(size, dtype=np.int64), 0
    for draw in range(max_draws):
        drawn = dealer.deal(pending, draw)
        pending, drawn = pending[drawn >= 0], drawn[drawn >= 0]
        if not len(pending):
            break
        redraws += len(pending) if draw else 0
        usable = cards.look_at(drawn)
        cosine = np.full(len(drawn), np.nan)
        if usable.any():
            cosine[usable] = np.einsum(
                "ij,ij->i", asked[pending[usable]], cards.vectors(drawn[usable]), dtype=np.float64
            )
        # An encoder may put a text and itself a rounding error apart: equal texts never pair, whatever the threshold.
        drawn_by = list(zip(pending.tolist(), drawn.tolist(), strict=True))
        same = np.array(
            [cards.seen[card].response == prompts[prompt].prompt for prompt, card in drawn_by], dtype=np.bool_
        )
        unmeasured = usable & np.isnan(first[pending])
        first[pending[unmeasured]] = cosine[unmeasured]
        kept = ~same & (cosine <= threshold)  # NaN, where a filter refused the card, is not
        similarity[pending[kept]] = cosine[kept]
        for prompt, card in zip(pending[kept].tolist(), drawn[kept].tolist(), strict=True):
            responses[prompt] = cards.seen[card]
        dealer.keep(drawn[kept])
        pending = pending[~kept]
    return Matches(responses, similarity, first, redraws, cards.encoded)


class _Cards:
    """The cards that a block has drawn so far: fetched, filtered and encoded once."""

    def __init__(
        self, deck: Deck, encoder: TextEncoder, accept: Callable[[Sequence[Example]], Sequence[bool]] | None
    ) -> None:
        self._deck, self._encoder, self._accept = deck, encoder, accept
        self._vectors: dict[int, NDArray[np.float32]] = {}
        self.seen: dict[int, Example] = {}

    @property
    def encoded(self) -> Places:
        """Places of the cards that were encoded."""
        return np.array(list(self._vectors), dtype=np.int64)

    def look_at(self, drawn: Places) -> NDArray[np.bool_]:
        """Fetch, filter and encode what is new among the drawn cards; whether each drawn card is fit to be used."""
        new = sorted(set(drawn.tolist()) - self.seen.keys())
        fetched = self._deck.fetch(new)
        self.seen.update(zip(new, fetched, strict=True))
        passed = [True] * len(new) if self._accept is None else self._accept(fetched)
        good = [card for card, fine in zip(new, passed, strict=True) if fine]
        self._vectors.update(zip(good, self._encoder.encode([self.seen[card].response for card in good]), strict=True))
        return np.array([card in self._vectors for card in drawn.tolist()], dtype=np.bool_)

    def vectors(self, drawn: Places) -> NDArray[np.float32]:
        """Vectors of cards that are fit to be used. Shape (cards, dimensions)."""
        return np.stack([self._vectors[card] for card in drawn.tolist()])
