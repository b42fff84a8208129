"""The command `tamperfuse publish`."""

from pathlib import Path
from typing import Annotated

import typer

from tamperfuse.cli.options import Out, RunFolder, out_console
from tamperfuse.records.errors import LARGEST_SEED


def publish(
    folder: RunFolder,
    defense: Annotated[str, typer.Option(help="The defense, as the study names it.", metavar="NAME")],
    out: Out,
    policy: Annotated[
        Path | None, typer.Option(help="A release policy, whose checks go into the card.", metavar="FILE")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=LARGEST_SEED, help="Which of the study's models; by default its first seed."),
    ] = None,
) -> None:
    """Write the hardened model of a finished run as a folder to publish, with a model card of what the run measured.

    The card (README.md) has the price, the attacks, what holds and what does not, and the checks of the policy. Nothing is
    uploaded.

    Example: `tamperfuse publish runs/demo --defense sdd --policy studies/policy.yaml --out release`
    """
    from tamperfuse.commands.publish import publish_model

    gate = publish_model(folder, defense, out, seed=seed, policy=policy)
    if gate is not None and not gate.passed:
        out_console.print("The release gate does not pass: the card says which rules are not met.")
    out_console.print(f"The model is in {out}. Before you publish it, read its card, {out / 'README.md'}.")
