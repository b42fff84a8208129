"""The work of `tamperfuse pair`: read, filter, match, write, and document what was done.

    prompts    ── read ── normalise ── deduplicate ── decontaminate ── balance ──┐
                                                                                ├─ match ── variants ── pairs.parquet
    responses  ── read ── normalise ── deduplicate ── pool ── filters when drawn ┘             └─ audit, card, exports

Responses stream to disk and only drawn ones are filtered and encoded; pairs stream to parquet in blocks. Vectors are cached by
text, so a run that was killed resumes without encoding the same texts again.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tamperfuse.corpora.examples import Example, Pair
from tamperfuse.corpora.folders import ALL_SPLITS
from tamperfuse.corpora.overlap import plain
from tamperfuse.corpora.sources import read_source
from tamperfuse.corpora.texts import normalise
from tamperfuse.models.encoder import TextEncoder
from tamperfuse.pairing.audit import Audit
from tamperfuse.pairing.encoding import open_encoder
from tamperfuse.pairing.exports import write_exports
from tamperfuse.pairing.filters import FilterSettings, ResponseFilters
from tamperfuse.pairing.lengths import length_counter
from tamperfuse.pairing.options import PairOptions, split_weights
from tamperfuse.pairing.pairs import add_refusal_prefix, draw_pairs, no_pairs_error
from tamperfuse.pairing.prompts import EvaluationPrompts, PromptReport, balance, clean_prompts
from tamperfuse.pairing.quality import SAMPLE, QualityCut
from tamperfuse.pairing.response_pool import DiskPool, Source
from tamperfuse.pairing.sampling import text_key
from tamperfuse.pairing.store import ROWS_PER_GROUP, TABLE, check_out, write_table
from tamperfuse.pairing.variants import Exchanges, MultiTurn, PrefixChoice, replay_pairs
from tamperfuse.records.cache import cache_folder
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import locked_output, staged


@dataclass(frozen=True)
class PairResult:
    """What a run wrote.

    Attributes:
        out: the folder.
        summary: one paragraph for the terminal.
        pairs: number of pairs, replay included.
        dropped: number of prompts for which no irrelevant response was found.
    """

    out: Path
    summary: str
    pairs: int
    dropped: int


def pair_corpora(options: PairOptions, encoder: TextEncoder | None = None) -> PairResult:
    """Make a folder of pairs with its audit, card and exports; it appears complete or not at all.

    Args:
        options: the options of `tamperfuse pair`.
        encoder: used in place of the one that the options name, without a cache (for tests and benchmarks).

    Raises:
        UserError: unusable input or options.
    """
    options.check()
    if encoder is not None:
        return _pair(options, encoder)
    cache = cache_folder() / "pairing"
    with open_encoder(
        options.encoder, options.dtype, workers=options.workers, executor=options.executor, folder=cache
    ) as cached_encoder:
        return _pair(options, cached_encoder)


def _pair(options: PairOptions, encoder: TextEncoder) -> PairResult:
    check_out(options.out)
    count_length = length_counter(options.tokenizer)  # fails now, not after the work, if there is no such tokenizer
    prompt_report, exchange_report = PromptReport(), PromptReport()
    prefix = PrefixChoice(options.refusal_prefix, options.seed)
    evaluation = EvaluationPrompts(_read_evaluation_prompts(options), encoder)
    prompts = _prepare_prompts(options, evaluation, prompt_report)
    with locked_output(options.out), staged(options.out, directory=True) as folder, ExitStack() as pools:
        exchanges = _open_exchanges(options, folder, evaluation, exchange_report, pools)
        multi_turn = MultiTurn(exchanges, options.multi_turn, options.seed)
        pool = pools.enter_context(DiskPool(folder / "responses.pool", _response_sources(options), options.seed))
        if not pool.read:
            raise UserError(
                "There are no responses to pair: check the source, or name its column with --response-field."
            )
        filters = _filters(options, pool)
        audit = Audit(options, prompt_report, filters, pool, count_length, exchange_report)
        blocks = _pair_blocks(options, prompts, pool, encoder, audit, prefix, multi_turn)
        write_table(folder / TABLE, _with_replay(blocks, exchanges, options, audit))
        pools.close()
        if not audit.sdd_pairs:
            raise no_pairs_error(len(prompts), options.threshold, options.max_draws, audit.filters)
        write_exports(folder, options.export)
        summary = audit.write(folder)
    return PairResult(options.out, f"{options.out} holds {summary}", audit.pairs, audit.dropped)


def _read_prompts(options: PairOptions, source: str) -> Iterator[Example]:
    """Rows of a source of prompts; of a threat, the part that a defense may see."""
    return read_source(
        source,
        prompt_field=options.prompt_field,
        category_field=options.category_field,
        revision=options.revision,
        split=options.split,
        part="defender",
        mixed=len(options.harmful) + len(options.decontaminate) > 1,
        display_name=options.source_names().get(source),
    )


def _read_responses(options: PairOptions, source: str) -> Iterator[Example]:
    return read_source(
        source,
        response_field=options.response_field,
        revision=options.revision,
        split=options.split,
        mixed=len(options.responses) > 1,
        display_name=options.source_names().get(source),
    )


def _read_evaluation_prompts(options: PairOptions) -> list[str]:
    """The prompts of --decontaminate; of a threat, its evaluation part, since the prompts come from its defender part."""
    prompts: list[str] = []
    for source in options.decontaminate:
        examples = read_source(
            source, prompt_field=options.prompt_field, part="evaluation", split=ALL_SPLITS, mixed=True
        )
        source_prompts = [example.prompt for example in examples if example.prompt]
        if not source_prompts:
            raise UserError(
                f"{source} holds no evaluation prompt, so --decontaminate would check nothing: check the source, or name its "
                "column with --prompt-field."
            )
        prompts += source_prompts
    return prompts


def _open_exchanges(
    options: PairOptions, folder: Path, evaluation: EvaluationPrompts, report: PromptReport, pools: ExitStack
) -> Exchanges | None:
    """The benign exchanges, or None if no option needs them."""
    if not options.multi_turn and not options.replay:
        return None
    source = options.replay_source
    rows = read_source(source, display_name=options.source_names().get(source))
    complete = Source(source, (e for e in rows if normalise(e.prompt) and normalise(e.response)), None)
    pool = pools.enter_context(DiskPool(folder / "exchanges.pool", [complete], options.seed, exchanges=True))
    exchanges = Exchanges(pool, evaluation, report)
    if next(iter(exchanges), None) is None:
        raise UserError(
            f"{source} holds no benign prompt with a response, which --multi-turn and --replay need: give --replay-source "
            "a source with both."
        )
    return exchanges


def _prepare_prompts(options: PairOptions, evaluation: EvaluationPrompts, report: PromptReport) -> list[Example]:
    """All prompts that will be paired, in the order in which they are matched."""
    sources = split_weights(options.harmful)
    by_source = [clean_prompts(_read_prompts(options, source), report) for source, _ in sources]
    for (source, _), cleaned in zip(sources, by_source, strict=True):
        if not cleaned:
            raise UserError(f"{source} holds no prompt: check it, or name its column with --prompt-field.")
    across_sources = PromptReport()
    merged = clean_prompts([prompt for cleaned in by_source for prompt in cleaned], across_sources)
    report.duplicates += across_sources.duplicates
    left = {plain(prompt.prompt): prompt for prompt in evaluation.exclude_from(merged, report)}
    if not left:
        raise UserError("Every prompt is in the evaluation sets of --decontaminate: give other prompts.")
    names, weights = zip(*sources, strict=True)
    # A prompt of several sources is one of the source whose name sorts first, whatever their order.
    of_each: dict[str, list[Example]] = {}
    for name, cleaned in sorted(zip(names, by_source, strict=True), key=lambda entry: entry[0]):
        of_each[name] = [left.pop(key) for key in (plain(prompt.prompt) for prompt in cleaned) if key in left]
    prompts = _mix_by_weight([of_each[name] for name in names], weights, options.seed)
    prompts = balance(prompts, options.prompts, options.seed, report)
    key = {prompt.prompt: text_key(prompt.prompt, "prompt", options.seed) for prompt in prompts}
    if options.match == "diverse":
        return sorted(prompts, key=lambda prompt: (prompt.category, key[prompt.prompt]))
    return sorted(prompts, key=lambda prompt: key[prompt.prompt])


def _mix_by_weight(groups: Sequence[list[Example]], weights: Sequence[float | None], seed: int) -> list[Example]:
    """All prompts of all sources; with weights, the largest selection in which every source has its weight.

    Raises:
        UserError: a source with a weight has no prompt of its own.
    """
    shares = [weight for weight in weights if weight is not None]
    if not shares:
        return [prompt for group in groups for prompt in group]
    if not all(groups):
        raise UserError(
            "A source of prompts with a weight has none that the others or the evaluation sets do not have: leave it out."
        )
    unit = min(len(group) / weight for group, weight in zip(groups, shares, strict=True))
    chosen = []
    for group, weight in zip(groups, shares, strict=True):
        ordered = sorted(group, key=lambda prompt: text_key(prompt.prompt, "prompt", seed))
        chosen += ordered[: max(1, int(weight * unit + 1e-9))]
    return chosen


def _response_sources(options: PairOptions) -> list[Source]:
    return [Source(name, _read_responses(options, name), weight) for name, weight in split_weights(options.responses)]


def _filters(options: PairOptions, pool: DiskPool) -> ResponseFilters | None:
    if not options.filters:
        return None
    settings = FilterSettings(options.language, options.near_duplicates)
    quality = None
    if options.score_quality is not None:
        accept = ResponseFilters(settings)
        candidates = pool.fetch(range(min(SAMPLE * 2, len(pool))))
        accepted = zip(candidates, accept(candidates), strict=True)
        sample = [example.response for example, is_fit in accepted if is_fit][:SAMPLE]
        if not sample:
            raise UserError(
                "No response passes the filters, so none can be ranked: give other responses or --no-filters."
            )
        quality = QualityCut(options.score_quality, options.keep_best, sample, cache_folder() / "pairing")
    return ResponseFilters(settings, quality=quality)


def _pair_blocks(
    options: PairOptions,
    prompts: Sequence[Example],
    pool: DiskPool,
    encoder: TextEncoder,
    audit: Audit,
    prefix: PrefixChoice,
    multi_turn: MultiTurn,
) -> Iterator[list[Pair]]:
    """Blocks of pairs in the order of the prompts, with refusal prefixes and earlier turns."""
    blocks = draw_pairs(
        prompts,
        pool,
        encoder,
        threshold=options.threshold,
        seed=options.seed,
        filters=audit.filters,
        max_draws=options.max_draws,
        strategy=options.match,
    )
    for block in blocks:
        pairs = [multi_turn(add_refusal_prefix(pair, prefix(pair.prompt))) for pair in block.pairs]
        audit.add_block(block, pairs)
        yield pairs


def _with_replay(
    blocks: Iterator[list[Pair]], exchanges: Exchanges | None, options: PairOptions, audit: Audit
) -> Iterator[list[Pair]]:
    yield from blocks
    if options.replay and exchanges is not None:
        replay = replay_pairs(exchanges, options.replay, audit.sdd_pairs)
        while block := list(islice(replay, ROWS_PER_GROUP)):
            audit.add_replay(block)
            yield block
