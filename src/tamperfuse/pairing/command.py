"""What `tamperfuse pair` does: read, filter, match, write, account for it.

    prompts    ── read ── normalise ── once each ── decontaminate ── balance ─┐
                                                                             ├─ match ── variants ── pairs.parquet
    responses  ── read ── normalise ── once each ── spool ── filters on drawn ┘             └─ audit, card, exports

Responses stream to disk and only drawn ones are filtered and encoded; pairs stream to parquet in blocks. What was encoded
is kept by text, so a run that was killed goes on where it stopped.
"""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tamperfuse.corpora.examples import Example, Pair
from tamperfuse.corpora.sources import read_source
from tamperfuse.models.encoder import TextEncoder
from tamperfuse.models.load import cache_folder
from tamperfuse.pairing.audit import Audit
from tamperfuse.pairing.draw import text_key
from tamperfuse.pairing.encoders import open_encoder
from tamperfuse.pairing.exports import write_exports
from tamperfuse.pairing.filters import FilterSettings, ResponseFilters
from tamperfuse.pairing.lengths import length_counter
from tamperfuse.pairing.options import PairOptions, weighted
from tamperfuse.pairing.pairs import add_refusal_prefix, draw_pairs, no_pairs_error
from tamperfuse.pairing.prompts import HeldOut, PromptReport, balance, clean_prompts
from tamperfuse.pairing.quality import SAMPLE, QualityCut
from tamperfuse.pairing.spool import ResponseSpool, Source
from tamperfuse.pairing.store import TABLE, write_table
from tamperfuse.pairing.variants import Exchanges, History, PrefixChoice, replay_pairs
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import STAGING_PREFIX, staged


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


def pair_corpora(options: PairOptions, encoder: TextEncoder | None = None) -> PairResult:
    """Make a folder of pairs with its audit, card and exports; it appears whole or not at all.

    Args:
        options: what the command line says.
        encoder: in place of the one that the options name (for tests and benchmarks); it is used without a cache.

    Raises:
        UserError: unusable input or options.
    """
    options.check()
    if encoder is not None:
        return _pair(options, encoder)
    folder = cache_folder() / "pairing"
    with open_encoder(
        options.encoder, options.dtype, workers=options.workers, executor=options.executor, folder=folder
    ) as cached:
        return _pair(options, cached)


def _pair(options: PairOptions, encoder: TextEncoder) -> PairResult:
    _check_out(options.out)
    count = length_counter(options.tokenizer)  # a tokenizer that cannot be had is known now, not after the work
    report, benign = PromptReport(), PromptReport()
    prefix = PrefixChoice(options.refusal_prefix, options.seed)
    held_out = HeldOut(_held_out(options), encoder)
    prompts = _prompts(options, held_out, report)
    _clear_leftovers(options.out)
    with staged(options.out, directory=True) as folder, ExitStack() as spools:
        exchanges = _exchanges(options, folder, held_out, benign, spools)
        history = History(exchanges, options.multi_turn, options.seed)
        spool = spools.enter_context(ResponseSpool(folder / "responses.spool", _responses(options), options.seed))
        if not spool.read:
            raise UserError(
                "There is not one response to pair: check the source, or name its column with --response-field."
            )
        filters = _filters(options, spool)
        audit = Audit(options, report, filters, spool, count, benign)
        blocks = _matched(options, prompts, spool, encoder, filters, audit, prefix, history)
        write_table(folder / TABLE, _with_replay(blocks, exchanges, options, audit))
        spools.close()
        if not audit.kept:
            raise no_pairs_error(len(prompts), options.threshold, options.max_draws, audit.filters)
        write_exports(folder, options.export)
        summary = audit.write(folder)
    return PairResult(options.out, f"{options.out} holds {summary}", audit.pairs, audit.dropped)


def _check_out(out: Path) -> None:
    """An old folder of pairs is replaced; anything else that stands there is the user's.

    Raises:
        UserError: something else stands there, or a folder that must stay.
    """
    if not out.name or out.name == "..":
        raise UserError(
            f"{out} is no name for a new folder: give --out a folder that need not exist yet, such as runs/pairs."
        )
    if out.exists() and not (out.is_dir() and ((out / TABLE).is_file() or not any(out.iterdir()))):
        raise UserError(f"{out} exists and holds no pairs: choose another --out, or remove it first.")


def _clear_leftovers(out: Path) -> None:
    """Remove what a killed run to `out` left beside it; runs to `out`-something may be under way and are let alone."""
    mine = re.compile(re.escape(f"{STAGING_PREFIX}{out.name}-") + r"[0-9a-f]{8}(-old)?")
    for leftover in out.parent.glob(f"{STAGING_PREFIX}*"):
        if mine.fullmatch(leftover.name):
            shutil.rmtree(leftover, ignore_errors=True)


def _asked(options: PairOptions, source: str) -> Iterator[Example]:
    """A source of prompts; of a threat, the part that a defense may see."""
    return read_source(
        source,
        prompt_field=options.prompt_field,
        category_field=options.category_field,
        revision=options.revision,
        split=options.split,
        part="defender",
        mixed=len(options.harmful) + len(options.decontaminate) > 1,
        called=options.names().get(source),
    )


def _answers(options: PairOptions, source: str) -> Iterator[Example]:
    """A source of responses."""
    return read_source(
        source,
        response_field=options.response_field,
        revision=options.revision,
        split=options.split,
        mixed=len(options.responses) > 1,
        called=options.names().get(source),
    )


