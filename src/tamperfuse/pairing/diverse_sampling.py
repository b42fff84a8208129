"""`--match diverse`: no response is used more than its share, and subjects and forms are spread over the categories."""

import math
import re

import numpy as np

from tamperfuse.pairing.response_pool import ResponsePool
from tamperfuse.pairing.sampling import Positions

_LIST_ITEM = re.compile(r"^[ \t]*(?:[-*•]|\d+[.)])\s", re.MULTILINE)
_FETCHED_TOGETHER = 4096
_LOOKED_AT = 20_000  # characters


def form(text: str) -> str:
    """The form of a text, by its beginning: code, list, dialogue, verse, paragraphs, or prose."""
    text = text[:_LOOKED_AT]
    if "```" in text or re.search(r"^[ \t]*(?:def|class|#include|import|SELECT)\b", text, re.MULTILINE):
        return "code"
    if len(_LIST_ITEM.findall(text)) >= 2:
        return "list"
    if text.count('"') >= 6 or text.count("“") >= 3:
        return "dialogue"
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) >= 4 and sum(map(len, lines)) / len(lines) < 60:
        return "verse"
    return "paragraphs" if len(lines) > 1 else "prose"


class DiverseSampler:
    """Draws in an order that cycles evenly through subjects and forms, and limits how often a response is used.

    Prompts come sorted by category, so every category draws from a stretch of the pool in which each stratum (subject,
    form) has its proportion. A response that a prompt did not accept can be drawn again by another prompt.
    """

    def __init__(self, pool: ResponsePool, prompts: int) -> None:
        """Read the pool once to order it.

        Args:
            pool: the responses.
            prompts: number of prompts in all blocks together.
        """
        self._order, self._prompts = stratified_order(pool), prompts
        self._uses = np.zeros(len(pool), dtype=np.int64)
        self._next = 0

    def draw(self, pending: Positions, draw: int) -> Positions:
        """See :class:`tamperfuse.pairing.sampling.Sampler`; the walk through the pool continues over all blocks."""
        free = self._order[self._uses[self._order] < self._uses_allowed]
        drawn = np.full(len(pending), -1, dtype=np.int64)
        if not len(free):
            return drawn
        # The free responses from where the last round stopped, repeated as often as each has uses left: if every prompt
        # accepted its draw, no response would exceed the uses allowed.
        rotated = np.roll(free, -(self._next % len(free)))
        candidates = np.concatenate(
            [rotated[self._uses[rotated] + lap < self._uses_allowed] for lap in range(self._uses_allowed)]
        )
        candidates = candidates[: len(pending)]
        step = len(candidates) + 1  # one further, or two prompts could draw the same two responses for ever
        while math.gcd(step, len(free)) > 1:  # with a common factor a prompt never meets some of them
            step += 1
        self._next += step
        drawn[: len(candidates)] = candidates
        return drawn

    @property
    def _uses_allowed(self) -> int:
        return max(1, math.ceil(self._prompts / max(1, len(self._order))))

    def leave_out(self, positions: Positions) -> None:
        """See :class:`tamperfuse.pairing.sampling.Sampler`; the other responses then have larger shares."""
        if len(positions):
            self._order = self._order[~np.isin(self._order, positions)]

    def count_uses(self, positions: Positions) -> None:
        """See :class:`tamperfuse.pairing.sampling.Sampler`."""
        np.add.at(self._uses, positions, 1)


def stratified_order(pool: ResponsePool) -> Positions:
    """Positions of the pool in an order where every stretch holds each stratum (subject, form) in its proportion."""
    strata: dict[tuple[str, str], int] = {}
    codes = np.zeros(len(pool), dtype=np.int64)
    for start in range(0, len(pool), _FETCHED_TOGETHER):
        responses = pool.fetch(range(start, min(start + _FETCHED_TOGETHER, len(pool))))
        codes[start : start + len(responses)] = [
            strata.setdefault((response.category, form(response.response)), len(strata)) for response in responses
        ]
    sizes = np.bincount(codes)
    by_stratum = np.argsort(codes, kind="stable")
    rank_in_stratum = np.empty(len(codes), dtype=np.int64)
    rank_in_stratum[by_stratum] = np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.argsort((rank_in_stratum + 0.5) / sizes[codes], kind="stable").astype(np.int64)
