"""Partial results of tables, and their messages."""

import dataclasses
import itertools
import struct
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxlab.ndv.arguments import check_instance
from jaxlab.ndv.compact import Column, Shared, column_to_bytes, read_column, shared_of
from jaxlab.ndv.formats import Reader, Record
from jaxlab.ndv.hashing import Hasher
from jaxlab.ndv.packing import read_varint, varint

MAGIC, VERSION = b"JXNT", 3
_MAGIC = struct.Struct("<4sB")
_BLOCKS, _WEIGHTED, _SHARED, _RATE = 1, 2, 4, 8


class TableColumn(NamedTuple):
    """The partial result of one column.

    Attributes:
      record: sketch or dictionary of the sampled rows.
      population: rows of the scanned partitions that are not null; collapsed rows / rate for block
        samples.
      sent_bytes: bytes that the partitions sent, or would send, for this column alone.
    """

    record: Record
    population: float
    sent_bytes: int


@dataclasses.dataclass(frozen=True)
class TableSketch:
    """Partial results of the columns of a table.

    Attributes:
      columns: by name.
      num_rows: rows of the table, as far as it was scanned; num_read / rate if only a sample was
        given.
      num_read: rows in the sample, nulls included.
      is_block_sample: whether batches were blocks, each collapsed to its distinct values.
      shared_bytes: bytes that the partitions sent, or would send, for what no column has alone:
        settings, names, checksums.
    """

    columns: Mapping[str, TableColumn]
    num_rows: int
    num_read: int
    is_block_sample: bool = False
    shared_bytes: int = 0

    @property
    def sent_bytes(self) -> int:
        """Bytes of the messages of all partitions, everything included."""
        return self.shared_bytes + sum(column.sent_bytes for column in self.columns.values())


def table_to_bytes(table: TableSketch) -> bytes:
    """The table sketch as a message, little-endian, numbers as `packing.varint`.

    Magic "JXNT", u8 version, u8 flags (bit 0: blocks were sampled; bit 1: columns have weights; bit
    2: the shared bytes stand here, else they are those of this message; bit 3: the rate follows,
    else it is 1); u8 hash id, hash seed; rows, rows read; f64 rate, if
    announced; number of partitions, their ids, each as the difference to the one before; shared
    bytes, if announced; number of columns. For each column the length of its name, the name in
    UTF-8, and what `compact.column_to_bytes` writes. A CRC-32 of all before.
    """
    check_instance(table, TableSketch, "table", "sketch or merge gives one")
    shared = _shared(table)
    own = _shared_bytes(table, shared)
    parts = [
        _head_to_bytes(table, shared, None if own == table.shared_bytes else table.shared_bytes)
    ]
    for name, column in table.columns.items():
        parts += [_name_to_bytes(name), column_to_bytes(Column(*column), shared)]
    message = b"".join(parts)
    return message + struct.pack("<I", zlib.crc32(message))


def table_from_bytes(data: bytes) -> TableSketch:
    """The table sketch that `table_to_bytes` wrote.

    Raises:
      ValueError: for anything else, with the offset where bytes are missing.
    """
    reader = Reader(data)
    magic, version = reader.unpack(_MAGIC)
    if (magic, version) != (MAGIC, VERSION):
        raise ValueError(
            f"bytes start with {magic!r}, version {version}; a table sketch of this release starts "
            f"with {MAGIC!r}, version {VERSION}"
        )
    # Everything behind is taken at its word only if nothing was changed on the way.
    checksum = zlib.crc32(data[:-4])
    tail = Reader(data, max(len(data) - 4, reader.offset))
    tail.finish(checksum, tail.number("<I"))
    flags, shared, shared_bytes = _read_head(reader)
    columns = {}
    for _ in range(read_varint(reader)):
        name = reader.take(read_varint(reader)).decode()
        column = read_column(reader, shared)
        assert column.sent_bytes is not None
        columns[name] = TableColumn(column.record, column.population, column.sent_bytes)
    reader.finish(checksum, reader.number("<I"))
    is_block_sample = bool(flags & _BLOCKS)
    table = TableSketch(columns, shared.num_rows, shared.num_read, is_block_sample)
    if shared_bytes is None:
        shared_bytes = _shared_bytes(table, shared)
    return dataclasses.replace(table, shared_bytes=shared_bytes)


def with_sizes(table: TableSketch) -> TableSketch:
    """The table sketch of one partition with the bytes that its own message takes."""
    shared = _shared(table)
    columns = {
        name: column._replace(
            sent_bytes=len(column_to_bytes(Column(column.record, column.population), shared))
        )
        for name, column in table.columns.items()
    }
    return dataclasses.replace(table, columns=columns, shared_bytes=_shared_bytes(table, shared))


def _shared(table: TableSketch) -> Shared:
    first = next((column.record for column in table.columns.values()), None)
    return shared_of(first, table.num_rows, table.num_read)


def _shared_bytes(table: TableSketch, shared: Shared) -> int:
    """Bytes of a message beside its columns: head, names, checksum."""
    names = sum(len(_name_to_bytes(name)) for name in table.columns)
    return len(_head_to_bytes(table, shared, None)) + names + 4


def _name_to_bytes(name: str) -> bytes:
    text = name.encode()
    return varint(len(text)) + text


def _head_to_bytes(table: TableSketch, shared: Shared, shared_bytes: int | None) -> bytes:
    flags = (_BLOCKS if table.is_block_sample else 0) | (_WEIGHTED if shared.has_weights else 0)
    flags |= (0 if shared_bytes is None else _SHARED) | (0 if shared.rate == 1 else _RATE)
    ids = shared.partitions.tolist()
    steps = [after - before for before, after in itertools.pairwise([0, *ids])]
    numbers = [len(ids), *steps, *([] if shared_bytes is None else [shared_bytes])]
    return b"".join(
        [
            _MAGIC.pack(MAGIC, VERSION),
            bytes([flags, shared.hasher.hash_id]),
            varint(shared.hasher.seed),
            varint(shared.num_rows),
            varint(shared.num_read),
            b"" if shared.rate == 1 else struct.pack("<d", shared.rate),
            *map(varint, [*numbers, len(table.columns)]),
        ]
    )


def _read_head(reader: Reader) -> tuple[int, Shared, int | None]:
    """Flags, what the columns share, and the shared bytes if they are announced."""
    flags, hash_id = reader.number("<B"), reader.number("<B")
    if flags >= 2 * _RATE:
        raise ValueError(f"flags {flags:#04x} of the message are unknown")
    seed = read_varint(reader)
    num_rows, num_read = read_varint(reader), read_varint(reader)
    rate = reader.real() if flags & _RATE else 1.0
    steps = [read_varint(reader) for _ in range(read_varint(reader))]
    ids = list(itertools.accumulate(steps))
    if ids and ids[-1] >= 2**64:
        raise ValueError(f"partition {ids[-1]} before offset {reader.offset} is above 2^64 - 1")
    shared_bytes = read_varint(reader) if flags & _SHARED else None
    shared = Shared(
        num_rows, num_read, rate, np.array(ids, np.uint64), Hasher(hash_id, seed),
        bool(flags & _WEIGHTED),
    )  # fmt: skip
    return flags, shared, shared_bytes
