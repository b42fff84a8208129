"""Which response a prompt draws: places in a deck that follow from hashes of seed and text alone."""

import numpy as np
import xxhash
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Places = NDArray[np.int64]


def text_key(text: str, role: str, seed: int) -> int:
    """64-bit key of a text in its role ("prompt", "response", …) under a seed; equal texts have equal keys.

    Roles are salted apart, so that a text which is both prompt and response does not sit at the same place in both orders.
    """
    return xxhash.xxh3_64_intdigest(text.encode(), seed=xxhash.xxh3_64_intdigest(f"{role}:{seed}".encode()))


def strides(keys: Keys, deck: int) -> Places:
    """Each prompt's step through the deck: pseudo-random in [1, deck], and coprime to it, so that it meets every card.

    Args:
        keys: the prompts' keys.
        deck: number of cards, at least 1.
    """
    step = (1 + (keys >> np.uint64(16)) % np.uint64(deck)).astype(np.int64)
    while (shared := np.gcd(step, deck) != 1).any():
        step[shared] = step[shared] % deck + 1
    return step


def places(ranks: Places, step: Places, draw: int, deck: int) -> Places:
    """The cards of the `draw`-th draw (from 0): a prompt starts at its own rank and goes on by its stride."""
    return (ranks + draw * step) % deck
