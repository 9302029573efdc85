"""Partial results of columns as bytes, in the fewest.

A dictionary of hashes with 64-bit counts would be larger than the dictionary of values that it
replaces where these are short. The fast hash is a bijection of words: small integers, dates,
booleans, decimal fractions and texts of up to 7 bytes are sent as the values that they are, and
hashed again by the receiver. What all columns of a message have in common (`Shared`) is not
repeated in each.

A column is a byte and what it announces, numbers as `packing.varint`:

    bits 0, 1  form: 0 record, 1 dictionary of values, 2 hashes
    bits 2, 3  population: 0 rows with a value / rate, 1 all rows of the table, 2 a number follows,
               how many fewer; 3 a float64 follows
    bit 4      the number of nulls follows (else there are none)
    bit 5      the number of rows with a value follows (else rows read - nulls)
    bit 6      the bytes sent for the column follow (else those of the column itself, so far)
    bit 7      weights follow: float32 of the entries with one row, by their hash (else they follow
               from the rate)

Record: number of bytes, the bytes of `formats.to_bytes`; bits 4, 5 and 7 are not used.

Dictionary: number of entries, and if there are any, the values as `packing.pack_values`; of more
than one a byte, the code of a packed list of counts less 1. The entries with the fewest rows come
first, heavy ones after all others; the count of the last follows from the number of rows. Bits 6
and 7 of the first byte of the values tell the heavy entries: 0 none, 1 all, 2 a number follows, of
the last entries; 3 likewise, and a code and a packed list of the rows, as `packing` writes them,
by which their counts beside the dictionary fall short.

Hashes: twice their number, plus 1 if there is a threshold, which then is one more of the hashes; if
there are any, the hashes as `packing.pack_ascending`, a code and the packed list of the counts less
1; number of heavy values, and if there are any, their hashes as values, a code and the packed list
of their counts. A dictionary takes this form if that is shorter: of many long texts.
"""

import dataclasses
import struct
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt64

from jaxlab.ndv import bottom_k
from jaxlab.ndv.bottom_k import MAX_COUNT, BottomK, Held
from jaxlab.ndv.formats import Reader, Record, from_bytes, to_bytes
from jaxlab.ndv.hashing import FAST, Hasher, Lanes, fmix32, hash_words, join_words, split_words
from jaxlab.ndv.mixed_rates import singleton_weights
from jaxlab.ndv.packing import (
    pack_ascending,
    pack_numbers,
    pack_values,
    read_ascending,
    read_numbers,
    read_values,
    read_varint,
    varint,
)
from jaxlab.ndv.sketch import EMPTY_HASH, MAX_CAPACITY

_RECORD, _DICTIONARY, _HASHES = range(3)
_OF_ROWS, _OF_TABLE, _FEWER, _FLOAT = range(4)
_NULLS, _ROWS, _SENT, _WEIGHTS = 16, 32, 64, 128
_NO_HEAVY, _ALL_HEAVY, _SOME_HEAVY, _OTHER_COUNTS = range(4)


class Shared(NamedTuple):
    """What the columns of a message have in common.

    Attributes:
      num_rows: rows of the table.
      num_read: rows in the sample, nulls included.
      rate: sampling rate.
      partitions: ids of the partitions inside, ascending.
      hasher: the hash.
      has_weights: whether the columns carry weights.
    """

    num_rows: int
    num_read: int
    rate: float
    partitions: UInt64[np.ndarray, " partitions"]
    hasher: Hasher
    has_weights: bool


class Column(NamedTuple):
    """What is sent of one column.

    Attributes:
      record: sketch or dictionary of the sampled rows.
      population: rows of the scanned partitions that are not null.
      sent_bytes: bytes sent for it; None for those that it takes now.
    """

    record: Record
    population: float
    sent_bytes: int | None = None


def shared_of(record: Record | None, num_rows: int, num_read: int) -> Shared:
    """What a message says once, if its columns are like this one.

    Args:
      record: of a column; None for a table without columns.
      num_rows: rows of the table.
      num_read: rows in the sample.
    """
    if record is None:
        nothing = np.zeros(0, np.uint64)
        return Shared(num_rows, num_read, 1.0, nothing, FAST, False)
    return Shared(
        num_rows, num_read, record.rate, record.partitions, record.sketch.hasher,
        record.weights is not None,
    )  # fmt: skip


def payload_bytes(record: Record) -> int:
    """Bytes of the values of a partition's record and their counts, without the heavy ones."""
    packed = [len(_packed_hashes(record))]
    if _is_whole_dictionary(record):
        packed.append(len(_dictionary_to_bytes(record)))
    return min(packed)