def _held_out(options: PairOptions) -> list[str]:
    """The evaluation prompts; of a threat, its evaluation part: the defender part is where the prompts come from."""
    found: list[str] = []
    for source in options.decontaminate:
        examples = read_source(source, prompt_field=options.prompt_field, part="evaluation", mixed=True)
        asked = [example.prompt for example in examples if example.prompt]
        if not asked:
            raise UserError(
                f"{source} holds no evaluation prompt, so --decontaminate would check nothing: check the source, or name its "
                "column with --prompt-field."
            )
        found += asked
    return found


def _exchanges(
    options: PairOptions, folder: Path, held_out: HeldOut, report: PromptReport, spools: ExitStack
) -> Exchanges | None:
    """The benign exchanges, if any are asked for."""
    if not options.multi_turn and not options.replay:
        return None
    source = options.replay_source
    read = read_source(source, called=options.names().get(source))
    whole = (example for example in read if example.prompt and example.response)
    spool = spools.enter_context(ResponseSpool(folder / "exchanges.spool", [(source, whole, None)], options.seed))
    exchanges = Exchanges(spool, held_out, report)
    if next(iter(exchanges), None) is None:
        raise UserError(
            f"{source} holds no benign prompt with a response, which --multi-turn and --replay need: give --replay-source "
            "a source with both."
        )
    return exchanges


def _prompts(options: PairOptions, held_out: HeldOut, report: PromptReport) -> list[Example]:
    """Every prompt that is to be paired, in the order in which they are matched."""
    sources = weighted(options.harmful)
    cleaned = [clean_prompts(_asked(options, source), report) for source, _ in sources]
    for (source, _), found in zip(sources, cleaned, strict=True):
        if not found:
            raise UserError(f"{source} holds not one prompt: check it, or name its column with --prompt-field.")
    prompts = _mixed_by_weight(cleaned, [weight for _, weight in sources], options.seed)
    if len(sources) > 1:
        across = PromptReport()
        prompts = clean_prompts(prompts, across)
        report.duplicates += across.duplicates
    prompts = held_out.sift(prompts, report)
    if not prompts:
        raise UserError("Every prompt is in the evaluation sets of --decontaminate: give other prompts.")
    prompts = balance(prompts, options.prompts, options.seed, report)
    key = {prompt.prompt: text_key(prompt.prompt, "prompt", options.seed) for prompt in prompts}
    if options.match == "diverse":
        return sorted(prompts, key=lambda prompt: (prompt.category, key[prompt.prompt]))
    return sorted(prompts, key=lambda prompt: key[prompt.prompt])


def _mixed_by_weight(groups: Sequence[list[Example]], weights: list[float | None], seed: int) -> list[Example]:
    """All prompts of all sources, or the most that can be had with every source at its weight."""
    given = [weight for weight in weights if weight is not None]
    if not given:
        return [prompt for group in groups for prompt in group]
    unit = min(len(group) / weight for group, weight in zip(groups, given, strict=True))
    chosen = []
    for group, weight in zip(groups, given, strict=True):
        ordered = sorted(group, key=lambda prompt: text_key(prompt.prompt, "prompt", seed))
        chosen += ordered[: max(1, int(weight * unit + 1e-9))]
    return chosen


def _responses(options: PairOptions) -> list[Source]:
    return [(source, _answers(options, source), weight) for source, weight in weighted(options.responses)]


def _filters(options: PairOptions, spool: ResponseSpool) -> ResponseFilters | None:
    if not options.filters:
        return None
    settings = FilterSettings(options.language, options.near_duplicates)
    quality = None
    if options.score_quality is not None:
        fair = ResponseFilters(settings)
        sample = spool.fetch(range(min(SAMPLE * 2, len(spool))))
        fit = [card.response for card, fine in zip(sample, fair(sample), strict=True) if fine][:SAMPLE]
        if not fit:
            raise UserError(
                "No response passes the filters, so none can be ranked: give other responses or --no-filters."
            )
        quality = QualityCut(options.score_quality, options.keep_best, fit, cache_folder() / "pairing")
    return ResponseFilters(settings, quality=quality)


def _matched(
    options: PairOptions,
    prompts: Sequence[Example],
    spool: ResponseSpool,
    encoder: TextEncoder,
    filters: ResponseFilters | None,
    audit: Audit,
    prefix: PrefixChoice,
    history: History,
) -> Iterator[list[Pair]]:
    """Blocks of pairs, in the order of the prompts."""
    blocks = draw_pairs(
        prompts,
        spool,
        encoder,
        threshold=options.threshold,
        seed=options.seed,
        filters=filters,
        max_draws=options.max_draws,
        strategy=options.match,
    )
    for block in blocks:
        pairs = [history(add_refusal_prefix(pair, prefix(pair.prompt))) for pair in block.pairs]
        audit.take(block.prompts, block.matches, pairs)
        yield pairs


def _with_replay(
    blocks: Iterator[list[Pair]], exchanges: Exchanges | None, options: PairOptions, audit: Audit
) -> Iterator[list[Pair]]:
    yield from blocks
    if options.replay and exchanges is not None:
        replay = replay_pairs(exchanges, options.replay, audit.kept)
        audit.take_replay(replay)
        yield replay
