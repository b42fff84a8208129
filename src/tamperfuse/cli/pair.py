"""The command `tamperfuse pair`: parses, calls, prints."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tamperfuse.pairing.options import PairOptions

Source = (
    "builtin:NAME, a local .jsonl .json .csv .parquet (also .gz, .zst), a directory of shards, or a Hub id "
    "(owner/name, then as needed /config, @revision, :split); repeat "
)
WEIGHT = "it to mix, with weights as SRC=2."


def pair(
    harmful: Annotated[list[str], typer.Option(help=f"Harmful prompts: {Source}{WEIGHT}", metavar="SRC")],
    responses: Annotated[list[str], typer.Option(help=f"Benign responses: {Source}{WEIGHT}", metavar="SRC")],
    out: Annotated[Path, typer.Option(help="Folder to write; an old one is replaced.", metavar="DIR")],
    threshold: Annotated[float, typer.Option(help="Highest cosine of a kept pair, in (-1, 1].")] = 0.25,
    seed: Annotated[int, typer.Option(help="Decides the draw, whatever the order of the files.")] = 0,
    max_draws: Annotated[int, typer.Option(help="Draws before a prompt is dropped.")] = 50,
    match: Annotated[
        Literal["random", "diverse"],
        typer.Option(
            help="random: the paper's; diverse: no response above its share, subjects and forms spread evenly."
        ),
    ] = "random",
    prompts: Annotated[int | None, typer.Option(help="Prompts to keep, in equal shares of the categories.")] = None,
    refusal_prefix: Annotated[
        list[str] | None,
        typer.Option(help="Put before every response (SDD_reject); `paper` is the paper's; repeated, one is sampled."),
    ] = None,
    prompt_field: Annotated[str | None, typer.Option(help="Column of the prompts, if the layout is unknown.")] = None,
    response_field: Annotated[str | None, typer.Option(help="Column of the responses, likewise.")] = None,
    category_field: Annotated[str | None, typer.Option(help="Column of the categories, likewise.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of Hub sources that name none.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of Hub sources that name none; train or the nearest to it.")
    ] = None,
    decontaminate: Annotated[
        list[str] | None,
        typer.Option(help="Evaluation set whose prompts must not be in the pairs; repeat it.", metavar="SRC"),
    ] = None,
    filters: Annotated[bool, typer.Option(help="Filter responses for quality.")] = True,
    language: Annotated[str, typer.Option(help="Language of the responses (ISO 639-1), or any.")] = "en",
    near_duplicates: Annotated[float, typer.Option(help="Jaccard similarity of near duplicates; 1 is off.")] = 0.8,
    score_quality: Annotated[
        str | None, typer.Option(help="Model whose likelihood ranks the responses.", metavar="MODEL")
    ] = None,
    keep_best: Annotated[float, typer.Option(help="Share that --score-quality keeps.")] = 0.5,
    multi_turn: Annotated[float, typer.Option(help="Share of pairs that follow a benign exchange.")] = 0.0,
    replay: Annotated[float, typer.Option(help="Share of benign pairs (own answers) among all.")] = 0.0,
    replay_source: Annotated[str, typer.Option(help="Benign exchanges.", metavar="SRC")] = "builtin:replay",
    encoder: Annotated[str, typer.Option(help="Sentence-transformers model.")] = "all-MiniLM-L6-v2",
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Precision of the encoder.")] = "float32",
    workers: Annotated[int, typer.Option(help="Encoding processes on this machine.")] = 1,
    executor: Annotated[Literal["local", "ray"], typer.Option(help="ray: encode over Ray Data.")] = "local",
    tokenizer: Annotated[
        str | None, typer.Option(help="Target model, for lengths in tokens in the audit.", metavar="MODEL")
    ] = None,
    export: Annotated[
        list[str] | None,
        typer.Option(help="Layout to write as well: trl, openai, sharegpt, alpaca, axolotl, datasets; repeat it."),
    ] = None,
) -> None:
    """Make SDD pairs: harmful prompts, each with a good response that does not answer it.

    The folder holds pairs.parquet, pairs.json, the audit as page and JSON (audit.html, audit.json), a card (README.md)
    and the exports.

    Example:
        tamperfuse pair --harmful builtin:cooking --responses builtin:benign --out runs/pairs
    """
    from tamperfuse.pairing.command import pair_corpora  # loads models' libraries: not for --help

    result = pair_corpora(
        PairOptions(
            harmful=tuple(harmful),
            responses=tuple(responses),
            out=out,
            threshold=threshold,
            seed=seed,
            max_draws=max_draws,
            match=match,
            prompts=prompts,
            refusal_prefix=tuple(refusal_prefix or ()),
            prompt_field=prompt_field,
            response_field=response_field,
            category_field=category_field,
            revision=revision,
            split=split,
            decontaminate=tuple(decontaminate or ()),
            filters=filters,
            language=language,
            near_duplicates=near_duplicates,
            score_quality=score_quality,
            keep_best=keep_best,
            multi_turn=multi_turn,
            replay=replay,
            replay_source=replay_source,
            encoder=encoder,
            dtype=dtype,
            workers=workers,
            executor=executor,
            tokenizer=tokenizer,
            export=tuple(export or ()),
        )
    )
    typer.echo(result.summary)
