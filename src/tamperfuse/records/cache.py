"""The cache: the folder for what is computed once and used by later calls, such as converted models."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from tamperfuse.records.errors import UserError
from tamperfuse.records.reading import local_path


def cache_folder() -> Path:
    """The cache: $TAMPERFUSE_CACHE, or tamperfuse/ in the user's cache folder.

    Raises:
        UserError: none of them is known, or the path has a home directory that is not.
    """
    if os.environ.get("TAMPERFUSE_CACHE"):
        return local_path(os.environ["TAMPERFUSE_CACHE"])
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if caches.parts[:1] == ("~",):
        raise UserError("The home folder is unknown: set TAMPERFUSE_CACHE to a folder for the cache.")
    return caches / "tamperfuse"


@contextmanager
def locked_cache(path: Path) -> Iterator[None]:
    """Hold a lock, a file in the cache; waits while another process holds it.

    Raises:
        UserError: the cache cannot be written.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise UserError(
            f"The cache {path.parent} cannot be written ({error.strerror}): set TAMPERFUSE_CACHE to another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()
