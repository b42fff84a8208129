"""Streaming rows from .parquet and .arrow files, a batch at a time.

A small file may decode to more than any memory: pages of zeros that are compressed, or one long value in a dictionary to which
every row points. So the size of the whole is limited, as for archives, and batches have few rows where rows may be large.
"""

import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tamperfuse.corpora import streams
from tamperfuse.corpora.streams import check_column_names, too_long
from tamperfuse.records.errors import UserError, first_line
from tamperfuse.records.reading import check_file

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

_BATCH = 256  # rows
_BATCH_BYTES = 512 << 20  # that a batch may decode to
_SHARING = ("dictionary<", "run_end_encoded<", "_view")  # Arrow's types in which rows share values
_COMPRESSED = (b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")  # how the frames of zstd and LZ4 begin
_LARGEST_BUFFER = 1 << 50  # bytes that a compressed buffer may claim to have

Row = dict[str, Any]


def read_parquet(path: Path) -> Iterator[tuple[int, Row]]:
    """Stream the rows of a parquet file with their numbers from 1.

    Raises:
        UserError: it is damaged, or decodes to too much.
    """
    import pyarrow
    import pyarrow.parquet as pq

    check_file(path)
    try:
        with path.open("rb") as pages, pq.ParquetFile(path) as table:
            groups = [table.metadata.row_group(index) for index in range(table.num_row_groups)]
            streams.check_expansion(path, sum(max(0, group.total_byte_size) for group in groups))
            if any(group.total_byte_size > streams.MAX_ROW * max(1, group.num_rows) for group in groups):
                raise too_long(path, "a row")
            check_column_names(table.schema_arrow.names, path)
            batches = (
                batch
                for index, group in enumerate(groups)
                for batch in table.iter_batches(batch_size=_rows_at_a_time(pages, group), row_groups=[index])
            )
            yield from _numbered(batches, path)
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{path} is not a readable Parquet file ({first_line(error)}): fetch or write it again."
        ) from error


def _rows_at_a_time(pages: IO[bytes], group: "pyarrow.parquet.RowGroupMetaData") -> int:
    """How many rows of a row group are decoded at a time, so that a batch stays below :data:`_BATCH_BYTES`.

    Every value of a column with a dictionary is taken to be as long as the dictionary.
    """
    rows = max(1, group.num_rows)
    size = group.total_byte_size / rows
    for column in map(group.column, range(group.num_columns)):
        if column.physical_type == "BYTE_ARRAY":
            size += column.num_values / rows * _dictionary_bytes(pages, column)
    return _fitting(size)


def _fitting(bytes_per_row: float) -> int:
    return int(max(1, min(_BATCH, _BATCH_BYTES / max(1.0, bytes_per_row))))


def _dictionary_bytes(pages: IO[bytes], column: "pyarrow.parquet.ColumnChunkMetaData") -> int:
    """The size of a column's dictionary before it was compressed, as its page header says; 0 if it has none.

    The header is in Thrift's compact protocol: 15 04 for a page that is a dictionary, then 15 and the size as a zigzag varint
    (https://github.com/apache/parquet-format, `PageHeader`).
    """
    offset = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
    pages.seek(max(0, offset))
    header = pages.read(8)
    if not header.startswith(b"\x15\x04\x15"):
        return max(0, column.total_uncompressed_size) if column.has_dictionary_page else 0
    size = 0
    for position, byte in enumerate(header[3:]):
        size |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            break
    return size >> 1


def read_arrow(path: Path) -> Iterator[tuple[int, Row]]:
    """Stream the rows of a file of Arrow's stream format, which `datasets` saves, or of its file format.

    Raises:
        UserError: it is damaged, or decodes to too much.
    """
    import pyarrow

    check_file(path)
    streams.check_expansion(path, _decompressed_bytes(path))
    try:
        with pyarrow.memory_map(str(path)) as stream:
            try:
                reader = pyarrow.ipc.open_stream(stream)
                batches = iter(reader)
            except pyarrow.ArrowInvalid:
                stream.seek(0)
                reader = pyarrow.ipc.open_file(stream)
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
            check_column_names(reader.schema.names, path)
            yield from _numbered((piece for batch in batches for piece in _pieces(batch)), path)
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{path} is not a readable Arrow file ({first_line(error)}): fetch or write it again."
        ) from error


def _decompressed_bytes(path: Path) -> int:
    """What the compressed buffers of an Arrow file decompress to: each begins with that size, in 8 bytes, at a multiple of 8."""
    if not path.stat().st_size:
        return 0
    total = 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for magic in _COMPRESSED:
            at = content.find(magic)
            while at >= 0:
                size = int.from_bytes(content[at - 8 : at], "little") if at >= 8 and at % 8 == 0 else 0
                total += size if size < _LARGEST_BUFFER else 0  # other data may look like a frame by chance
                at = content.find(magic, at + 1)
    return total


def _pieces(batch: "pyarrow.RecordBatch") -> "Iterator[pyarrow.RecordBatch]":
    """A batch of an Arrow file, checked and cut into batches that fit into memory when they are converted.

    A reader trusts the offsets in the file, damaged ones included, so the content is validated.
    """
    batch.validate(full=True)
    shares = any(sharing in str(field.type) for field in batch.schema for sharing in _SHARING)
    rows = _fitting(batch.nbytes if shares else batch.nbytes / max(1, batch.num_rows))
    return (batch.slice(at, rows) for at in range(0, batch.num_rows, rows))


def _numbered(batches: "Iterable[pyarrow.RecordBatch]", path: Path) -> Iterator[tuple[int, Row]]:
    """The rows of batches with their numbers.

    Raises:
        UserError: a column holds a value that Python cannot, such as a date after the year 9999 or in an unknown time zone.
    """
    number = 0
    for batch in batches:
        try:
            rows = batch.to_pylist()
        except (OverflowError, ValueError, LookupError) as error:  # an unknown time zone is a LookupError
            raise UserError(
                f"{path} has values that cannot be read in rows {number + 1} to {number + batch.num_rows} (column "
                f"{_unreadable_column(batch)!r}: {error}): store that column as text, or leave it out."
            ) from error
        for row in rows:
            number += 1
            yield number, row


def _unreadable_column(batch: "pyarrow.RecordBatch") -> str:
    """The first column whose values cannot be converted."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.to_pylist()
        except (OverflowError, ValueError, LookupError):
            return str(name)
    return ""
