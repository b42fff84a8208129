"""Options of `tamperfuse pair`: their types, defaults, help and checks.

The command line imports this module for every command, so what takes time to import is imported inside functions.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tamperfuse.models.bundled import DEFAULT_ENCODER
from tamperfuse.pairing.defaults import DEFAULT_MAX_DRAWS, DEFAULT_THRESHOLD, LANGUAGE, NEAR_DUPLICATES
from tamperfuse.records.errors import UserError, check_seed, unknown_name
from tamperfuse.records.reading import local_path, path_exists

EXPORT_NAMES = ("trl", "openai", "sharegpt", "alpaca", "axolotl", "datasets")
INPUT, MATCHING, FILTERS, VARIANTS, ENCODING, OUTPUT = "Input", "Matching", "Filters", "Variants", "Encoding", "Output"

KEEP_BEST = 0.5  # share of responses that --score-quality keeps


@dataclass(frozen=True)
class Help:
    """What the command line shows about an option.

    Attributes:
        text: one or two sentences.
        group: heading that the option is listed under.
        metavar: name of the value; None for the name of its type.
    """

    text: str
    group: str
    metavar: str | None = None


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """Options of `tamperfuse pair`: everything that decides which pairs are made and what is written.

    The command line is built from these fields: a field `max_draws` is the option `--max-draws`.

    SRC is `builtin:NAME`, a local file or directory, or a Hub data set (see :func:`tamperfuse.corpora.sources.read_source`).
    """

    harmful: Annotated[
        tuple[str, ...],
        Help("Harmful prompts; repeat to mix, with weights as SRC=2. Of a threat, the defender part.", INPUT, "SRC"),
    ]
    responses: Annotated[tuple[str, ...], Help("Benign responses; repeat to mix, with weights as SRC=2.", INPUT, "SRC")]
    prompt_field: Annotated[
        str | None, Help("Column of prompts or conversations, if the layout is unknown.", INPUT, "NAME")
    ] = None
    response_field: Annotated[
        str | None, Help("Column of responses or conversations, if the layout is unknown.", INPUT, "NAME")
    ] = None
    category_field: Annotated[str | None, Help("Column of the categories; needs --prompt-field.", INPUT, "NAME")] = None
    revision: Annotated[str | None, Help("Revision of Hub sources that name none.", INPUT, "NAME")] = None
    split: Annotated[
        str | None,
        Help(
            "Split of folders and Hub sources that name none; train or the nearest to it by default.",
            INPUT,
            "NAME",
        ),
    ] = None
    prompts: Annotated[
        int | None, Help("Prompts to use, in equal shares of the categories; all by default.", INPUT, "N")
    ] = None
    decontaminate: Annotated[
        tuple[str, ...],
        Help("Evaluation set whose prompts must not be in the pairs; repeat for several.", INPUT, "SRC"),
    ] = ()

    threshold: Annotated[float, Help("Highest cosine of a pair, in (-1, 1].", MATCHING, "X")] = DEFAULT_THRESHOLD
    seed: Annotated[
        int, Help("Seed of draw, samples and variants; the order of the files changes nothing.", MATCHING, "N")
    ] = 0
    max_draws: Annotated[int, Help("Draws before a prompt is dropped.", MATCHING, "N")] = DEFAULT_MAX_DRAWS
    match: Annotated[
        Literal["random", "diverse"],
        Help(
            "`random`: as in the paper; `diverse`: no response is used more than its share, and subjects and forms are "
            "spread evenly.",
            MATCHING,
            "HOW",
        ),
    ] = "random"

    filters: Annotated[bool, Help("Filter responses for quality.", FILTERS)] = True
    language: Annotated[str, Help("Language of the responses (ISO 639-1), or any.", FILTERS, "CODE")] = LANGUAGE
    near_duplicates: Annotated[
        float, Help("Jaccard similarity from which two responses are duplicates, in (0, 1]; 1 is off.", FILTERS, "X")
    ] = NEAR_DUPLICATES
    score_quality: Annotated[
        str | None, Help("Model whose likelihood ranks the responses; no ranking by default.", FILTERS, "MODEL")
    ] = None
    keep_best: Annotated[float, Help("Share of responses that --score-quality keeps, in (0, 1].", FILTERS, "X")] = (
        KEEP_BEST
    )

    refusal_prefix: Annotated[
        tuple[str, ...],
        Help(
            "Text before every response (SDD_reject); `paper` is the paper's. Repeated, each prompt gets one of them.",
            VARIANTS,
            "TEXT",
        ),
    ] = ()
    multi_turn: Annotated[float, Help("Share of pairs that follow a benign exchange, in [0, 1].", VARIANTS, "X")] = 0.0
    replay: Annotated[
        float, Help("Share of benign prompts with their own answers among all pairs, in [0, 1).", VARIANTS, "X")
    ] = 0.0
    replay_source: Annotated[str, Help("Benign exchanges, for --multi-turn and --replay.", VARIANTS, "SRC")] = (
        "builtin:replay"
    )

    encoder: Annotated[str, Help("Sentence-transformers model.", ENCODING, "NAME")] = DEFAULT_ENCODER
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        Help(
            "Precision of the encoder, float32 or bfloat16, which is about twice as fast where the processor has it and changes "
            "few pairs.",
            ENCODING,
            "TYPE",
        ),
    ] = "float32"
    workers: Annotated[int, Help("Processes, or Ray tasks, that encode.", ENCODING, "N")] = 1
    executor: Annotated[
        Literal["local", "ray"], Help("`local`: encode on this machine; `ray`: over Ray Data.", ENCODING, "WHERE")
    ] = "local"

    out: Annotated[Path, Help("Folder to write; an earlier folder of pairs is replaced.", OUTPUT, "DIR")]
    tokenizer: Annotated[
        str | None, Help("Model whose tokens measure lengths in the audit; words by default.", OUTPUT, "MODEL")
    ] = None
    export: Annotated[
        tuple[str, ...],
        Help(
            f"Layout for a training library, written as well: {', '.join(EXPORT_NAMES)}; repeat for several.",
            OUTPUT,
            "NAME",
        ),
    ] = ()

    def check(self) -> None:
        """Check numbers and names.

        Raises:
            UserError: a number outside its range, no source, or an unknown export.
        """
        from tamperfuse.pairing.pairs import check_numbers

        check_numbers(self.threshold, self.max_draws)
        check_seed(self.seed)
        if not self.harmful or not self.responses:
            raise UserError("There is nothing to pair: give --harmful and --responses, each at least once.")
        for option, sources in (("harmful", self.harmful), ("responses", self.responses)):
            names = [source for source, _ in split_weights(sources)]
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise UserError(f"--{option} names {twice} twice: leave one out.")
        if self.category_field and not self.prompt_field:
            raise UserError(
                "--category-field names a column beside --prompt-field: give that as well, or leave both out."
            )
        if self.keep_best != KEEP_BEST and not self.score_quality:
            raise UserError(
                "--keep-best ranks by a model's likelihood: give --score-quality as well, or leave both out."
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
                raise UserError(f"{value} cannot be used for --{name}: give a number {range_}.")

    def source_names(self) -> dict[str, str]:
        """Names of the local sources in origins and in the audit."""
        from tamperfuse.corpora.sources import display_names

        weighted = [source for source, _ in (*split_weights(self.harmful), *split_weights(self.responses))]
        return display_names([*weighted, *self.decontaminate, self.replay_source])


def split_weights(sources: tuple[str, ...]) -> list[tuple[str, float | None]]:
    """Split `SRC=WEIGHT` into source and weight (None if it has none), sorted so that the order of options changes nothing.

    Raises:
        UserError: a weight that is not positive, or weights on some sources only.
    """
    split: list[tuple[str, float | None]] = []
    for source in sources:
        match = re.fullmatch(r"(.+)=([+-]?[\d.]+(?:e[+-]?\d+)?|-?inf|nan)", source)
        if path_exists(local_path(source)):  # a file named year=2024 has no weight
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
        split.append((match.group(1), weight) if match and weight is not None else (source, None))
    if len({weight is None for _, weight in split}) > 1:
        raise UserError("Some sources have a weight and some have none: give every one a weight (SRC=1), or none.")
    return sorted(split, key=lambda pair: pair[0])
