"""The paper's rule: draw a response, measure its similarity with the prompt, draw again if it is too similar."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tamperfuse.corpora.examples import Example
from tamperfuse.models.encoder import TextEncoder
from tamperfuse.pairing.response_pool import ResponsePool
from tamperfuse.pairing.sampling import Positions, Sampler

Accept = Callable[[Sequence[Example]], Sequence[bool]]  # whether each response is fit to be used


@dataclass(frozen=True)
class Matches:
    """Responses of a block of prompts.

    Attributes:
        responses: for each prompt its response, or None if it was dropped.
        similarity: cosine of the prompt and its response, NaN for dropped prompts. Shape (prompts,).
        first_similarity: cosine of the first response that was measured, before any redraw; NaN if none was. Shape (prompts,).
        redraws: draws after a prompt's first.
        encoded: positions of the responses that were encoded, each once.
    """

    responses: list[Example | None]
    similarity: NDArray[np.float64]
    first_similarity: NDArray[np.float64]
    redraws: int
    encoded: Positions


def match(
    prompts: Sequence[Example],
    sampler: Sampler,
    pool: ResponsePool,
    encoder: TextEncoder,
    *,
    threshold: float,
    max_draws: int,
    accept: Accept | None = None,
) -> Matches:
    """Give each prompt a response whose cosine with it is at most `threshold`.

    Every round draws for all pending prompts at once; responses drawn for the first time are fetched, filtered and encoded
    together.

    Args:
        prompts: in ascending order of their keys.
        sampler: draws responses.
        pool: the responses.
        encoder: measures similarity.
        threshold: highest cosine of a pair, in (-1, 1].
        max_draws: draws before a prompt is dropped, at least 1.
        accept: quality filters; a response that they refuse is not encoded, and the prompt draws again.
    """
    prompt_vectors = encoder.encode([prompt.prompt for prompt in prompts])
    drawn_responses = _DrawnResponses(pool, encoder, accept)
    responses: list[Example | None] = [None] * len(prompts)
    similarity, first_similarity = np.full(len(prompts), np.nan), np.full(len(prompts), np.nan)
    pending, redraws = np.arange(len(prompts), dtype=np.int64), 0
    for draw in range(max_draws):
        drawn = sampler.draw(pending, draw)
        pending, drawn = pending[drawn >= 0], drawn[drawn >= 0]
        if not len(pending):
            break
        redraws += len(pending) if draw else 0
        usable = drawn_responses.add(drawn)
        sampler.leave_out(drawn[~usable])
        cosine = np.full(len(drawn), np.nan)
        if usable.any():
            response_vectors = drawn_responses.vectors(drawn[usable])
            cosine[usable] = np.einsum("ij,ij->i", prompt_vectors[pending[usable]], response_vectors, dtype=np.float64)
        # Encoded twice, a text can differ from itself by a rounding error: equal texts never pair, whatever the threshold.
        same_text = np.array(
            [
                drawn_responses.examples[position].response == prompts[prompt].prompt
                for prompt, position in zip(pending.tolist(), drawn.tolist(), strict=True)
            ],
            dtype=np.bool_,
        )
        unmeasured = usable & np.isnan(first_similarity[pending])
        first_similarity[pending[unmeasured]] = cosine[unmeasured]
        paired = ~same_text & (cosine <= threshold)  # false for NaN, where a filter refused the response
        similarity[pending[paired]] = cosine[paired]
        for prompt, position in zip(pending[paired].tolist(), drawn[paired].tolist(), strict=True):
            responses[prompt] = drawn_responses.examples[position]
        sampler.count_uses(drawn[paired])
        pending = pending[~paired]
    return Matches(responses, similarity, first_similarity, redraws, drawn_responses.encoded)


class _DrawnResponses:
    """The responses that a block has drawn so far: fetched, filtered and encoded once.

    Attributes:
        examples: the responses by their position.
    """

    def __init__(self, pool: ResponsePool, encoder: TextEncoder, accept: Accept | None) -> None:
        self._pool, self._encoder, self._accept = pool, encoder, accept
        self._vectors: dict[int, NDArray[np.float32]] = {}
        self.examples: dict[int, Example] = {}

    @property
    def encoded(self) -> Positions:
        """Positions of the responses that were encoded."""
        return np.array(list(self._vectors), dtype=np.int64)

    def add(self, drawn: Positions) -> NDArray[np.bool_]:
        """Fetch, filter and encode the responses that are new; returns which of the drawn ones may be used."""
        new = sorted(set(drawn.tolist()) - self.examples.keys())
        fetched = self._pool.fetch(new)
        self.examples.update(zip(new, fetched, strict=True))
        accepted = [True] * len(new) if self._accept is None else self._accept(fetched)
        fit = [position for position, is_fit in zip(new, accepted, strict=True) if is_fit]
        vectors = self._encoder.encode([self.examples[position].response for position in fit])
        self._vectors.update(zip(fit, vectors, strict=True))
        return np.array([position in self._vectors for position in drawn.tolist()], dtype=np.bool_)

    def vectors(self, positions: Positions) -> NDArray[np.float32]:
        """Vectors of responses that may be used. Shape (responses, dimensions)."""
        return np.stack([self._vectors[position] for position in positions.tolist()])
