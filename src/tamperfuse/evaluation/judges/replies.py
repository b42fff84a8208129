"""Replies of endpoints on disk, so that no reply is paid for twice: an SQLite file in the cache.

A reply is stored before the next request of its thread begins, and survives a `kill -9`.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from tamperfuse.records.cache import cache_folder, locked_cache
from tamperfuse.records.errors import UserError

FILE = "judge-replies.sqlite"
_WAIT = 60  # seconds for other processes that write


class Replies:
    """Stored replies by key; safe to use from several threads and processes of one machine.

    Args:
        connection: to the database.
        path: of its file, for messages.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self._path, self._lock = connection, path, Lock()

    def close(self) -> None:
        """Close the file, once no thread uses it; later calls of other threads raise a `UserError`."""
        with self._lock:
            self._connection.close()

    def get(self, key: str) -> str | None:
        """The reply of that key; None if there is none."""
        with self._lock, _errors_explained(self._path):
            row = self._connection.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def add(self, key: str, reply: str) -> None:
        """Store a reply."""
        with self._lock, _errors_explained(self._path):
            self._connection.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, reply))


@contextmanager
def open_replies() -> Iterator[Replies]:
    """Open the replies in the cache.

    Raises:
        UserError: the cache cannot be written, or the file is damaged.
    """
    path = cache_folder() / FILE
    with locked_cache(path.with_suffix(".lock")), _errors_explained(path):
        # Without a transaction around it, every statement is stored when it returns.
        connection = sqlite3.connect(path, timeout=_WAIT, check_same_thread=False, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")
    replies = Replies(connection, path)
    try:
        yield replies
    finally:
        replies.close()


@contextmanager
def _errors_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise UserError(
            f"The replies stored in {path} cannot be used ({error}): free space on the disk, or remove that file, which loses "
            "the replies."
        ) from error
