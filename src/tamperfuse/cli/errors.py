"""Errors that nothing else turned into a message: each becomes one sentence.

Bad input is reported where it is read, as a `UserError`. What remains comes from the operating system, from libraries, or from
a mistake in tamperfuse.
"""

import traceback
from pathlib import Path

from tamperfuse.records.errors import UserError, is_out_of_memory, is_torch_write_error, os_error_sentence, shown

PACKAGE = Path(__file__).parents[1]


def sentence_of(error: BaseException) -> str:
    """What went wrong, where as far as is known, and how to mend it."""
    if isinstance(error, UserError):
        return str(error)
    text = shown(" ".join(str(error).split()))
    if is_out_of_memory(error):
        return f"There is not enough memory ({_place(error)}): lower the sizes (batch, rank, prompts), or use a larger machine."
    if is_torch_write_error(error):
        return f"A file could not be written completely ({_place(error)}): free space on the disk and run again."
    if isinstance(error, OSError):
        return os_error_sentence(error)
    if isinstance(error, RecursionError):
        return f"The input is nested too deeply ({_place(error)}): flatten it."
    if isinstance(error, UnicodeError):
        return f"A text has characters that cannot be encoded or decoded ({text}; {_place(error)}): save it as UTF-8."
    if isinstance(error, ImportError):
        return f"A package is missing or has an unsuitable version ({text}): install or update it with pip."
    return (
        f"The command cannot go on: {type(error).__name__}: {text or 'no further message'} ({_place(error)}); check the input, "
        "and run again with --debug for details."
    )


def _place(error: BaseException) -> str:
    """The innermost function of tamperfuse that the error passed through, which says what was being done."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(PACKAGE)
    ]
    if not frames:
        return "while starting"
    frame = frames[-1]
    module = ".".join(Path(frame.filename).relative_to(PACKAGE).with_suffix("").parts)
    return f"in {module}.{frame.name}, line {frame.lineno}"
