"""One pass over the buffers of Arrow arrays: loops that Numba compiles for the processor.

A loop takes a tile of rows at a time, small enough for the first cache of a core: it reads the
values as 64-bit words, leaves nulls out, hashes the words with the bits of `hashing.hash_words` for
hash id 0, and gives them to a sketch. Nothing is written to memory but the sketch. The loops hold
no lock, so that threads share the processors.

The module needs Numba and is imported by `fused` alone, which decides when. In these functions a
sum of two 32-bit numbers has 64 bits, hence the casts; positions are unsigned, since Numba would
look whether a signed one counts from the end.
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8, UInt32, UInt64

from jaxlab.packages import cache_dir

numba: Any = importlib.import_module("numba")  # where it is not installed types are checked, too

INT32, INT64, UINT64, DOUBLE, TEXT, LARGE_TEXT, DECIMAL = range(7)
"""Kinds of values."""
TILE = 1024
"""Rows that are worked on at a time."""
_U32, _U64 = np.uint32, np.uint64
_C1, _C2 = np.uint64(0x87C37B91114253D5), np.uint64(0x4CF5AD432745937F)
_NAN = np.uint64(0x7FF8000000000000)


class Source(NamedTuple):
    """The buffers of an Arrow array.

    Attributes:
      kind: of the values.
      values: bytes of the values: of numbers their words, of texts all texts.
      ends: bytes of the offsets of texts, else empty.
      validity: bits that are 0 for nulls; empty if there is none.
      offset: rows of the buffers before the first of the array.
      scale: of decimals.
    """

    kind: int
    values: UInt8[np.ndarray, " bytes"]
    ends: UInt8[np.ndarray, " offset_bytes"]
    validity: UInt8[np.ndarray, " bitmap"]
    offset: int
    scale: int


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function in machine code, which is kept in the cache directory of the library."""
    plain = inspect.unwrap(function)  # Numba reads the code: wrappers that check types hide it
    if plain.__name__.startswith("_"):  # called by others; arguments would cost more than the work
        options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
        return numba.njit(plain, nogil=True, forceinline=plain.__name__ != "_read_words", **options)
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(cache_dir() / "numba")
    try:
        return numba.njit(plain, nogil=True, cache=True)
    except RuntimeError:  # the directory cannot be written to
        return numba.njit(plain, nogil=True)
    finally:
        numba.config.CACHE_DIR = before


@_compiled
def _fmix32(word: Any) -> Any:
    word = _U32(word ^ (word >> _U32(16)))
    word = _U32(word * _U32(0x85EBCA6B))
    word = _U32(word ^ (word >> _U32(13)))
    word = _U32(word * _U32(0xC2B2AE35))
    return _U32(word ^ (word >> _U32(16)))


@_compiled
def _hash_tile(words: Any, rows: Any, seed: Any, hi: Any, lo: Any) -> None:
    """Hashes of words; a pass for every round, since short dependences run several times faster."""
    step = _U32(0x9E3779B9)
    key0 = _U32(seed + step)
    key1 = _U32(key0 + step)
    key2 = _U32(key1 + step)
    key3 = _U32(key2 + step)
    for i in range(rows):
        upper = _U32(words[i] >> _U64(32))
        hi[i] = _U32(_U32(words[i]) ^ _fmix32(_U32(upper + key0)))
        lo[i] = upper
    for i in range(rows):
        lo[i] = _U32(lo[i] ^ _fmix32(_U32(hi[i] + key1)))
    for i in range(rows):
        hi[i] = _U32(hi[i] ^ _fmix32(_U32(lo[i] + key2)))
    for i in range(rows):
        lo[i] = _U32(lo[i] ^ _fmix32(_U32(hi[i] + key3)))


@_compiled
def _load(data: Any, at: Any) -> Any:
    """Eight bytes as a little-endian word: one instruction, in spite of its looks."""
    word = _U64(data[at])
    word |= _U64(data[at + _U64(1)]) << _U64(8)
    word |= _U64(data[at + _U64(2)]) << _U64(16)
    word |= _U64(data[at + _U64(3)]) << _U64(24)
    word |= _U64(data[at + _U64(4)]) << _U64(32)
    word |= _U64(data[at + _U64(5)]) << _U64(40)
    word |= _U64(data[at + _U64(6)]) << _U64(48)
    word |= _U64(data[at + _U64(7)]) << _U64(56)
    return word


@_compiled
def _load_short(data: Any, at: Any, length: Any) -> Any:
    """Up to seven bytes as a word, without reading behind the data."""
    if at + _U64(8) <= _U64(len(data)):
        return _load(data, at) & ((_U64(1) << (_U64(8) * length)) - _U64(1))
    word = _U64(0)
    for i in range(length):
        word |= _U64(data[at + _U64(i)]) << (_U64(8) * _U64(i))
    return word


