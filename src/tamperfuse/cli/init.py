"""The command `tamperfuse init`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tamperfuse.cli.options import ThreatSource, out_console


def init(
    model: Annotated[str, typer.Option(help="The model to harden, as in `tamperfuse harden`.", metavar="MODEL")],
    threat: ThreatSource,
    file: Annotated[Path, typer.Argument(help="The study file to write.", metavar="[STUDY.yaml]")] = Path("study.yaml"),
    size: Annotated[
        Literal["quick", "long"],
        typer.Option(
            help="quick: a first study of ten to twenty minutes on two cores with AVX-512 bf16; long: a study of a night or more."
        ),
    ] = "quick",
) -> None:
    """Write a commented study for your own model and prompts.

    Every field is explained; the values of the other size are in comments. Prompts are a .txt file with one a line, or a
    .jsonl, .json, .csv or .parquet file with a column `prompt` and, if there are answers, `response`. About 30 prompts are the
    least; 150 or more are needed to conclude anything.

    Example: `tamperfuse init study.yaml --model smollm2-135m --threat builtin:cooking`
    """
    from tamperfuse.commands.init import write_study

    for line in write_study(file, model, threat, size):
        out_console.print(line)