def column_to_bytes(column: Column, shared: Shared) -> bytes:
    """A column in the layout of the module."""
    record = column.record
    form, payload = _form(record, shared)
    body = [_population(column, shared)[1]]
    first = form | _population(column, shared)[0] << 2
    if form == _RECORD:
        body += [varint(len(payload)), payload]
    else:
        if record.num_nulls:
            first, body = first | _NULLS, [*body, varint(record.num_nulls)]
        if record.num_rows != shared.num_read - record.num_nulls:
            first, body = first | _ROWS, [*body, varint(record.num_rows)]
        body.append(payload)
        if not _weights_follow_from_rate(record):
            assert record.weights is not None
            first |= _WEIGHTS
            body.append(record.weights[_used_counts(record) == 1].astype("<f4").tobytes())
    size = 1 + sum(map(len, body))
    if column.sent_bytes is not None and column.sent_bytes != size:
        first, body = first | _SENT, [*body, varint(column.sent_bytes)]
    return bytes([first]) + b"".join(body)


def read_column(reader: Reader, shared: Shared) -> Column:
    """The next column.

    Raises:
      ValueError: for bytes that `column_to_bytes` does not write, with the offset where some are
        missing.
    """
    start = reader.offset
    first = reader.number("<B")
    form, mode = first & 3, first >> 2 & 3
    amount: float = 0
    if mode >= _FEWER:
        amount = read_varint(reader) if mode == _FEWER else reader.real()
    if form == _RECORD:
        record = from_bytes(reader.take(read_varint(reader)))
        if not isinstance(record.sketch, BottomK):
            raise ValueError(
                f"a column at offset {start} is a {type(record.sketch).__name__}; wanted a BottomK"
            )
    elif form in (_DICTIONARY, _HASHES):
        nulls = read_varint(reader) if first & _NULLS else 0
        rows = read_varint(reader) if first & _ROWS else shared.num_read - nulls
        if rows < 0:
            raise ValueError(f"{nulls} nulls of {shared.num_read} rows before {reader.offset}")
        read = _read_dictionary if form == _DICTIONARY else _read_hashes
        record = _with_weights(reader, read(reader, shared, rows, nulls), shared, first & _WEIGHTS)
    else:
        raise ValueError(f"form {form} of a column at offset {start} is unknown; wanted 0 to 2")
    size = reader.offset - start
    sent = read_varint(reader) if first & _SENT else size
    values = {_OF_ROWS: record.num_rows / record.rate, _OF_TABLE: shared.num_rows}
    values |= {_FEWER: shared.num_rows - amount, _FLOAT: amount}
    return Column(record, float(values[mode]), sent)


def words_of_hashes(
    hashes: UInt64[np.ndarray, " values"], seed: int = 0
) -> UInt64[np.ndarray, " values"]:
    """The words whose hashes by hash id 0 these are: the rounds of the bijection backwards."""
    left, right = split_words(hashes)
    for step in (4, 3, 2, 1):
        key = np.uint32((seed + step * 0x9E3779B9) % 2**32)
        left, right = right ^ np.asarray(fmix32(np.asarray(left + key))), left
    return join_words(Lanes(right, left))


def _hashes_of_words(words: UInt64[np.ndarray, " values"], hasher: Hasher) -> np.ndarray:
    return join_words(hash_words(split_words(words), hasher)) if hasher.hash_id == 0 else words


def _values(hashes: UInt64[np.ndarray, " values"], hasher: Hasher) -> tuple[int, bytes]:
    """Hashes as a list of values: those of hash id 0 as the words that were hashed."""
    return pack_values(words_of_hashes(hashes, hasher.seed) if hasher.hash_id == 0 else hashes)


def _form(record: Record, shared: Shared) -> tuple[int, bytes]:
    """How to write a record, and the bytes; as such if not all follows from what is shared."""
    own = shared_of(record, shared.num_rows, shared.num_read)
    same = _is_plain(record) and np.array_equal(record.partitions, shared.partitions)
    if not same or own._replace(partitions=shared.partitions) != shared:
        return _RECORD, to_bytes(record)
    if record.weights is not None and (record.weights[_used_counts(record) != 1] != 1).any():
        return _RECORD, to_bytes(record)
    hashes = _hashes_to_bytes(record)
    if not _is_whole_dictionary(record):
        return _HASHES, hashes
    return min((_DICTIONARY, _dictionary_to_bytes(record)), (_HASHES, hashes), key=_length)