@_compiled
def _load_last(data: Any, end: Any, number: Any) -> Any:
    """The last 1 to 8 bytes of a text of at least eight as a word."""
    return _load(data, end - _U64(8)) >> (_U64(64) - _U64(8) * number)


@_compiled
def _rotate(word: Any, bits: Any) -> Any:
    return (word << bits) | (word >> (_U64(64) - bits))


@_compiled
def _key1(word: Any) -> Any:
    return _rotate(word * _C1, _U64(31)) * _C2


@_compiled
def _key2(word: Any) -> Any:
    return _rotate(word * _C2, _U64(33)) * _C1


@_compiled
def _fmix64(word: Any) -> Any:
    word = (word ^ (word >> _U64(33))) * _U64(0xFF51AFD7ED558CCD)
    word = (word ^ (word >> _U64(33))) * _U64(0xC4CEB9FE1A85EC53)
    return word ^ (word >> _U64(33))


@_compiled
def _finish(first: Any, second: Any, length: Any) -> Any:
    first, second = first ^ length, second ^ length
    first = first + second
    return _fmix64(first) + _fmix64(second + first)


@_compiled
def _mix(first: Any, second: Any, word1: Any, word2: Any) -> Any:
    first = (_rotate(first ^ _key1(word1), _U64(27)) + second) * _U64(5) + _U64(0x52DCE729)
    second = (_rotate(second ^ _key2(word2), _U64(31)) + first) * _U64(5) + _U64(0x38495AB5)
    return first, second


@_compiled
def _read_texts(data: Any, ends: Any, rows: Any, seed: Any, words: Any) -> None:
    """Words of texts, as `hashing.text_words`.

    Long ones are the first 64 bits of their MurmurHash3 x64 128. Its loop stands here: for every
    call of a function with branches Numba would count a reference to the array, in a place that
    threads share, which takes as long as a text.
    """
    for i in range(rows):
        at, end = _U64(ends[i]), _U64(ends[i + 1])
        length = end - at
        if length <= _U64(7):
            words[i] = _load_short(data, at, length) | (length << _U64(56))
            continue
        first, second = _U64(seed), _U64(seed)
        last = end - (length & _U64(15))
        while at < last:
            first, second = _mix(first, second, _load(data, at), _load(data, at + _U64(8)))
            at += _U64(16)
        left = end - at
        if left > _U64(8):
            first ^= _key1(_load(data, at))
            second ^= _key2(_load_last(data, end, left - _U64(8)))
        elif left:
            first ^= _key1(_load_last(data, end, left))
        words[i] = _finish(first, second, length)


@_compiled
def _read_decimals(halves: Any, scale: Any, rows: Any, seed: Any, words: Any) -> None:
    """Words of decimals: of the texts of their scale and as many bytes as their number takes."""
    for i in range(rows):
        low, high = halves[2 * i], halves[2 * i + 1]
        sign = _U64(np.int64(high) >> np.int64(63))
        rest, bits = high ^ sign, _U64(64)
        if rest == 0:
            rest, bits = low ^ sign, _U64(0)
        while rest:
            rest >>= _U64(1)
            bits += _U64(1)
        length = _U64(1) if (low | high) == 0 else _U64(1) + ((bits + _U64(8)) >> _U64(3))
        word0 = _U64(scale & 255) | (low << _U64(8))
        word1 = (low >> _U64(56)) | (high << _U64(8))
        if length <= _U64(7):
            mask = (_U64(1) << (_U64(8) * length)) - _U64(1)
            words[i] = (word0 & mask) | (length << _U64(56))
            continue
        first, second = _U64(seed), _U64(seed)
        if length >= _U64(16):
            first, second = _mix(first, second, word0, word1)
            if length > _U64(16):
                first ^= _key1(high >> _U64(56))
        else:
            if length > _U64(8):
                second ^= _key2(word1 & ((_U64(1) << (_U64(8) * (length - _U64(8)))) - _U64(1)))
            first ^= _key1(word0)
        words[i] = _finish(first, second, length)


@_compiled
def _read_doubles(bits: Any, rows: Any, words: Any) -> None:
    """Bits of doubles, with 0.0 for -0.0 and one NaN."""
    for i in range(rows):
        word = bits[i]
        size = word & _U64(0x7FFFFFFFFFFFFFFF)
        word = _U64(0) if size == 0 else word
        words[i] = _NAN if size > _U64(0x7FF0000000000000) else word


