"""The exception for errors of the user, sentences for errors of the system, and suggestions for mistyped names."""

import errno
import math
import os
import re
import shlex
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

LARGEST_SEED = 2**32 - 1  # that numpy and transformers accept
MOST_LISTED = 40  # names in a message
LONGEST_REASON = 300  # characters of a library's message in one
LONGEST_SHOWN = 160  # characters of a path or a value in a message
# Control characters other than tab and newline, bidi embeddings, overrides, isolates, and halves of surrogate pairs.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

#: Words in the messages of the memory allocators of torch and CUDA.
_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "bad allocation",
    "storage size calculation overflow",
)


class UserError(Exception):
    """Bad input: the message says in one sentence what is wrong, where, and how to mend it.

    The command line prints the message and exits with code 2. Code that raises it must leave no incomplete files.
    """


class HubUnreachable(UserError):
    """A model or a data set of the Hub cannot be read since the Hub cannot be reached. A dry run does without it."""


def unknown_name(kind: str, name: object, names: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the most similar name that does.

    Args:
        kind: what the name stands for, in the singular ("defense", "attack", …).
        name: as the user wrote it.
        names: all names that exist.
    """
    sorted_names = sorted(names)
    near = get_close_matches(name, sorted_names, n=1) if isinstance(name, str) else []
    listed = ", ".join([*sorted_names[:MOST_LISTED], *(["…"] if len(sorted_names) > MOST_LISTED else [])])
    choices = f"choose one of: {listed}." if sorted_names else "there are none to choose from."
    hint = f"did you mean {near[0]!r}?" if near else choices
    return UserError(f"There is no {kind} named {shown(repr(name))}: {hint}")


def check_seed(seed: int) -> None:
    """Check a seed.

    Raises:
        UserError: it is not a whole number from 0 to 2**32 - 1.
    """
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"The seed {shown(seed)} cannot be used: choose a whole number from 0 to {LARGEST_SEED}.")


def shown(value: object) -> str:
    """A value as a message prints it: a long one is shortened in its middle."""
    text = str(value)
    half = LONGEST_SHOWN // 2
    return text if len(text) <= LONGEST_SHOWN else f"{text[:half]}…{text[-half:]}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for a message in parentheses; the name of its class if it has none."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "", first)[:LONGEST_REASON].rstrip(".: ")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; the allocators of torch and CUDA raise a RuntimeError."""
    if isinstance(error, RuntimeError | OverflowError):
        return any(words in str(error).lower() for words in _MEMORY)
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)


def printable(text: str) -> str:
    """Text of the user or of a model; characters that control a terminal, hide or reorder text become their numbers, [U+202E]."""
    return _CONTROL.sub(lambda match: f"[U+{ord(match.group()):04X}]", text.replace("\r\n", "\n"))


def kind_of(value: object) -> str:
    """What a value of a data file is, in words: "null", "a number", "a list"; a number that is not finite as it is written."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    kinds = (str, "text"), (bytes, "bytes"), (int | float, "a number"), (list | tuple, "a list"), (dict, "a mapping")
    return next((word for kind, word in kinds if isinstance(value, kind)), f"a {type(value).__name__}")


def quoted(value: str | Path) -> str:
    """A value as a shell needs it in a command that a message recommends."""
    return shlex.quote(str(value))


# errno → what is the matter with a path, and how to mend it.
_PROBLEMS = {
    errno.ENOENT: ("does not exist", "check the path"),
    errno.EACCES: ("may not be accessed (permission denied)", "change its permissions, or name another path"),
    errno.EPERM: (
        "may not be changed (operation not permitted)",
        "remove its immutable attribute, or name another path",
    ),
    errno.EROFS: ("is on a read-only file system", "name a path on another one"),
    errno.ENOSPC: ("does not fit: the disk is full", "free some space and run again"),
    errno.EDQUOT: ("does not fit: the disk quota is used up", "free some space and run again"),
    errno.EFBIG: ("exceeds the largest file size allowed here", "raise `ulimit -f`, or use another file system"),
    errno.ENAMETOOLONG: ("has a name that is too long", "shorten the name"),
    errno.ELOOP: ("is a loop of symbolic links", "correct the links"),
    errno.ENOTDIR: ("leads through a file as if it were a folder", "check the path"),
    errno.EISDIR: ("is a folder where a file is needed", "name a file, or move the folder away"),
    errno.EEXIST: ("exists already", "remove it, or name another path"),
    errno.ENOTEMPTY: ("exists and is not empty", "remove it, or name another path"),
    errno.EBUSY: ("is in use by the system", "name a folder inside it"),
    errno.EIO: ("met an input/output error", "check the disk"),
    errno.EMFILE: ("cannot be opened: this process has too many open files", "raise `ulimit -n`"),
    errno.ENFILE: ("cannot be opened: the machine has too many open files", "close some programs"),
    errno.ENOMEM: ("needs more memory than there is", "close some programs, or use a machine with more memory"),
    errno.EINVAL: ("is no valid path or file here", "name another path"),
}


def os_error_sentence(error: OSError, path: str | Path | None = None) -> str:
    """One sentence for an error of the operating system: which path, what is wrong, how to mend it.

    Args:
        error: the error.
        path: the path that the user knows, in place of the error's own.
    """
    filename = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else None
    place = str(path) if path is not None else filename
    problem, advice = _PROBLEMS.get(error.errno or 0, ("", ""))
    if not problem:
        reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
        return f"{shown(place)} failed: {reason}." if place else f"{type(error).__name__}: {shown(reason)}."
    return f"{shown(place or 'A file')} {problem}: {advice}."


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust, such as tokenizers or safetensors, met something that its authors did not expect.

    The class of such an error is made at run time, cannot be imported, and is no `Exception`.
    """
    return type(error).__name__ == "PanicException"


def is_torch_write_error(error: BaseException) -> bool:
    """Whether torch failed to write a file, which it reports as a RuntimeError without the system's reason."""
    text = str(error)
    return isinstance(error, RuntimeError) and ("inline_container" in text or "PytorchStreamWriter" in text)


def invalid_place(error: "ValidationError") -> str:
    """Where a file's content does not fit its model, as a message shows it: "defenses.sdd.seed", or "the top"."""
    return shown(".".join(str(part) for part in error.errors()[0]["loc"]) or "the top")
