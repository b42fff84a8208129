"""Draw tokens at random such that the draws for a prompt do not depend on the rest of the batch.

Each prompt has a sequence of uniform numbers, computed from the seed, its tokens and the number of earlier occurrences of the
same prompt in the call; the n-th token is drawn with the n-th number. The order of the prompts, the batch size and the other
prompts therefore do not change a draw. Logits differ by rounding between batches of different shape: a number within that
rounding error of the boundary between two tokens may select the other one, which is rare in float32.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tamperfuse.records.errors import UserError
from tamperfuse.records.files import content_hash

# Number of most likely tokens sorted first for the nucleus: nearly always enough, and much cheaper than sorting all.
FIRST_TOP_K = 256
SLICE = 2**22  # logits that are processed at a time on a CPU: few enough for its cache
BLOCK = 256  # tokens whose probabilities are summed first, so that only one block's need cumulative sums


@dataclass(frozen=True)
class Sampling:
    """Parameters of sampling.

    Attributes:
        temperature: divides the logits; above 0.
        top_p: sample from the smallest set of most likely tokens whose probabilities sum to at least this (nucleus sampling,
            Holtzman et al., ICLR 2020, section 3.1), in (0, 1]. Tokens as likely as the last one are included. 1 for all.
        seed: determines every draw.

    Raises:
        UserError: a value is outside its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature < float("inf"):
            raise UserError(
                f"temperature is {self.temperature}: give a number above 0, or omit sampling for greedy decoding."
            )
        if not 0.0 < self.top_p <= 1.0:
            raise UserError(f"top_p is {self.top_p}: give a number above 0 and up to 1.")

    def seeds(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """A seed for each prompt, 0 to 2⁶³ − 1; repetitions of a prompt get different seeds."""
        repetitions: Counter[tuple[int, ...]] = Counter()
        seeds = []
        for prompt in map(tuple, prompts):
            seeds.append(int(content_hash([self.seed, prompt, repetitions[prompt]])[:16], 16) >> 1)
            repetitions[prompt] += 1
        return seeds

    def uniforms(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Tensor:
        """The uniform numbers that determine the draws: (prompts, new_tokens), float64, in [0, 1)."""
        sources = map(random.Random, self.seeds(prompts))
        numbers = [[source.random() for _ in range(new_tokens)] for source in sources]
        return torch.tensor(numbers, dtype=torch.float64).view(len(prompts), new_tokens)

    def draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Draw one token for each row.

        Args:
            logits: (rows, vocabulary).
            uniform: (rows,), float64, in [0, 1).

        Returns:
            (rows,), token ids. A token outside the nucleus is drawn again from within, which leaves the distribution there.
        """
        rows = max(1, SLICE // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
        uniform = uniform.to(logits.device)
        drawn = [self._draw(*part) for part in zip(torch.split(logits, rows), torch.split(uniform, rows), strict=True)]
        return torch.cat(drawn) if drawn else uniform.long()

    def _draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        probabilities = torch.softmax(logits.float() / self.temperature, -1)
        tokens, position = _invert(probabilities, uniform)
        if self.top_p < 1.0:
            likelihood = probabilities.gather(1, tokens[:, None])
            likelier = torch.where(probabilities > likelihood, probabilities, 0.0).sum(-1)
            outside = (likelier >= self.top_p).nonzero().flatten()
            # Given that a token was drawn, the position within its interval is uniform, so it decides the second draw.
            if len(outside):
                nucleus = _nucleus(probabilities[outside], self.top_p)
                tokens[outside] = _invert(nucleus, position[outside])[0]
        return tokens


def _invert(probabilities: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draw by inverting the cumulative distribution, first over blocks of tokens, then within one.

    Args:
        probabilities: (rows, vocabulary).
        uniform: (rows,), float64, in [0, 1).

    Returns:
        (rows,), token ids: the first whose cumulative probability, in order of token id, exceeds the uniform number; and (rows,),
        float64, in [0, 1): the position of the number within the token's interval.
    """
    rows, size = probabilities.shape
    padded = torch.nn.functional.pad(probabilities, (0, -size % BLOCK)).view(rows, -1, BLOCK)
    by_block = padded.sum(-1, dtype=torch.float64).cumsum(-1)
    threshold = uniform[:, None] * by_block[:, -1:]
    block = torch.searchsorted(by_block, threshold, right=True).clamp(max=by_block.shape[1] - 1)
    threshold = threshold - torch.where(block > 0, by_block.gather(1, (block - 1).clamp(min=0)), 0.0)
    within = padded[torch.arange(rows, device=block.device), block[:, 0]].double().cumsum(-1)
    last = (size - 1 - block * BLOCK).clamp(max=BLOCK - 1)
    index = torch.minimum(torch.searchsorted(within, threshold, right=True), last)
    before = torch.where(index > 0, within.gather(1, (index - 1).clamp(min=0)), 0.0)
    interval = (within.gather(1, index) - before).clamp(min=torch.finfo(torch.float64).tiny)
    position = ((threshold - before) / interval).clamp(0.0, 1.0 - torch.finfo(torch.float64).eps)
    return (block * BLOCK + index).flatten(), position.flatten()


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Set tokens outside the nucleus to 0: (rows, vocabulary) → (rows, vocabulary)."""
    count = FIRST_TOP_K
    while True:
        top = probabilities.topk(min(count, probabilities.shape[1])).values
        cumulative = top.double().cumsum(-1)
        if count >= probabilities.shape[1] or bool((cumulative[:, -1] >= top_p).all()):
            break
        count *= 8
    last = (cumulative < top_p).sum(-1, keepdim=True).clamp(max=top.shape[1] - 1)
    return probabilities.masked_fill(probabilities < top.gather(1, last), 0.0)
