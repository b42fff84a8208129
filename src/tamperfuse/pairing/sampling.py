"""Which response a prompt draws: positions in the pool that follow from hashes of the seed and the texts alone."""

from typing import Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Positions = NDArray[np.int64]


def text_key(text: str, role: str, seed: int) -> int:
    """64-bit hash of a text in a role ("prompt", "response", …) under a seed.

    The role enters the hash so that a text which is both a prompt and a response has unrelated positions in the two orders.
    """
    return xxhash.xxh3_64_intdigest(text.encode(), seed=xxhash.xxh3_64_intdigest(f"{role}:{seed}".encode()))


def strides(keys: Keys, pool_size: int) -> Positions:
    """The stride of each prompt: pseudo-random in [1, pool_size] and coprime to it, so that a prompt meets every response.

    Args:
        keys: the prompts' keys.
        pool_size: number of responses, at least 1.
    """
    step = (1 + (keys >> np.uint64(16)) % np.uint64(pool_size)).astype(np.int64)
    while (shared := np.gcd(step, pool_size) != 1).any():
        step[shared] = step[shared] % pool_size + 1
    return step


def positions_of_draw(ranks: Positions, step: Positions, draw: int, pool_size: int) -> Positions:
    """Positions of the `draw`-th draw (from 0): a prompt starts at its own rank and continues by its stride."""
    return (ranks + draw * step) % pool_size


class Sampler(Protocol):
    """Draws responses for prompts."""

    def draw(self, pending: Positions, draw: int) -> Positions:
        """Draw a response for each pending prompt.

        Args:
            pending: indices of the prompts within their block.
            draw: number of draws that these prompts had before.

        Returns:
            A position in the pool for each pending prompt; -1 if there is none left for it.
        """

    def leave_out(self, positions: Positions) -> None:
        """Note that the filters refused these responses, so that no prompt can have them."""

    def count_uses(self, positions: Positions) -> None:
        """Note that these responses, one for each entry, became part of a pair."""


class RandomSampler:
    """The paper's random match: every prompt walks through the pool by its own stride."""

    def __init__(self, keys: Keys, pool_size: int, first_rank: int = 0) -> None:
        """Set up for one block of prompts.

        Args:
            keys: the prompts' keys, ascending.
            pool_size: number of responses.
            first_rank: rank of the first of these prompts among all prompts.
        """
        self._ranks = np.arange(first_rank, first_rank + len(keys), dtype=np.int64)
        self._strides = strides(keys, pool_size)
        self._pool_size = pool_size

    def draw(self, pending: Positions, draw: int) -> Positions:
        """See :class:`Sampler`."""
        if draw >= self._pool_size:  # the prompts have met every response
            return np.full(len(pending), -1, dtype=np.int64)
        return positions_of_draw(self._ranks[pending], self._strides[pending], draw, self._pool_size)

    def leave_out(self, positions: Positions) -> None:
        """Does nothing: a prompt's walk follows from its key alone."""

    def count_uses(self, positions: Positions) -> None:
        """Does nothing: a response may be used by several prompts."""
