"""Atomic files: written completely or not at all.

Everything is written beside its destination and renamed into place, so that a crash, a full disk or a `kill -9` leaves
either the old state or the new one. Writers run inside :func:`staged`, which also reports what the system refuses as a
`UserError`. A folder of results is written inside :func:`output_folder`, which holds its lock.

A folder that cannot be replaced (a mount point, the current directory, a folder in a parent that cannot be written) is
filled in place: files are staged inside it and then moved up.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock, Timeout

from tamperfuse.records.errors import UserError, is_torch_write_error, os_error_sentence, shown
from tamperfuse.records.process import is_main
from tamperfuse.records.reading import read_text

STAGING_PREFIX = ".tmp-"
LOCK = ".lock"
UNFINISHED, LOGS = "unfinished", "logs"
# The folder of the results of single nodes, and the file of each; a folder that has it is complete.
NODES, NODE = "nodes", "node.json"
# What an interrupted command leaves in a folder that is filled in place, and what a new file system has by itself.
_NO_RESULTS = (LOCK, UNFINISHED, LOGS, "lost+found")
_STREAM = re.compile(r"/dev/std(?P<name>out|err)|(/dev|/proc/self)/fd/(?P<fd>\d{1,6})")
# Errors of a disk, which come without a path: while a file is staged, they are about that file.
_OF_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@contextmanager
def staged(destination: Path, *, directory: bool = False) -> Iterator[Path]:
    """Yield a path to write to, which is renamed to `destination` when the block succeeds and removed when it fails.

    Args:
        destination: a file, or a directory when `directory` is true. An existing one is replaced; of a link, what it leads to.
        directory: whether the path is an empty directory, which is created; otherwise it is a file to create.

    Of several processes (see :mod:`tamperfuse.records.process`) only the main one renames; the others' files are removed.

    Raises:
        UserError: the disk is full, or the destination cannot be written: also a device or a pipe, which would be replaced.
    """
    final = _followed(destination)
    folder = final if directory and is_filled_in_place(final) else final.parent
    staging = folder / f"{STAGING_PREFIX}{final.name}-{uuid.uuid4().hex[:8]}"
    try:
        try:
            _make_folder(folder)
            if directory:
                staging.mkdir()
            elif final.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(final))
            elif is_device(final):
                raise UserError(f"{shown(destination)} is no regular file: name a file to write.")
        except OSError as error:
            raise _unwritable(destination, error) from error
        yield staging
        if is_main():
            if directory:
                _replace_folder(staging, final)
            else:
                os.replace(staging, final)
    except OSError as error:
        # Other errors come from what the block reads, and name their own path.
        if error.errno in _OF_DISK or str(error.filename).startswith((str(staging), str(final))):
            raise _unwritable(destination, error) from error
        raise
    except RuntimeError as error:
        if is_torch_write_error(error):
            raise UserError(
                f"{destination} cannot be written completely: free space on its disk, or write to another one."
            ) from error
        raise
    finally:
        if staging.is_dir():
            shutil.rmtree(staging, ignore_errors=True)
        else:
            with suppress(OSError):  # the path itself may be invalid, which was reported above
                staging.unlink()


def _make_folder(folder: Path) -> None:
    """Create a folder with its parents; an existing file in its place is the error that it is no folder."""
    try:
        _followed(folder).mkdir(parents=True, exist_ok=True)  # a link may lead to a folder that does not exist yet
    except FileExistsError as error:
        folder.stat()  # of a loop of links this is an error by itself
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error


def _unwritable(destination: Path, error: OSError) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"The disk that holds {destination} is full: free some space and run again.")
    reason = os_error_sentence(error, destination).rpartition(": ")[0].removeprefix(f"{shown(destination)} ")
    return UserError(
        f"{shown(destination)} cannot be written (it {reason}): make it writable, or write to another folder."
    )


def _followed(path: Path) -> Path:
    """The path without symbolic links and dots; as it is where the links are a loop."""
    try:
        return path.resolve(strict=False)
    except (OSError, RuntimeError):  # a loop is a RuntimeError up to Python 3.12
        return path


def is_filled_in_place(out: Path) -> bool:
    """Whether an output folder exists and cannot be replaced by renaming another one over it."""
    final = _followed(out)
    try:
        if not final.is_dir():
            return False
        return final in (_followed(Path.cwd()), *_followed(Path.cwd()).parents) or (
            os.path.ismount(final) or not os.access(final.parent, os.W_OK | os.X_OK)
        )
    except OSError:
        return False


def _replace_folder(staging: Path, final: Path) -> None:
    """Rename a staged folder into place; fill the destination in place if it cannot be renamed away."""
    if staging.parent == final:
        _move_up(staging, final)
        return
    if not final.exists():
        os.replace(staging, final)
        return
    # A directory cannot be renamed over one that is not empty: the old one is moved away first.
    old = staging.with_name(staging.name + "-old")
    try:
        os.replace(final, old)
    except OSError:  # a bind mount, for one, does not look like a mount point
        inside = final / staging.name
        shutil.copytree(staging, inside)
        _move_up(inside, final)
        return
    try:
        os.replace(staging, final)
    except BaseException:
        if not final.exists():
            os.replace(old, final)
        raise
    shutil.rmtree(old)


def _move_up(staging: Path, final: Path) -> None:
    """Replace what a folder holds by the content of a staging folder inside it."""
    for path in final.iterdir():
        if not is_leftover(path):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for path in sorted(staging.iterdir()):
        os.replace(path, final / path.name)
    staging.rmdir()


def check_fresh(out: Path) -> None:
    """Check that a folder of results can be written without replacing anything.

    Raises:
        UserError: the folder exists and is not empty, or cannot be read.
    """
    try:
        if not os.path.lexists(out):
            return
        if out.is_symlink() and not out.exists():
            _check_link(out)
        elif not out.is_dir() or any(not is_leftover(path) for path in out.iterdir()):
            raise UserError(f"{out} exists and is not empty: choose another --out, or remove it first.")
    except OSError as error:
        raise _unwritable(out, error) from error


def _check_link(out: Path) -> None:
    if _followed(out) == out or _followed(out).is_symlink():
        raise UserError(f"{out} is a loop of symbolic links: choose another --out, or correct the links.")


def is_leftover(path: Path) -> bool:
    """Whether a path in an output folder is no result: what interrupted commands and new file systems leave there."""
    return path.name in _NO_RESULTS or path.name.startswith(STAGING_PREFIX)


def beside(out: Path, name: str) -> Path:
    """A companion of an output folder: `OUT.name` beside it, or `OUT/name` where the folder is filled in place."""
    final = _followed(out)
    return final / name if is_filled_in_place(out) else final.with_name(f"{final.name}.{name}")


@contextmanager
def output_folder(out: Path) -> Iterator[Path]:
    """Yield a staging folder for results, which becomes `out` when the block succeeds; nothing is left when it fails.

    Raises:
        UserError: the folder is not empty or cannot be written, or another process is writing to it.
    """
    check_fresh(out)
    with locked_output(out):
        check_fresh(out)
        with staged(out, directory=True) as staging:
            yield staging


@contextmanager
def locked_output(out: Path) -> Iterator[None]:
    """Hold the lock of an output folder, and remove what killed writers left of it.

    Raises:
        UserError: another process holds it, or the place cannot be written.
    """
    if not is_main():
        yield
        return
    final = _followed(out)
    inside = is_filled_in_place(final)
    with locked(final / LOCK if inside else final.with_name(f".{final.name}{LOCK}"), out):
        leftover = re.compile(re.escape(f"{STAGING_PREFIX}{final.name}-") + r"[0-9a-f]{8}(-old)?")
        for path in (final if inside else final.parent).iterdir():
            if not leftover.fullmatch(path.name):
                continue
            if path.name.endswith("-old") and not final.exists():  # the writer was killed between its two renames
                os.replace(path, final)
            else:
                shutil.rmtree(path, ignore_errors=True)
        yield


@contextmanager
def locked(path: Path, out: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock file, which is removed at the end.

    Args:
        path: of the lock file; its folder is created.
        out: the folder that it protects, for messages.
        patience: seconds to wait for a process that holds it.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    lock = FileLock(path)
    try:
        _make_folder(path.parent)
        lock.acquire(timeout=patience)
    except Timeout as error:  # an OSError too
        raise UserError(f"Another run is using {out}: wait for it to end, or name another folder.") from error
    except OSError as error:
        raise _unwritable(out, error) from error
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        lock.release()


def is_device(path: Path) -> bool:
    """Whether a path is a device, a pipe or a socket, or a stream of this process: it is written into, and never replaced."""
    if _STREAM.fullmatch(str(path)):
        return True
    try:
        return not (stat.S_ISREG(path.stat().st_mode) or path.is_dir())
    except OSError:  # it does not exist, or leads nowhere
        return False


def _write_into(path: Path, text: str) -> None:
    """Write into a device, a pipe or a stream as it is: a file that a stream leads to keeps what it holds."""
    stream = _STREAM.fullmatch(str(path))
    try:
        if stream:
            descriptor = int(stream["fd"]) if stream["fd"] else {"out": 1, "err": 2}[stream["name"]]
            with os.fdopen(os.dup(descriptor), "w", encoding="utf-8") as opened:
                opened.write(text)
        else:
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _unwritable(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically; into a device or a pipe, such as /dev/stdout, as it is."""
    if is_device(path):
        _write_into(path, text)
        return
    with staged(path) as staging:
        staging.write_text(text, encoding="utf-8")