def _length(written: tuple[int, bytes]) -> int:
    return len(written[1])


def _is_plain(record: Record) -> bool:
    """Whether a sketch is as `bottom_k.from_held` makes it."""
    sketch = record.sketch
    if not isinstance(sketch, BottomK):
        return False
    plain = bottom_k.from_held(bottom_k.held(sketch), sketch.hasher)
    return np.array_equal(plain.count, sketch.count)


def _is_whole_dictionary(record: Record) -> bool:
    """Whether counts add up to the rows, and hold those of the heavy values."""
    assert isinstance(record.sketch, BottomK)
    count = np.asarray(record.sketch.count)
    is_whole = not count[-1] and int(count.sum(dtype=np.uint64)) == record.num_rows
    return is_whole and _entry_places(record) is not None


def _population(column: Column, shared: Shared) -> tuple[int, bytes]:
    """How the population is written, and its bytes."""
    population, record = column.population, column.record
    if population == record.num_rows / record.rate:
        return _OF_ROWS, b""
    if population == shared.num_rows:
        return _OF_TABLE, b""
    fewer = shared.num_rows - population
    if 0 <= fewer < 2**63 and fewer == int(fewer) and shared.num_rows - int(fewer) == population:
        return _FEWER, varint(int(fewer))
    return _FLOAT, struct.pack("<d", population)


def _used_counts(record: Record) -> np.ndarray:
    """Counts in the order of the weights: of the slots in use."""
    assert isinstance(record.sketch, BottomK)
    count = np.asarray(record.sketch.count)
    return count[count > 0]


def _weights_follow_from_rate(record: Record) -> bool:
    if record.weights is None:
        return True
    return np.array_equal(record.weights, singleton_weights(_used_counts(record), record.rate))


def _with_weights(reader: Reader, record: Record, shared: Shared, follow: int) -> Record:
    if not shared.has_weights:
        return record
    counts = _used_counts(record)
    weights = singleton_weights(counts, record.rate)
    if follow:
        weights[counts == 1] = reader.array("<f4", int((counts == 1).sum()))
    return dataclasses.replace(record, weights=weights)


def _entries(record: Record) -> tuple[np.ndarray, np.ndarray]:
    """Hashes and counts of a dictionary, by hash."""
    sketch = record.sketch
    assert isinstance(sketch, BottomK)
    used = np.asarray(sketch.count) > 0
    return join_words(Lanes(sketch.hi, sketch.lo))[used], np.asarray(sketch.count)[used]


def _entry_places(record: Record) -> np.ndarray | None:
    """Where the heavy values stand in the dictionary; None if one is missing or has more rows."""
    hashes, counts = _entries(record)
    if not len(record.heavy_hashes):
        return np.zeros(0, np.int64)
    place = np.searchsorted(hashes, record.heavy_hashes)
    if place.max() >= len(hashes) or (hashes[place] != record.heavy_hashes).any():
        return None
    return None if (counts[place] < record.heavy_counts).any() else place


def _dictionary_to_bytes(record: Record) -> bytes:
    hashes, counts = _entries(record)
    place = _entry_places(record)
    assert place is not None
    number, num_heavy = len(hashes), len(place)
    if not number:
        return varint(0)
    short = np.zeros(number, np.uint64)
    short[place] = counts[place] - record.heavy_counts
    is_heavy = np.zeros(number, bool)
    is_heavy[place] = True
    order = np.lexsort((hashes, counts, is_heavy))
    first, values = _values(hashes[order], record.sketch.hasher)
    parts = [varint(number), b"", values]
    if number > 1:
        packed = pack_numbers(counts[order][:-1].astype(np.uint64) - np.uint64(1))
        parts += [bytes([packed.code]), packed.data]
    if short.any():
        heavy = _OTHER_COUNTS
        packed = pack_numbers(short[order][number - num_heavy :])
        parts += [varint(num_heavy), bytes([packed.code]), packed.data]
    elif 0 < num_heavy < number:
        heavy = _SOME_HEAVY
        parts.append(varint(num_heavy))
    else:
        heavy = _ALL_HEAVY if num_heavy else _NO_HEAVY
    parts[1] = bytes([first | heavy << 6])
    return b"".join(parts)


