"""The application: registers the commands, sets up logging, and turns errors into messages and exit codes.

Commands import the packages they call inside their functions, so that `--help` does not wait for torch.
"""

import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

from tamperfuse import __version__
from tamperfuse.cli.attack import attack
from tamperfuse.cli.demo import demo
from tamperfuse.cli.diagnose import diagnose
from tamperfuse.cli.evaluate import evaluate
from tamperfuse.cli.gate import gate
from tamperfuse.cli.harden import harden
from tamperfuse.cli.judge import judge_app
from tamperfuse.cli.list_components import list_components
from tamperfuse.cli.options import out_console
from tamperfuse.cli.pair import pair
from tamperfuse.cli.report import report
from tamperfuse.cli.run import run
from tamperfuse.cli.theory import theory
from tamperfuse.records.errors import UserError
from tamperfuse.records.process import is_main, world_size
from tamperfuse.records.progress import show_progress

app = typer.Typer(
    name="tamperfuse",
    help="Harden open weights against malicious fine-tuning, and measure how far that holds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for command in (demo, run, report, gate, harden, attack, evaluate, pair, diagnose, theory):
    app.command()(command)
app.command("list")(list_components)
app.add_typer(judge_app, name="judge")

DISTRIBUTED_COMMANDS = ("harden", "attack")  # those that `accelerate launch` may start on several processes
MAIN_PROCESS_SECONDS = 3.0  # how long the other processes wait before they exit with the same error


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command line.

    Exit codes: 0 success, 1 a release gate that does not pass, 2 bad input, 130 Ctrl-C. Bad input and Ctrl-C print a
    message and no traceback.

    Args:
        arguments: the command line without the program's name; `sys.argv[1:]` by default.
    """
    errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
    if not errors.is_terminal:
        errors.width = 200  # do not wrap lines in a log file
    _set_up_output(errors)
    try:
        app(args=list(arguments) if arguments is not None else None, standalone_mode=True)
    except UserError as error:
        if not is_main():
            # Every process meets the same error, and the launcher stops all of them once one exits. The main process
            # must exit first, since it is the one that prints the message.
            time.sleep(MAIN_PROCESS_SECONDS)
        errors.print(f"tamperfuse: {error}", style="bold red")
        sys.exit(2)
    except KeyboardInterrupt:
        _print_interrupted(errors)
        sys.exit(130)
    except SystemExit as exit_:
        if exit_.code == 130:  # typer turns Ctrl-C into this
            _print_interrupted(errors)
        raise


def _print_interrupted(errors: Console) -> None:
    errors.print("Interrupted. Finished work is saved: run the same command again to resume.", style="bold")


def _set_up_output(errors: Console) -> None:
    """Send the package's log and progress bars to standard error, and silence those of the libraries."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Cannot enable progress bars")
    handler = RichHandler(console=errors, show_time=False, show_level=False, show_path=False)
    log = logging.getLogger("tamperfuse")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO if is_main() else logging.ERROR)
    out_console.quiet = not is_main()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    show_progress(errors if errors.is_terminal and is_main() else None)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        out_console.print(__version__)
        raise typer.Exit
    if world_size() > 1 and context.invoked_subcommand not in DISTRIBUTED_COMMANDS:
        raise UserError(
            f"`tamperfuse {context.invoked_subcommand}` was started on {world_size()} processes but runs in one: start "
            f"it without `accelerate launch`, which only {' and '.join(DISTRIBUTED_COMMANDS)} support."
        )


if __name__ == "__main__":
    main()