def check_output_file(path: Path, inputs: Iterable[Path]) -> None:
    """Check that a file to write is none of those that a command reads.

    Args:
        path: the file to write.
        inputs: files, and folders of files that stay as they are.

    Raises:
        UserError: it is one of them, or in one of these folders.
    """
    for one in inputs:
        within = one.is_dir() and path.resolve().is_relative_to(one.resolve())
        if within or (path.exists() and one.exists() and path.samefile(one) and not is_device(path)):
            raise UserError(
                f"{shown(path)} is an input of this command, and would be replaced: name another file to write."
            )


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with a final newline, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file that this package wrote.

    Raises:
        UserError: it cannot be read, is not UTF-8, or is not JSON (the line is named). NaN and infinity, which are not JSON,
            repeated keys and halves of surrogate pairs, which are no text, are errors as well.
    """
    text = read_text(path)
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=without_repeated_keys)
        if _SURROGATE.search(text):  # may also be a whole pair, which is decoded
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON (line {error.lineno}: {error.msg}): mend that line.") from error
    except UnicodeEncodeError as error:
        raise UserError(f"{path} is not valid JSON (a string holds half of a surrogate pair): mend it.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({json_problem(error)}): mend it.") from error
    return value


def json_problem(error: Exception) -> str:
    """What the JSON decoder found wrong, in a few words."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    if isinstance(error, RecursionError):
        return "nested too deep"
    return "a number of more than 4,300 digits" if "integer string conversion" in str(error) else str(error)


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The mapping of an object's keys and values.

    Raises:
        ValueError: a key occurs twice.
    """
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return mapping


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_hash(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value, as hex; equal values have equal hashes."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def clear_staging(folder: Path, name: str = "") -> None:
    """Remove staging files that interrupted writers left in `folder`: all of them, or those for the destination `name`."""
    if not folder.is_dir():
        return
    for leftover in folder.iterdir():
        if not leftover.name.startswith(f"{STAGING_PREFIX}{name}"):
            continue
        shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)
