"""`--match diverse`: no response is used more than its share, and subjects and forms are spread over the categories."""

import math
import re

import numpy as np

from tamperfuse.pairing.draw import Places
from tamperfuse.pairing.match import Deck

_LIST = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)
_FETCH = 4096


def form(text: str) -> str:
    """The shape of a text: code, list, dialogue, verse, paragraphs, or prose."""
    if "```" in text or re.search(r"^\s*(?:def|class|#include|import|SELECT)\b", text, re.MULTILINE):
        return "code"
    if len(_LIST.findall(text)) >= 2:
        return "list"
    if text.count('"') >= 6 or text.count("“") >= 3:
        return "dialogue"
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) >= 4 and sum(map(len, lines)) / len(lines) < 60:
        return "verse"
    return "paragraphs" if len(lines) > 1 else "prose"


class DiverseDealer:
    """Deals the deck in an order that cycles evenly through subjects and forms, and counts how often a card is used.

    Prompts come sorted by category, so that every category meets a stretch of the deck in which each stratum (subject,
    form) has its fair part. Refused cards go back; a pending prompt is dealt one of the cards that have uses left.
    """

    def __init__(self, deck: Deck, prompts: int) -> None:
        """Take the deck and how many prompts there are in all."""
        self._order = spread(deck)
        self._share = max(1, math.ceil(prompts / len(deck)))
        self._used = np.zeros(len(deck), dtype=np.int64)
        self._at = 0

    def deal(self, pending: Places, draw: int) -> Places:
        """See :class:`tamperfuse.pairing.match.Dealer`; the walk through the deck goes on over all blocks."""
        free = self._order[self._used[self._order] < self._share]
        dealt = np.full(len(pending), -1, dtype=np.int64)
        if not len(free):
            return dealt
        # The deck from where the last round stopped, as often as its cards have uses left: were every prompt to keep what
        # it is dealt, no card would exceed its share.
        turned = np.roll(free, -(self._at % len(free)))
        chosen = np.concatenate([turned[self._used[turned] + lap < self._share] for lap in range(self._share)])
        chosen = chosen[: len(pending)]
        self._at += len(chosen) + 1  # one further, or two prompts and two cards would meet the same way for ever
        dealt[: len(chosen)] = chosen
        return dealt

    def keep(self, cards: Places) -> None:
        """Count the uses."""
        np.add.at(self._used, cards, 1)


def spread(deck: Deck) -> Places:
    """Places of the deck in an order where every stretch holds each stratum (subject, form) in its proportion."""
    strata: dict[tuple[str, str], int] = {}
    codes = np.zeros(len(deck), dtype=np.int64)
    for start in range(0, len(deck), _FETCH):
        cards = deck.fetch(range(start, min(start + _FETCH, len(deck))))
        codes[start : start + len(cards)] = [
            strata.setdefault((c.category, form(c.response)), len(strata)) for c in cards
        ]
    sizes = np.bincount(codes)
    by_stratum = np.argsort(codes, kind="stable")
    within = np.empty(len(codes), dtype=np.int64)
    within[by_stratum] = np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.argsort((within + 0.5) / sizes[codes], kind="stable").astype(np.int64)
