"""Opening local data files as streams of bytes: .gz and .zst are decompressed, within limits.

A small archive may hold more than any memory (a .gz of zeros expands a thousandfold), so lines, rows and archives have a
largest size, beyond which they are an error.
"""

import gzip
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol, cast

from tamperfuse.records.errors import UserError
from tamperfuse.records.reading import check_file

COMPRESSIONS = (".gz", ".zst")
MAX_ROW = 64 << 20  # bytes of a line or row
MAX_RATIO = (
    200  # size of an archive's content over its own; text is compressed up to 20 times, very repetitive text 100 times
)
RATIO_FROM = 256 << 20  # bytes of content from which the ratio counts
CHUNK = 1 << 20


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def open_stream(path: Path) -> IO[bytes]:
    """Open a data file for reading, decompressed.

    Raises:
        UserError: it is no ordinary file; or, while it is read, it expands too much.
    """
    check_file(path)
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return io.BufferedReader(_Decompressed(path, cast(_Readable, gzip.open(path))), CHUNK)
    if suffix == ".zst":
        import pyarrow  # its codecs read .zst without another dependency

        return io.BufferedReader(_Decompressed(path, pyarrow.input_stream(str(path), compression="zstd")), CHUNK)
    return path.open("rb")


def lines(stream: IO[bytes], path: Path) -> Iterator[bytes]:
    """The lines of a stream.

    Raises:
        UserError: a line is longer than 64 MiB.
    """
    number = 0
    while line := stream.readline(MAX_ROW + 1):
        number += 1
        if len(line) > MAX_ROW:
            raise too_long(path, f"line {number}")
        yield line


def too_long(path: Path, where: str) -> UserError:
    """The error for a line or row longer than :data:`MAX_ROW`."""
    return UserError(
        f"{path} has more than {MAX_ROW >> 20} MiB of text in {where}, too much for one row: check that the file holds rows of "
        "text, one in a line."
    )


def check_expansion(path: Path, size: int) -> None:
    """Check what a compressed file expands to.

    Args:
        path: the file.
        size: bytes of its content.

    Raises:
        UserError: they are more than :data:`RATIO_FROM` and more than :data:`MAX_RATIO` times its own size.
    """
    limit = _largest_content(path)
    if size > limit:
        raise UserError(
            f"{path} expands to more than {limit >> 20} MiB, {MAX_RATIO} times its own size; text does not compress so far. "
            "Decompress it, or save it without compression; check the content, and name that file."
        )


def _largest_content(path: Path) -> int:
    return max(RATIO_FROM, MAX_RATIO * path.stat().st_size)


def check_column_names(names: Sequence[str], path: Path) -> None:
    """Check that no two columns have the same name: one of them would be lost."""
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path} has two columns named {name!r}: rename or remove one of them.")


class _Decompressed(io.RawIOBase):
    """A decompressed stream that refuses to expand without end."""

    def __init__(self, path: Path, stream: _Readable) -> None:
        self._path, self._stream = path, stream
        self._limit = _largest_content(path)
        self._bytes = 0

    def readable(self) -> bool:
        """A stream to read from."""
        return True

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        """Read the next bytes."""
        content = self._stream.read(len(buffer))
        self._bytes += len(content)
        if self._bytes > self._limit:
            check_expansion(self._path, self._bytes)
        buffer[: len(content)] = content
        return len(content)
