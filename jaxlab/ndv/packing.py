"""Numbers and values in few bytes: variable lengths, and words as the short values that they are.

A packed list of words has a code and bytes. Codes 0 to 8: every word takes so many of its lower
bytes. Code 15: half a byte each says how many, the even entries in the lower halves; then the bytes
of all. Of the two the shorter is written.

A list of values is a byte (its kind in bits 0 and 1, the code in bits 2 to 5), for kind 3 a byte
with a scale, and a packed list:

    kind  entry
    0     the word
    1     the word as a signed integer v, as 2 v or -2 v - 1: 0, -1, 1, -2, 2, ...
    2     a text of up to 7 bytes without its length, see `hashing.text_words`; of 8 bytes: the word
    3     a float x = v / 10^s as v like kind 1, of at most 7 bytes; of 8 bytes: the bits of x. The
          scale s is 0 to 7; from 8 on the quotient by 10^(s - 8) is rounded to float32

Ascending words, all different, are a byte b (bits of a lower part, 0 to 63), the number of bytes of
the upper parts as `varint`, those, and the lower parts (Elias 1974; Fano 1971). Upper parts: bit
u + i is set if the i-th word, from 0 on, has the upper part u. Lower parts: their b // 8 lowest
bytes word by word, then b % 8 bits a word. Bits go from the highest of a byte to its lowest. With b
as chosen, n words take at most 3 n bits more than n log2 of the largest over n.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt64

from jaxlab.ndv.formats import Reader
from jaxlab.ndv.hashing import SHORT_TEXT

Words = UInt64[np.ndarray, " values"]
AnyWords = UInt64[np.ndarray, "*shape"]
Lengths = Int[np.ndarray, "*shape"]

_OWN_LENGTHS, _WHOLE = 15, 8
_WORD, _INTEGER, _TEXT, _DECIMAL = range(4)
_SCALES = 16
_SMALL = 4  # bytes of an entry up to which no decimal fractions are looked for
_LARGEST_SCALED = 2.0**53
_FULL_WORD = np.uint64(2**64 - 1)


class Packed(NamedTuple):
    """A packed list of words.

    Attributes:
      code: how many bytes a word takes, see the module.
      data: the bytes.
    """

    code: int
    data: bytes


def varint(number: int) -> bytes:
    """A number from 0 on, 7 bits a byte, the lowest first; all but the last have the top bit.

    Example:
      >>> varint(300).hex()
      'ac02'
    """
    low = number & 0x7F
    return bytes([low]) if number < 128 else bytes([low | 0x80]) + varint(number >> 7)


def read_varint(reader: Reader) -> int:
    """The next `varint`.

    Raises:
      ValueError: if it has more than 64 bits, or bytes are missing.
    """
    number, start = 0, reader.offset
    for shift in range(0, 64, 7):
        byte = reader.number("<B")
        number |= (byte & 0x7F) << shift
        if byte < 128 and number < 2**64:
            return number
    raise ValueError(f"the number at offset {start} has more than 64 bits")


def pack_numbers(words: Words) -> Packed:
    """Words by the bytes that they need."""
    return _pack(words, _byte_lengths(words), can_pad=True)


def read_numbers(reader: Reader, code: int, number: int) -> Words:
    """The words of a packed list.

    Raises:
      ValueError: if the code is unknown or bytes are missing.
    """
    return _read(reader, code, number)[0]


def pack_values(words: Words) -> Packed:
    """A list of values in the kind that takes the fewest bytes.

    Returns:
      The first byte, and the bytes after it.
    """
    whole = _with_kind(_WORD, pack_numbers(words))
    codings = [whole, _with_kind(_INTEGER, pack_numbers(_zigzag(words))), _pack_texts(words)]
    best = min(codings, key=lambda packed: len(packed.data))
    if len(best.data) <= _SMALL * len(words):
        return best
    return min(best, _pack_decimals(words), key=lambda packed: len(packed.data))


def read_values(reader: Reader, first: int, number: int) -> Words:
    """The words of a list of values.

    Args:
      reader: behind the first byte.
      first: that byte.
      number: how many.

    Raises:
      ValueError: if a kind, code or scale is unknown or bytes are missing.
    """
    kind, code = first & 3, first >> 2 & 15
    scale = reader.number("<B") if kind == _DECIMAL else 0
    if scale >= _SCALES:
        raise ValueError(f"scale {scale} at offset {reader.offset - 1} is not from 0 to 15")
    words, lengths = _read(reader, code, number)
    if kind == _INTEGER:
        return _unzigzag(words)
    whole = lengths == _WHOLE
    if kind == _TEXT:
        return np.where(whole, words, words | lengths.astype(np.uint64) << np.uint64(56))
    if kind == _DECIMAL:
        scaled = _unzigzag(words).view(np.int64).astype(np.float64)
        return np.where(whole, words, _quotients(scaled, scale).view(np.uint64))
    return words


def pack_ascending(words: Words) -> bytes:
    """Different words in ascending order, at least one, in about as few bits as there can be."""
    number, largest = len(words), int(words[-1])
    bits = max((largest // number).bit_length() - 1, 0)
    upper = (words >> np.uint64(bits)).astype(np.int64)
    is_set = np.zeros(int(upper[-1]) + number, bool)
    is_set[upper + np.arange(number)] = True
    marks = np.packbits(is_set).tobytes()
    size, left = divmod(bits, 8)
    rows = words.astype("<u8").view(np.uint8).reshape(-1, _WHOLE)
    parts = [bytes([bits]), varint(len(marks)), marks, rows[:, :size].tobytes()]
    if left:
        each = np.unpackbits(rows[:, size, None], axis=1)[:, 8 - left :]
        parts.append(np.packbits(each).tobytes())
    return b"".join(parts)


def read_ascending(reader: Reader, number: int) -> Words:
    """The words that `pack_ascending` wrote.

    Raises:
      ValueError: if they are not so many, not ascending or above 64 bits, or bytes are missing.
    """
    start, bits = reader.offset, reader.number("<B")
    marks = reader.array("<u1", read_varint(reader))
    upper = np.flatnonzero(np.unpackbits(marks))
    if bits > 63 or len(upper) != number:
        raise ValueError(
            f"{number} words are announced before offset {start}, and there are {len(upper)}, "
            f"with lower parts of {bits} bits"
        )
    upper -= np.arange(number)
    if int(upper.max(initial=0)) >> (64 - bits):
        raise ValueError(f"a word at offset {start} has more than 64 bits")
    size, left = divmod(bits, 8)
    rows = np.zeros((number, _WHOLE), np.uint8)
    rows[:, :size] = reader.array("<u1", number * size).reshape(number, size)
    if left:
        each = np.unpackbits(reader.array("<u1", -(-number * left // 8)))[: number * left]
        rows[:, size] = np.packbits(each.reshape(number, left), axis=1)[:, 0] >> (8 - left)
    words = upper.astype(np.uint64) << np.uint64(bits) | rows.view("<u8").reshape(-1)
    if (words[1:] <= words[:-1]).any():
        raise ValueError(f"words at offset {start} are not ascending")
    return words.astype(np.uint64)


def _with_kind(kind: int, packed: Packed, head: bytes = b"") -> Packed:
    return Packed(kind | packed.code << 2, head + packed.data)


def _pack_texts(words: Words) -> Packed:
    length = (words >> np.uint64(56)).astype(np.int64)
    body = words & np.uint64(2**56 - 1)
    is_short = (length <= SHORT_TEXT) & (_byte_lengths(body) <= length)
    lengths = np.where(is_short, length, _WHOLE)
    packed = _pack(np.where(is_short, body, words), lengths, can_pad=len(np.unique(lengths)) == 1)
    return _with_kind(_TEXT, packed)


def _pack_decimals(words: Words) -> Packed:
    """Floats by the scale that makes them shortest."""
    scales = np.arange(_SCALES)[:, None]
    with np.errstate(all="ignore"):
        scaled = np.rint(words.view(np.float64) * 10.0 ** (scales % 8))
        fits = np.abs(scaled) < _LARGEST_SCALED
        scaled = np.where(fits, scaled, 0)
        fits &= _quotients(scaled, scales).view(np.uint64) == words
    numbers = _zigzag(scaled.astype(np.int64).view(np.uint64))
    lengths = np.where(fits, _byte_lengths(numbers), _WHOLE)
    best = int(lengths.sum(axis=1).argmin())
    packed = _pack(
        np.where(fits[best], numbers[best], words), lengths[best], can_pad=bool(fits[best].all())
    )
    return _with_kind(_DECIMAL, packed, bytes([best]))


def _quotients(scaled: np.ndarray, scale: np.ndarray | int) -> np.ndarray:
    values = scaled / 10.0 ** (scale % np.int64(8))
    return np.where(scale < np.int64(8), values, values.astype(np.float32))


def _zigzag(words: AnyWords) -> AnyWords:
    numbers = words.view(np.int64)
    return ((numbers << 1) ^ (numbers >> 63)).view(np.uint64)


def _unzigzag(words: Words) -> Words:
    return (words >> np.uint64(1)) ^ np.where(words & np.uint64(1), _FULL_WORD, np.uint64(0))


def _byte_lengths(words: AnyWords) -> Lengths:
    bounds = np.uint64(1) << (np.uint64(8) * np.arange(8, dtype=np.uint64))
    return np.searchsorted(bounds, words, side="right")


def _pack(words: Words, lengths: Lengths, *, can_pad: bool) -> Packed:
    """Words of given lengths; `can_pad` if shorter ones may take the bytes of the longest."""
    rows = words.astype("<u8").view(np.uint8).reshape(-1, _WHOLE)
    longest = int(lengths.max(initial=0))
    size = -(-len(words) // 2) + int(lengths.sum())
    if can_pad and len(words) * longest <= size or not len(words):
        return Packed(longest, rows[:, :longest].tobytes())
    halves = np.zeros(2 * -(-len(words) // 2), np.uint8)
    halves[: len(words)] = lengths
    kept = rows[np.arange(_WHOLE) < lengths[:, None]]
    return Packed(_OWN_LENGTHS, (halves[::2] | halves[1::2] << 4).tobytes() + kept.tobytes())


def _read(reader: Reader, code: int, number: int) -> tuple[Words, Lengths]:
    if code == _OWN_LENGTHS:
        pairs = reader.array("<u1", -(-number // 2))
        lengths = np.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1)[:number].astype(np.int64)
    else:
        lengths = np.full(number, code, np.int64)
    if (lengths > _WHOLE).any():
        raise ValueError(
            f"code {code} with lengths of up to {lengths.max()} bytes before offset "
            f"{reader.offset}; words have at most {_WHOLE}"
        )
    rows = np.zeros((number, _WHOLE), np.uint8)
    rows[np.arange(_WHOLE) < lengths[:, None]] = reader.array("<u1", int(lengths.sum()))
    return rows.view("<u8").reshape(-1).astype(np.uint64), lengths
