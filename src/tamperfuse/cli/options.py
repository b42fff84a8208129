"""Options that several commands share, how their values are parsed, and the console for results."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tamperfuse.records.errors import LARGEST_SEED, UserError

if TYPE_CHECKING:
    from rich.table import Table

    from tamperfuse.study.sections import JudgeSpec

NARROWEST = 40  # columns of a console
_JUDGE = "judge."  # begins the names of a judge's parameters where a command has others too


class ResultsConsole(Console):
    """A console that goes on quietly when its reader has closed the pipe, so that the exit code stays that of the command."""

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        """Create a console that prints text as it is."""
        columns = os.environ.get("COLUMNS", "")
        if width is None and columns.isdecimal() and int(columns) < NARROWEST:
            width = NARROWEST  # nothing would be left of a table
        super().__init__(stderr=stderr, width=width, highlight=False, soft_wrap=True, markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        """Discard the rest of the output."""
        self.quiet = True
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


out_console = ResultsConsole()


def print_table(table: "Table") -> None:
    """Print a table of results; where output is no terminal and $COLUMNS is not set, as wide as it needs to be."""
    if out_console.is_terminal or os.environ.get("COLUMNS"):
        out_console.print(table)
    else:
        ResultsConsole(width=1_000).print(table)


Model = Annotated[
    str,
    typer.Argument(help="A Hub id, a model directory, a .gguf file, a peft adapter, or smollm2-135m (bundled)."),
]
ChatTemplate = Annotated[
    Path | None,
    typer.Option(
        help="Chat template (Jinja) of the model, and of the model before hardening; for base models, which have none.",
        metavar="FILE",
    ),
]
Out = Annotated[Path, typer.Option(help="Folder to write.", metavar="DIR")]
RunFolder = Annotated[Path, typer.Argument(help="The folder of a finished run.", metavar="DIR")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and its estimated cost, then stop.")]
Only = Annotated[
    list[str] | None,
    typer.Option(
        help="Run only the nodes whose names match, and what they depend on; `*` stands for any characters. Repeat for several.",
        metavar="PATTERN",
    ),
]
Disk = Annotated[
    float | None, typer.Option(help="Largest size of the run's folder, in GB (10**9 bytes).", metavar="GB", min=0.0)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]
ThreatSource = Annotated[
    str,
    typer.Option(
        help="builtin:cooking, builtin:gardening, or a file or data set of prompts, which is split if its rows name no `part`.",
        metavar="SRC",
    ),
]
Seed = Annotated[
    int, typer.Option(min=0, max=LARGEST_SEED, help="Decides data order, pairs, shots and adapter initialisation.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="A parameter as key=value; repeat for several.", metavar="KEY=VALUE"),
]
Reference = Annotated[
    str | None,
    typer.Option(
        help="The model before hardening; by default the one that the model's tamperfuse.json names, or without that file the "
        "model itself.",
        metavar="MODEL",
    ),
]
Prompts = Annotated[
    int | None,
    typer.Option(help="Number of evaluation prompts; by default all that the threat has.", metavar="N", min=2),
]
JudgeName = Annotated[
    str, typer.Option("--judge", help="The judge: builtin, phrases, … (see `tamperfuse list`).", metavar="NAME")
]
JudgeSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="A parameter of the judge as judge.key=value; repeat for several.", metavar="judge.KEY=VALUE"
    ),
]
ReportTo = Annotated[
    list[str] | None,
    typer.Option(
        help="Tracker to log trainings to: tensorboard, wandb, mlflow or trackio; repeat for several.", metavar="NAME"
    ),
]


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output, unwrapped; escaped where the terminal is not UTF-8."""
    unicode = out_console.encoding.lower().replace("_", "-").startswith("utf")
    out_console.print(json.dumps(value, indent=2, ensure_ascii=not unicode))


def three_decimals(value: float | None) -> str:
    """A number with three decimals; a dash for none."""
    return "–" if value is None else f"{value:.3f}"


def with_interval(share: float | None, interval: tuple[float, float] | None) -> str:
    """A share and its interval, with three decimals; a dash for none."""
    return three_decimals(share) + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def parse_settings(settings: list[str] | None) -> dict[str, Any]:
    """Parse `--set key=value` options; values are YAML 1.2, as in study files.

    Raises:
        UserError: a setting without a key or an equals sign, or a value that is not valid YAML.
    """
    from yaml import YAMLError

    from tamperfuse.records.yaml import parse_yaml, yaml_problem

    values = {}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(f"--set {setting!r} is not key=value: write, for example, --set steps=40.")
        if not value.strip():
            raise UserError(f"--set {setting!r} has no value: write one, or leave it out for the default.")
        try:
            values[key] = parse_yaml(value)
        except YAMLError as error:
            shown = setting if len(setting) <= 80 else f"{setting[:70]}…"
            raise UserError(
                f"--set {shown!r}: the value is not valid YAML ({yaml_problem(error)}); check its quotes and brackets."
            ) from error
    return values


def parse_judge_settings(judge: str, settings: list[str] | None) -> tuple["JudgeSpec", dict[str, Any]]:
    """Parse the judge of a command and its `--set` options, of which `judge.key=value` is a parameter of the judge.

    Returns:
        The judge, and the other parameters by name.

    Raises:
        UserError: as of :func:`parse_settings`, or an unknown judge, or a parameter that it does not have or refuses.
    """
    from tamperfuse.study.sections import parse_judge

    values = parse_settings(settings)
    parameters = {key.removeprefix(_JUDGE): value for key, value in values.items() if key.startswith(_JUDGE)}
    others = {key: value for key, value in values.items() if not key.startswith(_JUDGE)}
    return parse_judge({"judge": judge, "parameters": parameters}), others


def parse_reporters(names: list[str] | None) -> list[str]:
    """Check the names of trackers.

    Raises:
        UserError: one is unknown or not installed.
    """
    if not names:
        return []
    from tamperfuse.training.telemetry import check_reporters

    check_reporters(names)
    return names
