"""Variants of the pairs: refusal prefixes (SDD_reject), multi-turn prompts, benign replay. Hashes of the prompt decide them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from tamperfuse.corpora.examples import PAPER_REFUSAL_PREFIX, Example, Pair
from tamperfuse.pairing.prompts import EvaluationPrompts, PromptReport
from tamperfuse.pairing.response_pool import ResponsePool
from tamperfuse.pairing.sampling import text_key
from tamperfuse.records.errors import UserError

_BLOCK = 1024  # exchanges read together
_MOST_EXCHANGES = 4096  # exchanges in memory, from which multi-turn prompts choose


class PrefixChoice:
    """The refusal prefix of a prompt: the only one, or one of several by the prompt's hash."""

    def __init__(self, prefixes: Sequence[str], seed: int) -> None:
        """Check the prefixes.

        Args:
            prefixes: any number of texts; `paper` is the paper's prefix.
            seed: of the choice.

        Raises:
            UserError: a prefix is empty.
        """
        self._prefixes = [PAPER_REFUSAL_PREFIX if prefix == "paper" else prefix.strip() for prefix in prefixes]
        self._seed = seed
        if not all(self._prefixes):
            raise UserError(
                "A refusal prefix is empty: give --refusal-prefix a sentence, or leave it out for plain SDD."
            )

    def __call__(self, prompt: str) -> str:
        """The prefix of a prompt; "" for plain SDD."""
        if not self._prefixes:
            return ""
        return self._prefixes[text_key(prompt, "prefix", self._seed) % len(self._prefixes)]


class Exchanges:
    """Benign prompts with their own answers, in the order of a pool, without evaluation prompts."""

    def __init__(self, pool: ResponsePool, evaluation: EvaluationPrompts, report: PromptReport) -> None:
        """Set up.

        Args:
            pool: examples with prompt and response.
            evaluation: prompts that must not be among them.
            report: lists what was left out.
        """
        self._pool, self._evaluation, self._report = pool, evaluation, report

    def __iter__(self) -> Iterator[Example]:
        """The exchanges one by one."""
        for start in range(0, len(self._pool), _BLOCK):
            examples = self._pool.fetch(range(start, min(start + _BLOCK, len(self._pool))))
            yield from self._evaluation.exclude_from(examples, self._report)


class MultiTurn:
    """Puts a benign exchange before a share of the prompts, so that a defense also learns prompts late in a conversation."""

    def __init__(self, exchanges: Exchanges | None, share: float, seed: int) -> None:
        """Read the exchanges.

        Args:
            exchanges: at least one if `share` is positive; None otherwise.
            share: of the pairs, in [0, 1].
            seed: of the choice.
        """
        self._exchanges = list(islice(exchanges, _MOST_EXCHANGES)) if exchanges is not None and share else []
        self._share, self._seed = share, seed

    def __call__(self, pair: Pair) -> Pair:
        """The pair, with a benign exchange as history if the prompt's hash is within the share."""
        if text_key(pair.prompt, "turns", self._seed) >= self._share * 2**64:
            return pair
        exchange = self._exchanges[text_key(pair.prompt, "exchange", self._seed) % len(self._exchanges)]
        return replace(pair, history=((exchange.prompt, exchange.response),))


def replay_pairs(exchanges: Exchanges, share: float, sdd_pairs: int) -> Iterator[Pair]:
    """Make pairs of benign prompts and their own answers.

    Args:
        exchanges: the first ones are used.
        share: of all pairs, in [0, 1).
        sdd_pairs: number of SDD pairs.

    Raises:
        UserError: there are too few exchanges.
    """
    count = round(sdd_pairs * share / (1 - share))
    pairs = 0
    for example in islice(exchanges, count):
        pairs += 1
        yield Pair(
            prompt=example.prompt,
            response=example.response,
            category=example.category,
            similarity=float("nan"),
            prompt_origin=example.origin,
            response_origin=example.origin,
            kind="replay",
        )
    if pairs < count:
        raise UserError(
            f"--replay {share:g} needs {count} benign pairs and its source holds {pairs}: "
            "give a larger --replay-source or a smaller share."
        )