@_compiled
def _read_integers(values: Any, rows: Any, words: Any) -> None:
    for i in range(rows):
        words[i] = _U64(np.int64(values[i]))


@_compiled
def _read_unsigned(values: Any, rows: Any, seed: Any, words: Any) -> None:
    """Words of unsigned integers; from 2^63 on those of the texts of their 16 bytes."""
    for i in range(rows):
        word = values[i]
        if word >> _U64(63):
            first, second = _mix(_U64(seed), _U64(seed), word, _U64(0))
            word = _finish(first, second, _U64(16))
        words[i] = word


@_compiled
def _read_words(source: Any, start: Any, rows: Any, seed: Any, words: Any) -> Any:
    """Words of the values of some rows, at most a tile, without nulls; gives their number."""
    at, kind = source.offset + start, source.kind
    end = at + rows
    if kind == INT64:
        _read_integers(source.values.view(np.int64)[at:end], rows, words)
    elif kind == INT32:
        _read_integers(source.values.view(np.int32)[at:end], rows, words)
    elif kind == UINT64:
        _read_unsigned(source.values.view(np.uint64)[at:end], rows, seed, words)
    elif kind == DOUBLE:
        _read_doubles(source.values.view(np.uint64)[at:end], rows, words)
    elif kind == TEXT:
        ends = source.ends.view(np.int32)[at : end + 1]
        _read_texts(source.values, ends, rows, seed, words)
    elif kind == LARGE_TEXT:
        long_ends = source.ends.view(np.int64)[at : end + 1]
        _read_texts(source.values, long_ends, rows, seed, words)
    else:
        halves = source.values.view(np.uint64)[2 * at : 2 * end]
        _read_decimals(halves, source.scale, rows, seed, words)
    if not len(source.validity):
        return rows
    number = 0
    for i in range(rows):
        row = _U64(at + i)
        words[number] = words[i]
        number += (source.validity[row >> _U64(3)] >> np.uint8(row & _U64(7))) & 1
    return number


@_compiled
def hash_rows(
    source: Source,
    start: int,
    stop: int,
    seed: int,
    hi: UInt32[np.ndarray, " rows"],
    lo: UInt32[np.ndarray, " rows"],
) -> int:
    """Write the hashes of the values of some rows in order; gives their number.

    Args:
      source: the array.
      start: the first row.
      stop: the row behind the last.
      seed: of the hash.
      hi: room for the upper halves of at least as many as there are rows.
      lo: the same for the lower halves.
    """
    words, total = np.empty(TILE, _U64), 0
    for first in range(start, stop, TILE):
        number = _read_words(source, first, min(TILE, stop - first), seed, words)
        _hash_tile(words, number, seed, hi[total:], lo[total:])
        total += number
    return total


@_compiled
def fill_hll(
    source: Source,
    start: int,
    stop: int,
    seed: int,
    registers: UInt8[np.ndarray, " registers"],
    limits: UInt32[np.ndarray, " registers"],
) -> int:
    """Raise the registers of a HyperLogLog by the values of some rows; gives their number.

    Args:
      source: the array.
      start: the first row.
      stop: the row behind the last.
      seed: of the hash.
      registers: largest ranks; changed.
      limits: the largest 32 bits behind a register's number that may raise it; changed.
    """
    words, hi, lo = np.empty(TILE, _U64), np.empty(TILE, _U32), np.empty(TILE, _U32)
    precision = 0
    while (1 << precision) < len(registers):
        precision += 1
    up, down = _U32(precision), _U32(32 - precision)
    total = 0
    for first in range(start, stop, TILE):
        number = _read_words(source, first, min(TILE, stop - first), seed, words)
        _hash_tile(words, number, seed, hi, lo)
        _split_tile(hi, lo, number, up, down)
        total += number
        for i in range(number):
            slot, rest = hi[i], lo[i]
            if rest <= limits[slot]:
                rank = 1
                while rank <= 32 and not rest >> _U32(31):
                    rest = _U32(rest << _U32(1))
                    rank += 1
                if rank > 32:  # 32 zeros: the last bits of the hash tell how many follow
                    rank = _long_rank(words[i], seed, precision)
                if rank > registers[slot]:
                    registers[slot] = rank
                    limits[slot] = _U32(_U64(0xFFFFFFFF) >> _U64(min(rank, 32)))
    return total


@_compiled
def _split_tile(hi: Any, lo: Any, rows: Any, up: Any, down: Any) -> None:
    """Turn hashes into registers, in place of `hi`, and the 32 bits behind them."""
    for i in range(rows):
        rest = _U32(_U32(hi[i] << up) | (lo[i] >> down))
        hi[i] = hi[i] >> down
        lo[i] = rest


