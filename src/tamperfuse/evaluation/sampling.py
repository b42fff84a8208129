"""Drawing tokens at random, in a way that does not depend on what else is in the batch.

Every prompt has its own sequence of uniform numbers, made from the seed, its tokens and how often it came before in the same
call; its n-th token is drawn with the n-th of them. Neither order, nor batch size, nor which other prompts there are changes
a draw. Probabilities do move by rounding with the shape of a batch: a number that falls within that rounding of the border
between two tokens may take the other one, which in float32 is rare.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tamperfuse.records.errors import UserError
from tamperfuse.records.files import content_hash

# The likeliest tokens that are looked at first for the nucleus: nearly always enough, and far cheaper than sorting all.
FIRST = 256


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: what logits are divided by, above 0.
        top_p: only the likeliest tokens that together have this probability are drawn from (nucleus sampling, Holtzman et
            al., ICLR 2020, section 3.1), in (0, 1]; tokens as likely as the last of them stay as well. 1 for all tokens.
        seed: decides every draw.

    Raises:
        UserError: a value outside its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature < float("inf"):
            raise UserError(
                f"temperature is {self.temperature}: give a number above 0, or leave sampling out to be greedy."
            )
        if not 0.0 < self.top_p <= 1.0:
            raise UserError(f"top_p is {self.top_p}: give a number above 0 and up to 1.")

    def seeds(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """A seed of its own for every prompt, 0 to 2⁶³ − 1; the same prompt asked again gets another one."""
        seen: Counter[tuple[int, ...]] = Counter()
        seeds = []
        for prompt in map(tuple, prompts):
            seeds.append(int(content_hash([self.seed, prompt, seen[prompt]])[:16], 16) >> 1)
            seen[prompt] += 1
        return seeds

    def uniforms(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Tensor:
        """The numbers that decide every token of every prompt: (prompts, new_tokens), float64, in [0, 1)."""
        sources = map(random.Random, self.seeds(prompts))
        numbers = [[source.random() for _ in range(new_tokens)] for source in sources]
        return torch.tensor(numbers, dtype=torch.float64).view(len(prompts), new_tokens)

    def draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """One token a row.

        Args:
            logits: (rows, vocabulary).
            uniform: (rows,), float64, in [0, 1).

        Returns:
            (rows,), token ids: the first whose cumulative probability, in the vocabulary's order, exceeds the number.
        """
        shares = torch.softmax(logits.float() / self.temperature, -1)
        if self.top_p < 1.0:
            shares = _nucleus(shares, self.top_p)
        reached = shares.double().cumsum(-1)
        wanted = uniform.to(reached.device)[:, None] * reached[:, -1:]
        return torch.searchsorted(reached, wanted, right=True).flatten().clamp(max=logits.shape[1] - 1)


def _nucleus(shares: Tensor, top_p: float) -> Tensor:
    """Set all but the likeliest tokens to 0: (rows, vocabulary) → (rows, vocabulary)."""
    looked_at = FIRST
    while True:
        top = shares.topk(min(looked_at, shares.shape[1])).values
        reached = top.double().cumsum(-1)
        if looked_at >= shares.shape[1] or bool((reached[:, -1] >= top_p).all()):
            break
        looked_at *= 8
    last = (reached < top_p).sum(-1, keepdim=True).clamp(max=top.shape[1] - 1)
    return shares.masked_fill(shares < top.gather(1, last), 0.0)
