"""Partial results of columns as bytes, dictionaries in the fewest.

A dictionary of hashes with 64-bit counts would be larger than the dictionary of values that it
replaces where these are short. The fast hash of a 64-bit word is a bijection: small integers,
dates and booleans are sent as the words that they are, in as many bytes as the largest needs, and
hashed again by the receiver. Counts take as many bytes as the largest needs, and heavy values whose
count is that of the dictionary take one bit.

Layout: u8 form. Form 0: a record, as `formats.to_bytes` writes it. Form 1, for dictionaries without
weights: u32 length and a record without entries; u32 number of entries, u8 bytes of a word (0:
hashes of 8 bytes), u8 bytes of a count; the words, signed, or hashes; the counts; a bit per entry
that says whether it is heavy, the first in the lowest bit.
"""

import dataclasses
import struct

import numpy as np
from jaxtyping import Bool, UInt64

from jaxlab.ndv.bottom_k import BottomK
from jaxlab.ndv.formats import Reader, Record, from_bytes, to_bytes
from jaxlab.ndv.hashing import FAST, Hasher, Lanes, fmix32, hash_words, join_words, split_words
from jaxlab.ndv.sketch import EMPTY_HASH

_WIDTHS = (1, 2, 4, 8)
_SIZES = struct.Struct("<IBB")
_ROUND_KEYS = [np.uint32((step * 0x9E3779B9) % 2**32) for step in (4, 3, 2, 1)]


def column_to_bytes(record: Record) -> bytes:
    """The partial result of a column in the layout of the module."""
    sketch = record.sketch
    if not isinstance(sketch, BottomK) or sketch.count[-1] or record.weights is not None:
        return b"\x00" + to_bytes(record)
    used = np.asarray(sketch.count) > 0
    hashes, counts = join_words(Lanes(sketch.hi, sketch.lo))[used], np.asarray(sketch.count)[used]
    is_heavy = _in_heavy(record, hashes, counts.astype(np.uint64))
    listed = ~np.isin(record.heavy_hashes, hashes[is_heavy])
    rest = to_bytes(
        dataclasses.replace(
            record,
            sketch=_entries(hashes[:0], counts[:0], len(used), sketch.hasher),
            heavy_hashes=record.heavy_hashes[listed],
            heavy_counts=record.heavy_counts[listed],
        )
    )
    words, width = hashes, 0
    if sketch.hasher == FAST:
        values = words_of_hashes(hashes).view(np.int64)
        needed = _width(2 * max(int(values.max(initial=0)), -1 - int(values.min(initial=0))))
        words, width = (values, needed) if needed < 8 else (hashes, 0)
    count_width = _width(counts.max(initial=0))
    parts = [
        b"\x01", struct.pack("<I", len(rest)), rest,
        _SIZES.pack(len(hashes), width, count_width),
        words.astype(f"<i{width}" if width else "<u8").tobytes(),
        counts.astype(f"<u{count_width}").tobytes(),
        np.packbits(is_heavy, bitorder="little").tobytes(),
    ]  # fmt: skip
    return b"".join(parts)


def column_from_bytes(data: bytes) -> Record:
    """The partial result that `column_to_bytes` wrote.

    Raises:
      ValueError: for anything else, with the offset where bytes are missing.
    """
    reader = Reader(data)
    form = reader.number("<B")
    if form == 0:
        return from_bytes(data[1:])
    if form != 1:
        raise ValueError(f"form {form} of a column is unknown; this release reads 0 and 1")
    record = from_bytes(reader.take(reader.number("<I")))
    sketch = record.sketch
    number, width, count_width = reader.unpack(_SIZES)
    if not isinstance(sketch, BottomK) or width not in (0, 1, 2, 4) or count_width not in (1, 2, 4):
        raise ValueError(f"words of {width} and counts of {count_width} bytes fit no dictionary")
    slots = len(sketch.count)
    if number >= slots:
        raise ValueError(f"{number} entries in a dictionary of at most {slots - 1}")
    words = reader.array(f"<i{width}" if width else "<u8", number)
    counts = reader.array(f"<u{count_width}", number)
    flags = reader.array("<u1", -(-number // 8))
    if reader.offset != len(data):
        raise ValueError(f"{len(data) - reader.offset} bytes too many, from {reader.offset}")
    if width:
        words = join_words(hash_words(split_words(words.astype(np.int64).view(np.uint64)), FAST))
    is_heavy = np.unpackbits(flags, count=number, bitorder="little").astype(bool)
    heavy = np.concatenate([record.heavy_hashes, words[is_heavy]])
    heavy_counts = np.concatenate([record.heavy_counts, counts[is_heavy].astype(np.uint64)])
    order, heavy_order = np.argsort(words), np.argsort(heavy)
    return dataclasses.replace(
        record,
        sketch=_entries(words[order], counts[order], slots, sketch.hasher),
        heavy_hashes=heavy[heavy_order],
        heavy_counts=heavy_counts[heavy_order],
    )


def words_of_hashes(hashes: UInt64[np.ndarray, " values"]) -> UInt64[np.ndarray, " values"]:
    """The words whose hashes by `FAST` these are: the rounds of the bijection backwards."""
    left, right = split_words(hashes)
    for key in _ROUND_KEYS:
        left, right = right ^ np.asarray(fmix32(np.asarray(left + key))), left
    return join_words(Lanes(right, left))


def _in_heavy(
    record: Record, hashes: UInt64[np.ndarray, " values"], counts: UInt64[np.ndarray, " values"]
) -> Bool[np.ndarray, " values"]:
    """Which entries are heavy with the very count of the dictionary."""
    if not len(record.heavy_hashes):
        return np.zeros(len(hashes), bool)
    place = np.searchsorted(record.heavy_hashes, hashes).clip(max=len(record.heavy_hashes) - 1)
    return (record.heavy_hashes[place] == hashes) & (record.heavy_counts[place] == counts)


def _width(largest: int | np.integer) -> int:
    return next(width for width in _WIDTHS if int(largest) < 2 ** (8 * width) or width == 8)


def _entries(
    hashes: UInt64[np.ndarray, " values"], counts: np.ndarray, slots: int, hasher: Hasher
) -> BottomK:
    lanes = np.full((2, slots), EMPTY_HASH, np.uint32)
    lanes[:, : len(hashes)] = split_words(hashes)
    count = np.zeros(slots, np.uint32)
    count[: len(hashes)] = counts
    return BottomK(lanes[0], lanes[1], count, hasher)
