"""The application: registers the commands, sets up logging, and turns errors into messages and exit codes.

Commands import the packages they call inside their functions, so that `--help` does not wait for torch.
"""

import io
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, TextIO, cast

import typer
from rich.console import Console
from rich.file_proxy import FileProxy
from rich.logging import RichHandler

import tamperfuse
from tamperfuse.cli.attack import attack
from tamperfuse.cli.compare_chat import compare_chat
from tamperfuse.cli.demo import demo
from tamperfuse.cli.diagnose import diagnose
from tamperfuse.cli.errors import sentence_of
from tamperfuse.cli.evaluate import evaluate
from tamperfuse.cli.gate import gate
from tamperfuse.cli.harden import harden
from tamperfuse.cli.init import init
from tamperfuse.cli.judge_calibrate import judge_calibrate
from tamperfuse.cli.judge_compare import judge_compare
from tamperfuse.cli.judge_run import judge_run
from tamperfuse.cli.list_components import list_components
from tamperfuse.cli.options import ResultsConsole, out_console
from tamperfuse.cli.pair import pair
from tamperfuse.cli.publish import publish
from tamperfuse.cli.report import report
from tamperfuse.cli.run import run
from tamperfuse.cli.status import status
from tamperfuse.cli.theory import theory
from tamperfuse.records.errors import UserError, is_panic, printable
from tamperfuse.records.process import is_main, world_size
from tamperfuse.records.progress import show_progress

app = typer.Typer(
    name="tamperfuse",
    help="Harden open weights against malicious fine-tuning, and measure how well the hardening holds.\n\n"
    "Example: `tamperfuse demo --out runs/demo`",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["--help", "-h"]},
)
for command in (
    demo,
    init,
    run,
    status,
    report,
    gate,
    publish,
    harden,
    attack,
    evaluate,
    pair,
    diagnose,
    compare_chat,
    theory,
):
    app.command()(command)
app.command("list")(list_components)
judge_app = typer.Typer(
    help="Judges of harmful execution: calibrate one, run another on a finished run, compare them.\n\n"
    "Example: `tamperfuse judge run runs/demo --judge phrases`",
    no_args_is_help=True,
)
judge_app.command("calibrate")(judge_calibrate)
judge_app.command("run")(judge_run)
judge_app.command("compare")(judge_compare)
app.add_typer(judge_app, name="judge")

DISTRIBUTED_COMMANDS = ("harden", "attack")  # those that `accelerate launch` may start on several processes
MAIN_PROCESS_SECONDS = 3.0  # how long the other processes wait before they exit with the same error


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command line.

    Exit codes: 0 success, 1 a release gate that does not pass, 2 bad input or another error, 130 Ctrl-C or
    SIGTERM. Errors, Ctrl-C and SIGTERM print a message and no traceback, unless `--debug` stands anywhere on the command line.

    Args:
        arguments: the command line without the program's name; `sys.argv[1:]` by default.
    """
    words = [_expand_home(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    debug = "--debug" in words
    errors = ResultsConsole(stderr=True)
    try:
        _set_up_output(errors)
        with _library_messages_above(errors), _sigterm_like_ctrl_c():
            app(args=[word for word in words if word != "--debug"], standalone_mode=True)
    except KeyboardInterrupt:
        _print_interrupted(errors)
        sys.exit(130)
    except SystemExit as exit_:
        if exit_.code == 130:  # typer turns Ctrl-C into this
            _print_interrupted(errors)
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        _let_main_process_exit_first(error)
        if debug:
            errors.print("".join(traceback.format_exception(error)))
        errors.print(f"tamperfuse: {printable(sentence_of(error))}", style="bold red")
        if isinstance(error, OSError):
            _drop_unwritten_output()
        sys.exit(2)


@contextmanager
def _sigterm_like_ctrl_c() -> Iterator[None]:
    """Within the block SIGTERM, which schedulers and `docker stop` send, interrupts as Ctrl-C does.

    Not where `accelerate launch` started several processes: it ends the others with SIGTERM once one has failed, and they may
    wait for that one where no Python code runs.
    """
    if world_size() > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _library_messages_above(errors: Console) -> Iterator[None]:
    """Within the block, what libraries write to standard error is printed above progress bars, and does not tear them apart.

    Handlers of logs hold the stream that they met when their library was imported, so it is replaced before that.
    """
    if not errors.is_interactive:
        yield
        return
    stream = sys.stderr
    sys.stderr = cast("TextIO", FileProxy(errors, stream))
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = stream


def _expand_home(word: str) -> str:
    """Replace `~` at the start of a path; a shell does so only at the start of a word, not in `--out=~/runs`."""
    option, equals, value = word.partition("=")
    if equals and option.startswith("--") and value.startswith("~"):
        return f"{option}={os.path.expanduser(value)}"
    return os.path.expanduser(word)


def _let_main_process_exit_first(error: BaseException) -> None:
    """Every process meets the same error, and the launcher stops all of them once one exits: the main one has to print it."""
    try:
        waits = isinstance(error, UserError) and not is_main()
    except UserError:  # the environment variable of the rank is the error
        waits = False
    if waits:
        time.sleep(MAIN_PROCESS_SECONDS)


def _drop_unwritten_output() -> None:
    """If standard output cannot be written (a full disk), discard what is left of it: the interpreter would try again."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_interrupted(errors: Console) -> None:
    errors.print("Interrupted. Finished work is saved: run the same command again to resume.", style="bold")


class _LineHandler(logging.Handler):
    """Prints log lines as they are, for output that is no terminal: RichHandler wraps them, and pads them with blanks."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line."""
        self.console.print(self.format(record))


def _set_up_output(errors: Console) -> None:
    """Send the package's log and progress bars to standard error, and silence those of the libraries.

    Raises:
        UserError: the environment variables of the rank are not usable.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that the terminal does not have is printed as "?"
            stream.reconfigure(errors="replace")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Cannot enable progress bars")
    handler = (
        RichHandler(console=errors, show_time=False, show_level=False, show_path=False)
        if errors.is_terminal
        else _LineHandler(errors)
    )
    log = logging.getLogger("tamperfuse")
    log.handlers, log.propagate = [handler], False
    main_process = is_main()
    log.setLevel(logging.INFO if main_process else logging.ERROR)
    out_console.quiet = not main_process
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    show_progress(errors if errors.is_interactive and main_process else None)  # not on a "dumb" terminal


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")] = False,  # read by `main`
) -> None:
    if version:
        out_console.print(tamperfuse.__version__)
        raise typer.Exit
    if world_size() > 1 and context.invoked_subcommand not in DISTRIBUTED_COMMANDS:
        raise UserError(
            f"`tamperfuse {context.invoked_subcommand}` was started on {world_size()} processes but runs in one: start "
            f"it without `accelerate launch`, which only {' and '.join(DISTRIBUTED_COMMANDS)} support."
        )


if __name__ == "__main__":
    main()
