"""What `tamperfuse pair` does: read, filter, match, write, account for it.

    prompts    ── read ── normalise ── once each ── decontaminate ── balance ─┐
                                                                             ├─ match ── variants ── pairs.parquet
    responses  ── read ── normalise ── once each ── spool ── filters on drawn ┘             └─ audit, card, exports

Responses stream to disk and only drawn ones are filtered and encoded; pairs stream to parquet in blocks. What was encoded
is kept by text, so a run that was killed goes on where it stopped.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tamperfuse.corpora.examples import Example
from tamperfuse.corpora.sources import read_source
from tamperfuse.models.load import cache_folder
from tamperfuse.pairing.audit import Audit
from tamperfuse.pairing.diverse import DiverseDealer
from tamperfuse.pairing.draw import text_key
from tamperfuse.pairing.encoders import CachedEncoder, LazyEncoder, RayEncoder
from tamperfuse.pairing.exports import write_exports
from tamperfuse.pairing.filters import ResponseFilters
from tamperfuse.pairing.match import Dealer, Encoder, RandomDealer, match
from tamperfuse.pairing.options import PairOptions, weighted
from tamperfuse.pairing.pairs import Pair, pairs_of
from tamperfuse.pairing.prompts import PromptReport, balance, clean_prompts, decontaminate
from tamperfuse.pairing.quality import SAMPLE, QualityCut
from tamperfuse.pairing.spool import ResponseSpool
from tamperfuse.pairing.store import TABLE, write_table
from tamperfuse.pairing.variants import History, PrefixChoice, replay_pairs
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import STAGING_PREFIX, staged

BLOCK = 8192  # prompts matched together


@dataclass(frozen=True)
class PairResult:
    """What a run left.

    Attributes:
        out: the folder.
        summary: one paragraph for the terminal.
        pairs: how many pairs there are, replay included.
        dropped: prompts that found no irrelevant response.
    """

    out: Path
    summary: str
    pairs: int
    dropped: int


def pair_corpora(options: PairOptions, encoder: Encoder | None = None) -> PairResult:
    """Make a folder of pairs with its audit, card and exports; it appears whole or not at all.

    Args:
        options: what the command line says.
        encoder: in place of the one that the options name (for tests and benchmarks); it is used without a cache.

    Raises:
        UserError: unusable input or options.
    """
    options.check()
    encoder = encoder or _encoder(options)
    report = PromptReport()
    prefix, exchanges = PrefixChoice(options.refusal_prefix, options.seed), _exchanges(options)
    history = History(exchanges, options.multi_turn, options.seed)
    prompts = _prompts(options, encoder, report)
    for leftover in options.out.parent.glob(f"{STAGING_PREFIX}{options.out.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a run that was killed
    with staged(options.out, directory=True) as folder:
        spool = ResponseSpool(folder / "responses.spool", _responses(options), options.seed)
        filters = _filters(options, spool)
        audit = Audit(options, report, filters, spool)
        blocks = _matched(options, prompts, spool, encoder, filters, audit, prefix, history)
        write_table(folder / TABLE, _with_replay(blocks, exchanges, options, audit))
        spool.close()
        (folder / "responses.spool").unlink()
        if not audit.kept:
            raise UserError(_nothing_left(options, audit, len(prompts)))
        write_exports(folder, options.export)
        summary = audit.write(folder)
    return PairResult(options.out, f"{options.out} holds {summary}", audit.pairs, audit.dropped)


def _encoder(options: PairOptions) -> Encoder:
    if options.executor == "ray":
        plain: Encoder = RayEncoder(options.encoder, options.dtype, options.workers)
    else:
        plain = LazyEncoder(options.encoder, options.dtype, options.workers)
    return CachedEncoder(plain, cache_folder() / "pairing", options.dtype)


def _asked(options: PairOptions, source: str) -> Iterator[Example]:
    """A source of prompts; of a threat, the part that a defense may see."""
    named = {"prompt_field": options.prompt_field, "category_field": options.category_field}
    return read_source(source, **named, revision=options.revision, split=options.split, part="defender")


def _answers(options: PairOptions, source: str) -> Iterator[Example]:
    """A source of responses."""
    field = options.response_field
    return read_source(source, response_field=field, revision=options.revision, split=options.split)


def _exchanges(options: PairOptions) -> list[Example]:
    return list(read_source(options.replay_source)) if options.multi_turn or options.replay else []


def _prompts(options: PairOptions, encoder: Encoder, report: PromptReport) -> list[Example]:
    """Every prompt that is to be paired, in the order in which they are matched."""
    sources = weighted(options.harmful)
    cleaned = [clean_prompts(_asked(options, source), report) for source, _ in sources]
    prompts = _mixed_by_weight(cleaned, [weight for _, weight in sources], options.seed)
    if len(sources) > 1:
        across = PromptReport()
        prompts = clean_prompts(prompts, across)
        report.duplicates += across.duplicates
    if not prompts:
        raise UserError("There is not one prompt to pair: check the source, or name its column with --prompt-field.")
    if options.decontaminate:
        # Of a threat, its evaluation part: the defender part is where the prompts come from.
        held_out = (read_source(source, part="evaluation") for source in options.decontaminate)
        evaluation = [example.prompt for examples in held_out for example in examples if example.prompt]
        prompts = decontaminate(prompts, evaluation, encoder, report)
        if not prompts:
            raise UserError("Every prompt is in the evaluation sets of --decontaminate: give other prompts.")
    prompts = balance(prompts, options.prompts, options.seed, report)
    key = {prompt.prompt: text_key(prompt.prompt, "prompt", options.seed) for prompt in prompts}
    if options.match == "diverse":
        return sorted(prompts, key=lambda prompt: (prompt.category, key[prompt.prompt]))
    return sorted(prompts, key=lambda prompt: key[prompt.prompt])


def _mixed_by_weight(groups: Sequence[list[Example]], weights: list[float | None], seed: int) -> list[Example]:
    """All prompts of all sources, or the most that can be had with every source at its weight."""
    if not all(groups):
        raise UserError("One of the sources of prompts holds none: check it, or leave it out.")
    given = [weight for weight in weights if weight is not None]
    if not given:
        return [prompt for group in groups for prompt in group]
    unit = min(len(group) / weight for group, weight in zip(groups, given, strict=True))
    chosen = []
    for group, weight in zip(groups, given, strict=True):
        ordered = sorted(group, key=lambda prompt: text_key(prompt.prompt, "prompt", seed))
        chosen += ordered[: max(1, int(weight * unit + 1e-9))]
    return chosen


def _responses(options: PairOptions) -> list[tuple[Iterator[Example], float | None]]:
    return [(_answers(options, source), weight) for source, weight in weighted(options.responses)]


def _filters(options: PairOptions, spool: ResponseSpool) -> ResponseFilters | None:
    if not options.filters:
        return None
    quality = None
    if options.score_quality is not None:
        fair = ResponseFilters(language=options.language, near_duplicates=options.near_duplicates)
        sample = spool.fetch(range(min(SAMPLE * 2, len(spool))))
        fit = [card.response for card, fine in zip(sample, fair(sample), strict=True) if fine][:SAMPLE]
        if not fit:
            raise UserError(
                "No response passes the filters, so none can be ranked: give other responses or --no-filters."
            )
        quality = QualityCut(options.score_quality, options.keep_best, fit, cache_folder() / "pairing")
    return ResponseFilters(language=options.language, near_duplicates=options.near_duplicates, quality=quality)


def _matched(
    options: PairOptions,
    prompts: Sequence[Example],
    spool: ResponseSpool,
    encoder: Encoder,
    filters: ResponseFilters | None,
    audit: Audit,
    prefix: PrefixChoice,
    history: History,
) -> Iterator[list[Pair]]:
    """Blocks of pairs, in the order of the prompts."""
    diverse = DiverseDealer(spool, len(prompts)) if options.match == "diverse" else None
    for start in range(0, len(prompts), BLOCK):
        block = prompts[start : start + BLOCK]
        keys = np.array([text_key(ask.prompt, "prompt", options.seed) for ask in block], dtype=np.uint64)
        dealer: Dealer = diverse or RandomDealer(keys, len(spool), start)
        found = match(
            block,
            dealer,
            spool,
            encoder,
            threshold=options.threshold,
            max_draws=options.max_draws,
            accept=filters,
        )
        pairs = [history(pair) for pair in pairs_of(block, found, prefix)]
        audit.take(block, found, pairs)
        yield pairs


def _with_replay(
    blocks: Iterator[list[Pair]], exchanges: Sequence[Example], options: PairOptions, audit: Audit
) -> Iterator[list[Pair]]:
    yield from blocks
    if options.replay:
        replay = list(replay_pairs(exchanges, options.replay, audit.kept, options.seed))
        audit.take_replay(replay)
        yield replay


def _nothing_left(options: PairOptions, audit: Audit, prompts: int) -> str:
    filters = audit.filters
    if filters is not None and filters.judged and sum(filters.taken.values()) == filters.judged:
        worst, count = filters.taken.most_common(1)[0]
        return (
            f"The filters refused each of the {filters.judged} responses that were drawn ({count} for {worst!r}): "
            "give better responses, another --language, or --no-filters."
        )
    return (
        f"None of the {prompts} prompts found a response with cosine at most {options.threshold} in {options.max_draws} "
        "draws: give a pool of responses on other subjects, or a higher --threshold."
    )