@_compiled
def _long_rank(word: Any, seed: Any, precision: Any) -> Any:
    """The rank of a word whose 32 bits behind the register are 0."""
    one, hi, lo = np.empty(1, _U64), np.empty(1, _U32), np.empty(1, _U32)
    one[0] = word
    _hash_tile(one, 1, seed, hi, lo)
    rest, rank = _U32(lo[0] << _U32(precision)), 33
    while rank < 65 - precision and not rest >> _U32(31):
        rest = _U32(rest << _U32(1))
        rank += 1
    return rank


@_compiled
def count_below(
    source: Source,
    start: int,
    stop: int,
    seed: int,
    upper: np.uint32,
    hashes: UInt64[np.ndarray, " slots"],
    rows: Int64[np.ndarray, " slots"],
    used: int,
    most: int,
    heavy: UInt64[np.ndarray, " heavy_slots"],
    heavy_rows: Int64[np.ndarray, " heavy_slots"],
) -> tuple[int, int, int]:
    """Count the rows of every value below a threshold in a table, until that has many values.

    Args:
      source: the array.
      start: the first row.
      stop: the row behind the last.
      seed: of the hash.
      upper: the upper half of the threshold, which hashes may have, too.
      hashes: a power of two of slots, more than `most` and a tile; changed.
      rows: of every slot, 0 if it is free; changed.
      used: slots in use.
      most: values after which no further tile is read.
      heavy: table of the hashes of heavy values, which are counted apart.
      heavy_rows: rows of every slot of that table, -1 if there is no value in it; changed.

    Returns:
      The first row that was not read, the number of values that were, and the slots in use.
    """
    words, hi, lo = np.empty(TILE, _U64), np.empty(TILE, _U32), np.empty(TILE, _U32)
    mask, heavy_mask = _U32(len(hashes) - 1), _U32(len(heavy) - 1)
    total = 0
    for first in range(start, stop, TILE):
        number = _read_words(source, first, min(TILE, stop - first), seed, words)
        _hash_tile(words, number, seed, hi, lo)
        total += number
        if len(heavy):
            number = _count_heavy(hi, lo, number, heavy_mask, heavy, heavy_rows)
        for i in range(number):
            if hi[i] > upper:
                continue
            word, slot = (_U64(hi[i]) << _U64(32)) | _U64(lo[i]), lo[i] & mask
            while rows[slot] and hashes[slot] != word:
                slot = (slot + _U32(1)) & mask
            if not rows[slot]:
                used += 1
                hashes[slot] = word
            rows[slot] += 1
        if used > most:
            return min(first + TILE, stop), total, used
    return stop, total, used


@_compiled
def _count_heavy(hi: Any, lo: Any, rows: Any, mask: Any, heavy: Any, heavy_rows: Any) -> Any:
    """Count the rows of a tile that are heavy, and move the others to its front."""
    number = 0
    for i in range(rows):
        upper, lower = hi[i], lo[i]
        slot = lower & mask
        word = (_U64(upper) << _U64(32)) | _U64(lower)
        while heavy_rows[slot] >= 0 and heavy[slot] != word:
            slot = (slot + _U32(1)) & mask
        if heavy_rows[slot] >= 0:
            heavy_rows[slot] += 1
        else:
            hi[number], lo[number] = upper, lower
            number += 1
    return number


@_compiled
def count_rows(
    source: Source,
    start: int,
    stop: int,
    seed: int,
    hashes: UInt64[np.ndarray, " slots"],
    rows: Int64[np.ndarray, " slots"],
    most: int,
) -> int:
    """Count the rows of every value in a table; gives the number of values, or `most` + 1 of more.

    Args:
      source: the array.
      start: the first row.
      stop: the row behind the last.
      seed: of the hash.
      hashes: a power of two of slots, more than `most`; changed.
      rows: of every slot, 0 if it is free; changed.
      most: where to give up.
    """
    words, hi, lo = np.empty(TILE, _U64), np.empty(TILE, _U32), np.empty(TILE, _U32)
    mask, total = _U32(len(hashes) - 1), 0
    for first in range(start, stop, TILE):
        number = _read_words(source, first, min(TILE, stop - first), seed, words)
        _hash_tile(words, number, seed, hi, lo)
        for i in range(number):
            word, slot = (_U64(hi[i]) << _U64(32)) | _U64(lo[i]), lo[i] & mask
            while rows[slot] and hashes[slot] != word:
                slot = (slot + _U32(1)) & mask
            if not rows[slot]:
                if total == most:
                    return most + 1
                total += 1
                hashes[slot] = word
            rows[slot] += 1
    return total
