"""Atomic files: written completely or not at all.

Everything is written beside its destination and renamed into place, so that a crash, a full disk or a `kill -9` leaves
either the old state or the new one. Writers run inside :func:`staged`, which also reports a full disk as a `UserError`.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from tamperfuse.records.errors import UserError
from tamperfuse.records.process import is_main
from tamperfuse.records.reading import read_text

STAGING_PREFIX = ".tmp-"


@contextmanager
def staged(destination: Path, *, directory: bool = False) -> Iterator[Path]:
    """Yield a path to write to, which is renamed to `destination` when the block succeeds and removed when it fails.

    Args:
        destination: a file, or a directory when `directory` is true. An existing one is replaced.
        directory: whether the path is an empty directory, which is created; otherwise it is a file to create.

    Of several processes (see :mod:`tamperfuse.records.process`) only the main one renames; the others' files are removed.

    Raises:
        UserError: the disk is full, or the destination cannot be written.
    """
    staging = destination.parent / f"{STAGING_PREFIX}{destination.name}-{uuid.uuid4().hex[:8]}"
    try:
        _make_folders(destination, staging if directory else None)
        yield staging
        if not is_main():
            return
        if directory and destination.exists():
            # A directory cannot be renamed over one that is not empty: the old one is moved away first.
            old = staging.with_name(staging.name + "-old")
            os.replace(destination, old)
            os.replace(staging, destination)
            shutil.rmtree(old)
        else:
            os.replace(staging, destination)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"The disk that holds {destination} is full: free some space and run again.") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise UserError(f"{destination} cannot be written ({error.strerror}): choose another --out.") from error
        raise
    finally:
        if staging.is_dir():
            shutil.rmtree(staging, ignore_errors=True)
        else:
            with suppress(OSError):  # the path itself may be invalid, which was reported above
                staging.unlink()


def _make_folders(destination: Path, staging: Path | None) -> None:
    """Create the folder of `destination`, and the staging directory if there is one."""
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        if staging is not None:
            staging.mkdir()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{destination} cannot be written ({error.strerror}): choose another --out.") from error


def check_fresh(out: Path) -> None:
    """Check that a folder of results can be written without replacing anything.

    Raises:
        UserError: the folder exists and is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty: choose another --out, or remove it first.")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with staged(path) as staging:
        staging.write_text(text, encoding="utf-8")


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
    for leftover in folder.glob(f"{STAGING_PREFIX}{name}*"):
        shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)
