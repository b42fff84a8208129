"""What `tamperfuse pair` can be told, with the defaults and the checks of numbers."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tamperfuse.corpora.sources import shown_names
from tamperfuse.models.encoder import DEFAULT_ENCODER
from tamperfuse.pairing.pairs import DEFAULT_MAX_DRAWS, DEFAULT_THRESHOLD, check_numbers
from tamperfuse.records.errors import UserError, unknown_name

EXPORT_NAMES = ("trl", "openai", "sharegpt", "alpaca", "axolotl", "datasets")


@dataclass(frozen=True)
class PairOptions:
    """Everything that decides which pairs come out.

    Attributes:
        harmful: sources of prompts, each `SRC` or `SRC=WEIGHT`; of a threat, the defender part is taken.
        responses: sources of responses, likewise.
        out: the folder to write.
        threshold: highest cosine of a kept pair, in (-1, 1].
        seed: decides draw, samples and variants.
        max_draws: draws before a prompt is dropped.
        match: "random" (the paper's) or "diverse" (no response used more than its share, subjects spread).
        prompts: how many prompts to keep, balanced over categories as in the paper; all if None.
        refusal_prefix: prefixes of SDD_reject, one sampled a pair; `paper` stands for the paper's.
        prompt_field: the prompts' column, where the layout is not a known one.
        response_field: the responses' column, likewise.
        category_field: the categories' column, likewise.
        revision: of Hub sources that name none.
        split: of Hub sources that name none.
        decontaminate: evaluation sets whose prompts must not be among the pairs.
        filters: whether responses are filtered for quality.
        language: ISO 639-1 code that responses are in; "any" for no such filter.
        near_duplicates: Jaccard similarity of word 5-grams from which two responses are the same, in (0, 1]; 1: off.
        score_quality: a model whose NLL ranks responses; None for no ranking.
        keep_best: the share of responses with the lowest NLL that is kept, in (0, 1].
        multi_turn: share of pairs that follow a benign exchange, in [0, 1].
        replay: share of benign replay pairs among all, in [0, 1).
        replay_source: where benign exchanges come from.
        encoder: a sentence-transformers model.
        dtype: "bfloat16" encodes twice as fast where the processor has it, with about 1 pair in 200 differing.
        workers: processes that encode on this machine.
        executor: "ray" encodes over a Ray cluster instead.
        tokenizer: a model whose tokenizer measures lengths in the audit; words are counted if None.
        export: layouts for training libraries, written beside the pairs.
    """

    harmful: tuple[str, ...]
    responses: tuple[str, ...]
    out: Path
    threshold: float = DEFAULT_THRESHOLD
    seed: int = 0
    max_draws: int = DEFAULT_MAX_DRAWS
    match: Literal["random", "diverse"] = "random"
    prompts: int | None = None
    refusal_prefix: tuple[str, ...] = ()
    prompt_field: str | None = None
    response_field: str | None = None
    category_field: str | None = None
    revision: str | None = None
    split: str | None = None
    decontaminate: tuple[str, ...] = ()
    filters: bool = True
    language: str = "en"
    near_duplicates: float = 0.8
    score_quality: str | None = None
    keep_best: float = 0.5
    multi_turn: float = 0.0
    replay: float = 0.0
    replay_source: str = "builtin:replay"
    encoder: str = DEFAULT_ENCODER
    dtype: Literal["float32", "bfloat16"] = "float32"
    workers: int = 1
    executor: Literal["local", "ray"] = "local"
    tokenizer: str | None = None
    export: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse impossible numbers.

        Raises:
            UserError: a number outside its range, no source, or an export that does not exist.
        """
        check_numbers(self.threshold, self.max_draws)
        if not self.harmful or not self.responses:
            raise UserError("There is nothing to pair: give --harmful and --responses, each at least once.")
        if self.category_field and not self.prompt_field:
            raise UserError(
                "--category-field names a column beside --prompt-field: give that as well, or leave both out."
            )
        for name in self.export:
            if name not in EXPORT_NAMES:
                raise unknown_name("export", name, EXPORT_NAMES)
        for name, value, fits, range_ in (
            ("prompts", self.prompts, self.prompts is None or self.prompts >= 1, "at least 1"),
            ("near-duplicates", self.near_duplicates, 0 < self.near_duplicates <= 1, "above 0 and at most 1"),
            ("keep-best", self.keep_best, 0 < self.keep_best <= 1, "above 0 and at most 1"),
            ("multi-turn", self.multi_turn, 0 <= self.multi_turn <= 1, "from 0 to 1"),
            ("replay", self.replay, 0 <= self.replay < 1, "from 0 to below 1"),
            ("workers", self.workers, self.workers >= 1, "at least 1"),
        ):
            if not fits:
                raise UserError(f"{value} makes no sense for --{name}: give a number {range_}.")

    def names(self) -> dict[str, str]:
        """What origins and the audit call each local source."""
        given = [source for source, _ in (*weighted(self.harmful), *weighted(self.responses))]
        return shown_names([*given, *self.decontaminate, self.replay_source])


def weighted(sources: tuple[str, ...]) -> list[tuple[str, float | None]]:
    """Split `SRC=WEIGHT`; the result is sorted, so that the order of the options changes nothing.

    Raises:
        UserError: a weight that is not positive, or weights on some sources only.
    """
    found: list[tuple[str, float | None]] = []
    for source in sources:
        match = re.fullmatch(r"(.+)=([+-]?[\d.]+(?:e[+-]?\d+)?|-?inf|nan)", source)
        if Path(source).exists():  # year=2024 is a name, not a weight
            match = None
        try:
            weight = float(match.group(2)) if match else None
        except ValueError:
            weight = None
        if weight is not None and not 0 < weight < float("inf"):
            raise UserError(
                f"The weight {weight:g} of {match.group(1) if match else source!r} is not positive: "
                "weights are shares such as SRC=2 beside SRC=1."
            )
        found.append((match.group(1), weight) if match and weight is not None else (source, None))
    if len({weight is None for _, weight in found}) > 1:
        raise UserError("Some sources have a weight and some have none: give every one a weight (SRC=1), or none.")
    return sorted(found, key=lambda pair: pair[0])
