"""Variants of the pairs: SDD_reject's prefixes, multi-turn prompts, benign replay. All follow from hashes of the prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from tamperfuse.corpora.examples import PAPER_REFUSAL_PREFIX, Example, Pair
from tamperfuse.pairing.draw import text_key
from tamperfuse.pairing.prompts import HeldOut, PromptReport
from tamperfuse.pairing.spool import ResponseSpool
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


class Exchanges:
    """Benign prompts with their own answers, on disk, in the order of a deck; what an evaluation set holds is left out."""

    def __init__(self, spool: ResponseSpool, held_out: HeldOut, report: PromptReport) -> None:
        """Take the exchanges, the evaluation sets, and the report that lists what was left out."""
        self._spool, self._held_out, self._report = spool, held_out, report

    def __len__(self) -> int:
        """How many there are at most."""
        return len(self._spool)

    def __iter__(self) -> Iterator[Example]:
        """One after the other."""
        for start in range(0, len(self._spool), _BLOCK):
            cards = self._spool.fetch(range(start, min(start + _BLOCK, len(self._spool))))
            yield from self._held_out.sift(cards, self._report)


_BLOCK = 1024
_HISTORIES = 4096  # exchanges that multi-turn prompts choose from, in memory


class History:
    """Puts a benign exchange before a share of the prompts, so that a defense also holds late in a conversation."""

    def __init__(self, exchanges: Exchanges | None, share: float, seed: int) -> None:
        """Take benign exchanges and a share in [0, 1]."""
        self._exchanges = list(islice(exchanges, _HISTORIES)) if exchanges is not None and share else []
        self._share, self._seed = share, seed

    def __call__(self, pair: Pair) -> Pair:
        """The pair, after a benign exchange if its hash says so."""
        if text_key(pair.prompt, "turns", self._seed) >= self._share * 2**64:
            return pair
        exchange = self._exchanges[text_key(pair.prompt, "exchange", self._seed) % len(self._exchanges)]
        return replace(pair, history=((exchange.prompt, exchange.response),))


def replay_pairs(exchanges: Exchanges, share: float, sdd_pairs: int) -> list[Pair]:
    """Benign prompts with their own answers, as a share of all pairs.

    Args:
        exchanges: in the order of the deck: the first ones are taken.
        share: of all pairs, in [0, 1).
        sdd_pairs: how many SDD pairs there are.

    Raises:
        UserError: the source holds too few.
    """
    wanted = round(sdd_pairs * share / (1 - share))
    found = list(islice(exchanges, wanted))
    if wanted > len(found):
        raise UserError(
            f"--replay {share:g} asks for {wanted} benign pairs and its source holds {len(found)}: "
            "give a larger --replay-source or a smaller share."
        )
    return [
        Pair(
            prompt=example.prompt,
            response=example.response,
            category=example.category,
            similarity=float("nan"),
            prompt_origin=example.origin,
            response_origin=example.origin,
            kind="replay",
        )
        for example in found
    ]
