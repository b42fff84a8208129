"""Making pairs: the loop that draws and matches, and the function that runs it on two lists of examples."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Literal, NamedTuple

import numpy as np

from tamperfuse.corpora.examples import Example, Pair, with_refusal_prefix
from tamperfuse.corpora.texts import normalise
from tamperfuse.models.encoder import TextEncoder
from tamperfuse.pairing.defaults import DEFAULT_MAX_DRAWS, DEFAULT_THRESHOLD
from tamperfuse.pairing.diverse_sampling import DiverseSampler
from tamperfuse.pairing.filters import DEFAULT_FILTERS, FilterSettings, ResponseFilters
from tamperfuse.pairing.matching import Matches, match
from tamperfuse.pairing.prompts import PromptReport, balance, clean_prompts
from tamperfuse.pairing.response_pool import ListPool, ResponsePool
from tamperfuse.pairing.sampling import RandomSampler, Sampler, text_key
from tamperfuse.records.errors import UserError, shown

BLOCK = 8192  # prompts matched together


@dataclass(frozen=True)
class PairSet:
    """Pairs, with counts of how they were made.

    Attributes:
        pairs: of one draw sorted by the key of their prompt, so that a prefix is a fair sample.
        dropped: prompts for which no irrelevant response was found.
        redraws: draws after a prompt's first.
        encoded_prompts: prompts that were encoded.
        encoded_responses: responses that were encoded, each counted once.
        threshold: highest cosine allowed.
        seed: of the draw.
        encoder: its name.
        first_similarity: cosine of every prompt's first draw that passed the filters, before any redraw for similarity.
        duplicate_prompts: prompts left out because another had the same text.
        duplicate_responses: responses likewise.
        refused: number of drawn responses that each filter refused.
    """

    pairs: list[Pair]
    dropped: list[str]
    redraws: int
    encoded_prompts: int
    encoded_responses: int
    threshold: float
    seed: int
    encoder: str
    first_similarity: list[float]
    duplicate_prompts: int = 0
    duplicate_responses: int = 0
    refused: dict[str, int] = field(default_factory=dict)


class Block(NamedTuple):
    """A run of prompts that were matched together.

    Attributes:
        prompts: the prompts.
        matches: the response of each, or None.
        pairs: the pairs, without refusal prefixes.
    """

    prompts: Sequence[Example]
    matches: Matches
    pairs: list[Pair]


def make_pairs(
    prompts: Sequence[Example],
    responses: Sequence[Example],
    encoder: TextEncoder,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    seed: int = 0,
    filters: FilterSettings | None = DEFAULT_FILTERS,
    refusal_prefix: str = "",
    max_draws: int = DEFAULT_MAX_DRAWS,
) -> PairSet:
    """Match every prompt with a random response that does not answer it (SDD paper, section 4.1).

    The same as `tamperfuse pair` with the same values, for corpora that fit into memory.

    Args:
        prompts: examples whose `prompt` counts; texts are normalised, and prompts that differ in case, punctuation or white
            space only count once.
        responses: examples whose `response` counts; equal texts count once.
        encoder: measures similarity, for example a :class:`tamperfuse.models.encoder.SentenceEncoder`.
        threshold: highest cosine of a pair, in (-1, 1].
        seed: of the draw.
        filters: quality filters for responses; None for none.
        refusal_prefix: put before every response (SDD_reject), for example
            :data:`tamperfuse.corpora.examples.PAPER_REFUSAL_PREFIX`; "" for plain SDD.
        max_draws: draws before a prompt is dropped, at least 1.

    Returns:
        The pairs, the same whatever the order of `prompts` and `responses`.

    Raises:
        UserError: a corpus without texts, an impossible number, or not one pair could be made.
    """
    check_numbers(threshold, max_draws)
    report = PromptReport()
    cleaned = balance(clean_prompts(prompts, report), None, seed, report)
    unique_prompts = sorted(cleaned, key=lambda prompt: text_key(prompt.prompt, "prompt", seed))
    unique_responses, duplicate_responses = _unique_responses(responses, seed)
    for role, examples in (("prompt", unique_prompts), ("response", unique_responses)):
        if not examples:
            raise UserError(
                f"There are no {role}s to pair: check that the source has texts in a column `{role}`, or, with `tamperfuse "
                f"pair`, name the column with --{role}-field."
            )
    response_filters = ResponseFilters(filters) if filters else None
    blocks = list(
        draw_pairs(
            unique_prompts,
            ListPool(unique_responses),
            encoder,
            threshold=threshold,
            seed=seed,
            filters=response_filters,
            max_draws=max_draws,
        )
    )
    pairs = [add_refusal_prefix(pair, refusal_prefix) for block in blocks for pair in block.pairs]
    if not pairs:
        raise no_pairs_error(len(unique_prompts), threshold, max_draws, response_filters)
    return PairSet(
        pairs=pairs,
        dropped=[prompt for block in blocks for prompt in dropped_prompts(block)],
        redraws=sum(block.matches.redraws for block in blocks),
        encoded_prompts=len(unique_prompts),
        encoded_responses=len(np.unique(np.concatenate([block.matches.encoded for block in blocks]))),
        threshold=threshold,
        seed=seed,
        encoder=encoder.name,
        first_similarity=[
            float(cosine) for block in blocks for cosine in block.matches.first_similarity if not math.isnan(cosine)
        ],
        duplicate_prompts=report.duplicates,
        duplicate_responses=duplicate_responses,
        refused=dict(response_filters.refused) if response_filters else {},
    )


def sample_responses(
    responses: Sequence[Example], count: int, seed: int, filters: FilterSettings | None = DEFAULT_FILTERS
) -> list[Example]:
    """A random sample of the responses that pass the filters, as a pool for several draws of :func:`make_pairs`.

    A model learns few responses sooner than many: each is then a likelier continuation of any prompt of the threat.

    Args:
        responses: examples whose `response` counts; equal texts count once.
        count: size of the sample, at least 1; all that pass if there are fewer.
        seed: of the sample.
        filters: quality filters; None for none.

    Returns:
        The sample, the same whatever the order of `responses`.
    """
    unique, _ = _unique_responses(responses, seed)
    accepts = ResponseFilters(filters) if filters else None
    sample: list[Example] = []
    for start in range(0, len(unique), count):
        block = unique[start : start + count]
        passes = accepts(block) if accepts else [True] * len(block)
        sample += [response for response, is_good in zip(block, passes, strict=True) if is_good]
        if len(sample) >= count:
            break
    return sample[:count]


def combined(draws: Sequence[PairSet]) -> PairSet:
    """One set of several draws on the same corpora, without repeated pairs.

    Redraws, first similarities and refused responses are those of all draws; what was encoded or left out as a duplicate is
    that of the first. A prompt counts as dropped if no draw has a pair of it.

    Args:
        draws: results of :func:`make_pairs` with different seeds, at least one.
    """
    pairs = {(pair.prompt, pair.response): pair for draw in draws for pair in draw.pairs}
    paired = {pair.prompt for pair in pairs.values()}
    return replace(
        draws[0],
        pairs=list(pairs.values()),
        dropped=sorted({prompt for draw in draws for prompt in draw.dropped} - paired),
        redraws=sum(draw.redraws for draw in draws),
        first_similarity=[cosine for draw in draws for cosine in draw.first_similarity],
        refused=dict(sum((Counter(draw.refused) for draw in draws), Counter())),
    )


def draw_pairs(
    prompts: Sequence[Example],
    pool: ResponsePool,
    encoder: TextEncoder,
    *,
    threshold: float,
    seed: int,
    filters: ResponseFilters | None,
    max_draws: int,
    strategy: Literal["random", "diverse"] = "random",
) -> Iterator[Block]:
    """Match prompts with responses, a block of prompts at a time. :func:`make_pairs` and `tamperfuse pair` both run this.

    Args:
        prompts: normalised, no text twice; in the order of their keys for "random", sorted by category before that for
            "diverse".
        pool: the responses.
        encoder: measures similarity.
        threshold: highest cosine of a pair, in (-1, 1].
        seed: of the draw.
        filters: which drawn responses may be used; None for all.
        max_draws: draws before a prompt is dropped, at least 1.
        strategy: "random" is the paper's; "diverse" spreads subjects and forms and bounds the uses of a response.

    Yields:
        Blocks in the order of the prompts.
    """
    diverse = DiverseSampler(pool, len(prompts)) if strategy == "diverse" else None
    for start in range(0, len(prompts), BLOCK):
        block = prompts[start : start + BLOCK]
        keys = np.array([text_key(prompt.prompt, "prompt", seed) for prompt in block], dtype=np.uint64)
        sampler: Sampler = diverse or RandomSampler(keys, len(pool), start)
        matches = match(block, sampler, pool, encoder, threshold=threshold, max_draws=max_draws, accept=filters)
        yield Block(block, matches, _pairs_of(block, matches))


def dropped_prompts(block: Block) -> list[str]:
    """Prompts of a block for which no irrelevant response was found."""
    matched = zip(block.prompts, block.matches.responses, strict=True)
    return [prompt.prompt for prompt, response in matched if response is None]


def add_refusal_prefix(pair: Pair, prefix: str) -> Pair:
    """The pair with a refusal before its response (SDD_reject); the pair itself if the prefix is ""."""
    return replace(pair, response=with_refusal_prefix(pair.response, prefix), refusal_prefix=prefix)


def check_numbers(threshold: float, max_draws: int) -> None:
    """Check the ranges of threshold and number of draws.

    Raises:
        UserError: a threshold outside (-1, 1], or less than one draw.
    """
    if not isinstance(threshold, Real) or not -1 < threshold <= 1:
        raise UserError(
            f"A threshold of {shown(repr(threshold))} is not a possible cosine: set --threshold of `tamperfuse pair`, or "
            "`pairs.threshold` in a study, to a number above -1 and at most 1."
        )
    if max_draws < 1:
        raise UserError(f"{max_draws} draws make no pair: set --max-draws of `tamperfuse pair` to at least 1.")


def no_pairs_error(prompts: int, threshold: float, max_draws: int, filters: ResponseFilters | None) -> UserError:
    """The error for a run that made no pair, with the likely cause.

    Args:
        prompts: how many there were.
        threshold: highest cosine allowed.
        max_draws: draws a prompt had.
        filters: the run's filters, None if it had none.
    """
    if filters is not None and filters.judged and sum(filters.refused.values()) == filters.judged:
        name, count = filters.refused.most_common(1)[0]
        return UserError(
            f"The filters refused each of the {filters.judged} responses that were drawn ({count} for {name!r}): "
            "use better responses, or set another language or no filters (--language and --no-filters of `tamperfuse pair`, "
            "`pairs.language` and `pairs.filters` in a study)."
        )
    return UserError(
        f"None of the {prompts} prompts found a response with cosine at most {threshold} in {max_draws} "
        "draws: use responses on other subjects, or a higher threshold (--threshold of `tamperfuse pair`, `pairs.threshold` in "
        "a study)."
    )


def _unique_responses(examples: Sequence[Example], seed: int) -> tuple[list[Example], int]:
    """Responses in the order of their keys, each text once (the one whose origin sorts first), and how many were left out."""
    unique: dict[int, Example] = {}
    duplicates = 0
    for example in examples:
        if response := normalise(example.response):
            key = text_key(response, "response", seed)
            duplicates += key in unique
            if key not in unique or example.origin < unique[key].origin:
                unique[key] = replace(example, response=response)
    return [unique[key] for key in sorted(unique)], duplicates


def _pairs_of(prompts: Sequence[Example], matches: Matches) -> list[Pair]:
    return [
        Pair(
            prompt=prompt.prompt,
            response=response.response,
            category=prompt.category,
            similarity=float(cosine),
            prompt_origin=prompt.origin,
            response_origin=response.origin,
        )
        for prompt, response, cosine in zip(prompts, matches.responses, matches.similarity, strict=True)
        if response is not None
    ]
