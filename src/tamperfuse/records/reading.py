"""Input files: checked before they are opened, read within limits, every failure a `UserError`."""

import errno
import os
import re
import stat
from pathlib import Path

from tamperfuse.records.errors import UserError

MAX_TEXT = 256 << 20  # bytes of a text file that is read whole
_KERNEL_FOLDERS = ("/proc/", "/sys/")  # their files look ordinary, and some never end or block the reader
_OF_MODELS = {".json", ".safetensors", ".jinja", ".model", ".txt"}
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def local_path(text: str) -> Path:
    """A path as the user wrote it, with a leading `~` expanded.

    Raises:
        UserError: the home directory is unknown, or the name has a null character or bytes that are not UTF-8.
    """
    if "\0" in text:
        raise UserError(f"The path {text!r} holds a null character: check the path.")
    _check_name(text)
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"The home directory in {text!r} is unknown: write the path out.") from error


def path_exists(path: Path) -> bool:
    """Whether there is something at a path.

    Raises:
        UserError: that cannot be found out: the name is too long, its links form a loop, or a folder is not accessible.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    return True


def check_file(path: Path) -> None:
    """Check that a path is an ordinary file, without opening it.

    Raises:
        UserError: it does not exist, is a folder, pipe, device or file of the kernel, or is not accessible.
    """
    _check_name(str(path))
    try:
        mode = path.stat().st_mode
        real = os.path.realpath(path)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    kind = _KINDS.get(stat.S_IFMT(mode), "no ordinary file")
    if stat.S_ISREG(mode) and not real.startswith(_KERNEL_FOLDERS):
        return
    if stat.S_ISREG(mode):
        kind = "a file of the operating system"
    elif stat.S_ISDIR(mode):
        raise UserError(f"{path} is not a file (it is a folder): check the path.")
    raise UserError(f"{path} is not a file to read (it is {kind}): write its content to a file and name that.")


def check_files_of(folder: Path) -> None:
    """Check that the files of a model or an encoder, and of its modules in subfolders, are ordinary ones.

    Raises:
        UserError: one is a pipe, a device, or a link to one, at which its reader would wait or read without end.
    """
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        if path.suffix.lower() in _OF_MODELS and not path.is_dir():
            check_file(path)


def check_files_named_in(path: Path) -> None:
    """Check that a text file is an ordinary one, and so are the files that its words name, as far as they exist.

    Raises:
        UserError: one is a pipe, a device, or a file of the kernel.
    """
    for word in re.findall(r"[^\s\"\x27\[\]{},]+", read_text(path)):
        for named in (Path(word), path.parent / word):
            if os.path.exists(named) and not os.path.isdir(named):
                check_file(named)


def unreadable(path: Path, error: Exception) -> UserError:
    """The sentence for a path that cannot be read.

    Args:
        path: the path; a long one is shortened.
        error: an `OSError`, or the `ValueError` of a path that no file can have.
    """
    name = str(path) if len(str(path)) <= 200 else f"{str(path)[:100]}…{str(path)[-40:]}"
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOENT, errno.ENOTDIR):
        problem = "it is a link to something that does not exist" if path.is_symlink() else "it does not exist"
        return UserError(f"{name} is not a file ({problem}): check the path.")
    if number == errno.EISDIR:
        return UserError(f"{name} is not a file (it is a folder): check the path.")
    if number in (errno.EACCES, errno.EPERM):
        return UserError(
            f"{name} cannot be read (permission denied): allow reading it with chmod, or name a copy of it."
        )
    if number == errno.ENAMETOOLONG:
        return UserError(f"{name} is too long a name for a file ({len(str(path)):,} characters): check the path.")
    if number == errno.ELOOP:
        return UserError(f"{name} is a link in a loop of links: name the file that it should lead to.")
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return UserError(f"{name} cannot be read ({reason}): check the file.")


def read_text(path: Path, limit: int = MAX_TEXT) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Args:
        path: an ordinary file.
        limit: bytes that it may have.

    Raises:
        UserError: it cannot be read, is not UTF-8, or is larger.
    """
    check_file(path)
    try:
        with path.open("rb") as stream:
            content = stream.read(limit + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(content) > limit:
        raise UserError(
            f"{path} is larger than {limit >> 20} MiB, the most that is read here: check that it is the right file."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from error


def _check_name(text: str) -> None:
    """Check that a file name is Unicode text: names that are not cannot be written into reports."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"The file name {text!a} is not UTF-8: rename the file.") from error
