"""Variants of the pairs: SDD_reject's prefixes, multi-turn prompts, benign replay. All follow from hashes of the prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tamperfuse.corpora.examples import Example, Pair
from tamperfuse.pairing.draw import text_key
from tamperfuse.pairing.pairs import PAPER_REFUSAL_PREFIX
from tamperfuse.records.errors import UserError


class PrefixChoice:
    """SDD_reject's prefix for a prompt: the only one, or one of several by the prompt's hash."""

    def __init__(self, prefixes: Sequence[str], seed: int) -> None:
        """Take the prefixes; `paper` stands for the paper's."""
        self._prefixes = [PAPER_REFUSAL_PREFIX if prefix == "paper" else prefix.strip() for prefix in prefixes]
        self._seed = seed
        if not all(self._prefixes):
            raise UserError(
                "A refusal prefix is empty: give --refusal-prefix a sentence, or leave it out for plain SDD."
            )

    def __call__(self, prompt: str) -> str:
        """The prefix of this prompt; "" for plain SDD."""
        if not self._prefixes:
            return ""
        return self._prefixes[text_key(prompt, "prefix", self._seed) % len(self._prefixes)]


class History:
    """Puts a benign exchange before a share of the prompts, so that a defense also holds late in a conversation."""

    def __init__(self, exchanges: Sequence[Example], share: float, seed: int) -> None:
        """Take benign (prompt, response) examples and a share in [0, 1]."""
        self._exchanges = [example for example in exchanges if example.prompt and example.response]
        self._share, self._seed = share, seed
        if share and not self._exchanges:
            raise UserError(
                "--multi-turn needs benign prompts with responses: give --replay-source a source with both."
            )

    def __call__(self, pair: Pair) -> Pair:
        """The pair, after a benign exchange if its hash says so."""
        if text_key(pair.prompt, "turns", self._seed) >= self._share * 2**64:
            return pair
        exchange = self._exchanges[text_key(pair.prompt, "exchange", self._seed) % len(self._exchanges)]
        return replace(pair, history=((exchange.prompt, exchange.response),))


def replay_pairs(exchanges: Sequence[Example], share: float, sdd_pairs: int, seed: int) -> Iterator[Pair]:
    """Benign prompts with their own answers, as a share of all pairs.

    Args:
        exchanges: benign examples with both texts.
        share: of all pairs, in [0, 1).
        sdd_pairs: how many SDD pairs there are.
        seed: which ones are taken.

    Raises:
        UserError: the source holds too few.
    """
    usable = sorted((e for e in exchanges if e.prompt and e.response), key=lambda e: text_key(e.prompt, "replay", seed))
    wanted = round(sdd_pairs * share / (1 - share))
    if wanted > len(usable):
        raise UserError(
            f"--replay {share:g} asks for {wanted} benign pairs and its source holds {len(usable)}: "
            "give a larger --replay-source or a smaller share."
        )
    for example in usable[:wanted]:
        yield Pair(
            prompt=example.prompt,
            response=example.response,
            category=example.category,
            similarity=float("nan"),
            prompt_origin=example.origin,
            response_origin=example.origin,
            kind="replay",
        )
