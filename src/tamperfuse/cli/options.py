"""Options that several commands share, what becomes of their values, and where results are printed."""

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from tamperfuse.records.errors import UserError
from tamperfuse.records.yaml import parse_yaml

out_console = Console(highlight=False, soft_wrap=True)

Model = Annotated[str, typer.Argument(help="A Hub id, a local directory, a .gguf, or smollm2-135m (bundled).")]
Out = Annotated[Path, typer.Option(help="Folder to write.", metavar="DIR")]
ThreatSource = Annotated[
    str,
    typer.Option(
        help="builtin:cooking, builtin:gardening, a .jsonl with parts, or a data set to split.", metavar="SRC"
    ),
]
Seed = Annotated[int, typer.Option(help="Decides data order, pairs, shots, adapter initialisation.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A parameter, key=value; may be repeated.", metavar="KEY=VALUE")
]
Reference = Annotated[
    str | None, typer.Option(help="The model before hardening; by default the origin in its tamperfuse.json.")
]
ReportTo = Annotated[
    list[str] | None,
    typer.Option(
        help="Tracker to follow trainings with: tensorboard, wandb, mlflow or trackio; may be repeated.", metavar="NAME"
    ),
]


def parse_settings(given: list[str] | None) -> dict[str, Any]:
    """`--set key=value` pairs, each value read as YAML 1.2."""
    values = {}
    for pair in given or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UserError(f"--set {pair!r} is not key=value: write, for example, --set steps=40.")
        try:
            values[key] = parse_yaml(value)
        except yaml.YAMLError as error:
            raise UserError(
                f"--set {pair!r} has a value that cannot be read: quote it, or mend its brackets."
            ) from error
    return values


def parse_reporters(given: list[str] | None) -> list[str]:
    """Names of trackers.

    Raises:
        UserError: one is unknown or not installed.
    """
    from tamperfuse.training.telemetry import check_reporters

    names = given or []
    check_reporters(names)
    return names