def _read_dictionary(reader: Reader, shared: Shared, rows: int, nulls: int) -> Record:
    start, number = reader.offset, read_varint(reader)
    _check_number(reader, number)
    first = reader.number("<B") if number else 0
    hashes = _hashes_of_words(read_values(reader, first, number), shared.hasher)
    counts = np.zeros(number, np.uint64)
    if number > 1:
        counts[:-1] = read_numbers(reader, reader.number("<B"), number - 1) + np.uint64(1)
    # The others leave at least one row for the last; sums of 64-bit numbers may not wrap around.
    rest = rows - sum(counts.tolist())
    if not (0 < rest <= EMPTY_HASH if number else rest == 0) or counts.max(initial=0) > EMPTY_HASH:
        raise ValueError(f"{rows} rows do not fit the counts of the dictionary at offset {start}")
    counts[-1:] = rest
    short, heavy = np.zeros(number, np.uint64), first >> 6
    num_heavy = (0, number)[heavy] if heavy < _SOME_HEAVY else read_varint(reader)
    if num_heavy > number:
        raise ValueError(f"{num_heavy} heavy entries of {number} before offset {reader.offset}")
    is_heavy = np.arange(number) >= number - num_heavy
    if heavy == _OTHER_COUNTS:
        short[is_heavy] = read_numbers(reader, reader.number("<B"), num_heavy)
    if (short > counts).any():
        raise ValueError(f"a heavy entry has fewer than 0 rows before offset {reader.offset}")
    order = np.argsort(hashes)
    hashes, counts, is_heavy, short = hashes[order], counts[order], is_heavy[order], short[order]
    if (hashes[1:] == hashes[:-1]).any():
        raise ValueError(f"a value is twice in the dictionary at offset {start}")
    sketch = bottom_k.from_held(Held(hashes, counts.astype(np.int64), None), shared.hasher)
    return Record(
        sketch, rows, nulls, shared.rate, shared.partitions, hashes[is_heavy],
        (counts - short)[is_heavy],
    )  # fmt: skip


def _packed_hashes(record: Record) -> bytes:
    """The hashes below the threshold, and it, if there is one, with their counts."""
    assert isinstance(record.sketch, BottomK)
    words, counts, limit = bottom_k.held(record.sketch)
    parts = [varint(2 * len(words) + (limit is not None))]
    if limit is not None:
        words = np.append(words, np.uint64(limit))
    if len(words):
        packed = pack_numbers(counts.astype(np.uint64) - np.uint64(1))
        parts += [pack_ascending(words), bytes([packed.code]), packed.data]
    return b"".join(parts)


def _hashes_to_bytes(record: Record) -> bytes:
    parts = [_packed_hashes(record), varint(len(record.heavy_hashes))]
    if len(record.heavy_hashes):
        first, values = _values(record.heavy_hashes, record.sketch.hasher)
        packed = pack_numbers(record.heavy_counts)
        parts += [bytes([first]), values, bytes([packed.code]), packed.data]
    return b"".join(parts)


def _read_hashes(reader: Reader, shared: Shared, rows: int, nulls: int) -> Record:
    number, has_limit = divmod(read_varint(reader), 2)
    _check_number(reader, number)
    if has_limit and number < 2:
        raise ValueError(f"{number} hashes below a threshold before offset {reader.offset}")
    words, counts, limit = np.zeros(0, np.uint64), np.zeros(0, np.int64), None
    if number:
        words = read_ascending(reader, number + has_limit)
        counts = read_numbers(reader, reader.number("<B"), number)
        if counts.max() >= MAX_COUNT:
            raise ValueError(f"a count before offset {reader.offset} is above {MAX_COUNT}")
        counts = counts.astype(np.int64) + 1
    if has_limit:
        words, limit = words[:-1], int(words[-1])
    heavy_number = read_varint(reader)
    _check_number(reader, heavy_number)
    first = reader.number("<B") if heavy_number else 0
    heavy = _hashes_of_words(read_values(reader, first, heavy_number), shared.hasher)
    heavy_counts = heavy
    if heavy_number:
        heavy_counts = read_numbers(reader, reader.number("<B"), heavy_number)
    order = np.argsort(heavy)
    return Record(
        bottom_k.from_held(Held(words, counts, limit), shared.hasher), rows, nulls, shared.rate,
        shared.partitions, heavy[order], heavy_counts[order],
    )  # fmt: skip


def _check_number(reader: Reader, number: int) -> None:
    """Refuse more values than any sketch has, before room is made for them."""
    if number > MAX_CAPACITY:
        raise ValueError(
            f"{number} values are announced before offset {reader.offset}; a sketch has at most "
            f"{MAX_CAPACITY}"
        )
