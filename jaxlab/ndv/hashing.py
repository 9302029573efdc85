"""64-bit hashes as two 32-bit lanes, the same bits in NumPy on the host and JAX on a device.

A hash is a pair of uint32 arrays (`Lanes`), since devices have no fast 64-bit integers. Three
families, named by `hash_id`:

* 0 (`FAST`): four Feistel rounds of the 32-bit finaliser of MurmurHash3 over the two words of a
  value. A bijection of 64-bit words: two different numbers never collide, nor do two texts of up
  to 7 bytes, see `text_words`.
* 1 (`INTERCHANGE`): the first 64 bits of MurmurHash3 x64 128, seed 9001, as Apache DataSketches.
* 2 (`AUTHORS`): the first 64 bits of MurmurHash3 x86 128 with seed 313 over the text of the value,
  as in the experiments of Li et al. (arXiv:2206.05476); on the host only.

References:
  A. Appleby, MurmurHash3 (public domain), https://github.com/aappleby/smhasher.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, UInt8, UInt32, UInt64

HASH_IDS = {0: "dual-lane fmix32", 1: "MurmurHash3 x64 128", 2: "MurmurHash3 x86 128 of the text"}
_GOLDEN = 0x9E3779B9
_ROUNDS = 4
_BLOCK_BYTES = 2**22  # bytes of texts that are hashed at a time
SHORT_TEXT = 7
"""Bytes of a text that fit a word beside their number."""


class Lanes(NamedTuple):
    """A 64-bit word as two 32-bit ones: hi * 2^32 + lo.

    Attributes:
      hi: the upper half.
      lo: the lower half.
    """

    hi: UInt32[Array | np.ndarray, "*shape"]
    lo: UInt32[Array | np.ndarray, "*shape"]


@dataclasses.dataclass(frozen=True)
class Hasher:
    """Which hash a sketch was built with; sketches merge only if it is the same.

    Attributes:
      hash_id: 0, 1 or 2, see the module.
      seed: 32-bit seed, the same in every process.
    """

    hash_id: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
          ValueError: naming the field.
        """
        if self.hash_id not in HASH_IDS:
            raise ValueError(f"hash_id={self.hash_id} is not one of {sorted(HASH_IDS)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} is not a 32-bit unsigned number")


FAST = Hasher(0, 0)
INTERCHANGE = Hasher(1, 9001)
AUTHORS = Hasher(2, 313)


def split_words(words: UInt64[np.ndarray, "*shape"]) -> Lanes:
    """The two halves of 64-bit words.

    Example:
      >>> [int(half[0]) for half in split_words(np.array([2**32 + 7], np.uint64))]
      [1, 7]
    """
    return Lanes((words >> np.uint64(32)).astype(np.uint32), words.astype(np.uint32))


def join_words(lanes: Lanes) -> UInt64[np.ndarray, "*shape"]:
    """The 64-bit words of two halves; on the host."""
    hi, lo = (np.asarray(half).astype(np.uint64) for half in lanes)
    return (hi << np.uint64(32)) | lo


def leading_zeros(lanes: Lanes) -> UInt32[Array | np.ndarray, "*shape"]:
    """Number of leading zero bits of 64-bit words, 0 to 64; NumPy in, NumPy out, else JAX."""
    xp = np if isinstance(lanes.hi, np.ndarray) else jnp
    count = xp.where(lanes.hi != 0, _leading_zeros32(lanes.hi), 32 + _leading_zeros32(lanes.lo))
    return count.astype(np.uint32)


def trailing_zeros(lanes: Lanes) -> UInt32[Array | np.ndarray, "*shape"]:
    """Number of trailing zero bits of 64-bit words, 0 to 64; NumPy in, NumPy out, else JAX."""

    def one(half: Any) -> Any:
        return 32 - _leading_zeros32(~half & (half - np.uint32(1)))

    xp = np if isinstance(lanes.hi, np.ndarray) else jnp
    return xp.where(lanes.lo != 0, one(lanes.lo), 32 + one(lanes.hi)).astype(np.uint32)


def fmix32(words: UInt32[Array | np.ndarray, "*shape"]) -> UInt32[Array | np.ndarray, "*shape"]:
    """The 32-bit finaliser of MurmurHash3, a bijection; NumPy in, NumPy out, else JAX."""
    words = words ^ (words >> np.uint32(16))
    words = words * np.uint32(0x85EBCA6B)
    words = words ^ (words >> np.uint32(13))
    words = words * np.uint32(0xC2B2AE35)
    return words ^ (words >> np.uint32(16))


def hash_words(words: Lanes, hasher: Hasher) -> Lanes:
    """Hashes of 64-bit words, such as int64 numbers or the bits of float64 ones.

    Args:
      words: the words; NumPy arrays of at least one dimension, or JAX arrays.
      hasher: hash id 0 or 1.

    Returns:
      Hashes of the same shape, in the array type of the input.

    Raises:
      ValueError: for hash id 2, which reads texts.
    """
    if hasher.hash_id == 0:
        return _feistel(words, hasher.seed)
    if hasher.hash_id == 1:
        return murmur3_x64_128_words(words, hasher.seed)[0]
    raise ValueError("hash_id=2 reads the text of a value; use hash_bytes or hash_column")


def hash_bytes(
    data: UInt8[np.ndarray, " bytes"], offsets: np.ndarray, hasher: Hasher
) -> tuple[Lanes, Lanes | None]:
    """Hashes of byte strings, on the host.

    Args:
      data: the bytes of all strings, one after the other.
      offsets: integers of shape (strings + 1,): string i is data[offsets[i]:offsets[i + 1]].
      hasher: any.

    Returns:
      The hashes, and for hash id 1 the second 64 bits of the 128 (else None).
    """
    if hasher.hash_id == 2:
        return split_words(murmur3_x86_64(data, offsets, hasher.seed)), None
    if hasher.hash_id == 0:
        return _feistel(split_words(text_words(data, offsets, hasher.seed)), hasher.seed), None
    first, second = murmur3_x64_128(data, offsets, hasher.seed)
    return split_words(first), split_words(second)


def text_words(
    data: UInt8[np.ndarray, " bytes"], offsets: np.ndarray, seed: int
) -> UInt64[np.ndarray, " strings"]:
    """The words by which hash id 0 reads byte strings, on the host.

    A string of up to 7 bytes is its own bytes, the first lowest, and its length in the top byte:
    whoever receives its hash can have it back. A longer one is the first 64 bits of its MurmurHash3
    x64 128.

    Args:
      data: the bytes of all strings.
      offsets: integers of shape (strings + 1,).
      seed: 32-bit seed.

    Example:
      >>> hex(int(text_words(np.frombuffer(b"AB", np.uint8), np.array([0, 2]), 0)[0]))
      '0x200000000004241'
    """
    words = np.zeros(len(offsets) - 1, np.uint64)
    for rows, texts, length in _same_lengths(data, offsets):
        if length > SHORT_TEXT:
            words[rows] = _x64_128(texts.view("<u8"), length, seed)[0]
        elif length:
            words[rows] = texts.view("<u8")[:, 0] | np.uint64(length << 56)
    return words


def murmur3_x64_128_words(words: Lanes, seed: int) -> tuple[Lanes, Lanes]:
    """MurmurHash3 x64 128 of the 8 little-endian bytes of 64-bit words.

    Done with 32-bit operations, so that a device computes it.

    Args:
      words: the words; NumPy or JAX arrays of at least one dimension.
      seed: 32-bit seed.

    Returns:
      The first and the second 64 bits of the hash.
    """
    mixed = _times(_rotate(_times(words, _X64[0]), 31), _X64[1])
    start, length = _constant(seed), _constant(8)
    first = _xor(_xor(mixed, start), length)
    second = _constant(seed ^ 8)
    first = _plus(first, second)
    second = _plus(first, second)
    first, second = _fmix64_lanes(first), _fmix64_lanes(second)
    first = _plus(first, second)
    return first, _plus(second, first)


def murmur3_x64_128(
    data: UInt8[np.ndarray, " bytes"], offsets: np.ndarray, seed: int
) -> tuple[UInt64[np.ndarray, " strings"], UInt64[np.ndarray, " strings"]]:
    """MurmurHash3 x64 128 of byte strings, on the host: the two 64-bit halves.

    Args:
      data: the bytes of all strings.
      offsets: integers of shape (strings + 1,).
      seed: 32-bit seed.

    Example:
      >>> text = np.frombuffer(b"hello", np.uint8)
      >>> [hex(int(half[0])) for half in murmur3_x64_128(text, np.array([0, 5]), 0)]
      ['0xcbd8a7b341bd9b02', '0x5b1e906a48ae1d19']
    """
    halves = np.zeros((2, len(offsets) - 1), np.uint64)
    for rows, texts, length in _same_lengths(data, offsets):
        halves[:, rows] = _x64_128(texts.view("<u8"), length, seed)
    return halves[0], halves[1]


def murmur3_x64_128_texts(
    texts: UInt64[Array | np.ndarray, "rows words"],
    lengths: Int32[Array | np.ndarray, " rows"],
    seed: int | np.uint64 | Array,
) -> UInt64[Array | np.ndarray, " rows"]:
    """First 64 bits of MurmurHash3 x64 128 of texts of different lengths, row by row.

    Args:
      texts: the bytes of every text as little-endian words, an even number of them; what lies
        behind a text does not matter. NumPy in, NumPy out, else JAX with 64-bit numbers.
      lengths: bytes of every text.
      seed: 32-bit seed.

    Raises:
      ValueError: if the number of words is odd or none.
    """
    rows, num_words = texts.shape
    if not num_words or num_words % 2:
        raise ValueError(
            f"texts has shape {texts.shape}; wanted (rows, words) with an even number of words, "
            "since the hash reads blocks of 16 bytes"
        )
    xp = np if isinstance(texts, np.ndarray) else jnp
    start = xp.full(rows, seed, np.uint64)
    state = (start, start)
    for block in range(num_words // 2):
        pair = (texts[:, 2 * block], texts[:, 2 * block + 1])
        state = _text_block(state, pair, lengths - 16 * block, xp)
    first, second = (half ^ lengths.astype(np.uint64) for half in state)
    first = first + second
    return _fmix64(first) + _fmix64(second + first)


def text_words_of_rows(
    texts: UInt64[Array | np.ndarray, "rows words"],
    lengths: Int32[Array | np.ndarray, " rows"],
    seed: int | np.uint64 | Array,
) -> UInt64[Array | np.ndarray, " rows"]:
    """`text_words` of texts of different lengths, row by row.

    Args:
      texts: the bytes of every text as little-endian words, one or an even number of them; what
        lies behind a text does not matter. NumPy in, NumPy out, else JAX with 64-bit numbers.
      lengths: bytes of every text; at most 7 where there is one word.
      seed: 32-bit seed.
    """
    xp = np if isinstance(texts, np.ndarray) else jnp
    own = _leading_bytes(texts[:, 0], lengths, xp) | (lengths.astype(np.uint64) << np.uint64(56))
    if texts.shape[1] == 1:
        return own
    return xp.where(lengths > SHORT_TEXT, murmur3_x64_128_texts(texts, lengths, seed), own)


def murmur3_x86_64(
    data: UInt8[np.ndarray, " bytes"], offsets: np.ndarray, seed: int
) -> UInt64[np.ndarray, " strings"]:
    """First 64 bits of MurmurHash3 x86 128 of byte strings, on the host.

    The first 32-bit word of the hash is the lower half of the result, the second the upper.

    Args:
      data: the bytes of all strings.
      offsets: integers of shape (strings + 1,).
      seed: 32-bit seed.
    """
    hashes = np.zeros(len(offsets) - 1, np.uint64)
    for rows, texts, length in _same_lengths(data, offsets):
        words = _x86_128(texts.view("<u4"), length, seed)
        hashes[rows] = (words[1].astype(np.uint64) << np.uint64(32)) | words[0]
    return hashes


_X64 = (0x87C37B91114253D5, 0x4CF5AD432745937F)
_FMIX64 = (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)
_X86 = (0x239B961B, 0xAB0E9789, 0x38B34AE5, 0xA1E38B93)
# Rotation of the key, rotation of the state, and addend of the four words of a block.
_X86_STEPS = (
    (15, 19, 0x561CCD1B), (16, 17, 0x0BCAA747), (17, 15, 0x96CD1C35), (18, 13, 0x32AC3B17),
)  # fmt: skip


def _leading_zeros32(words: Any) -> Any:
    if isinstance(words, np.ndarray):
        # The exponent of a whole number in float64 is its number of bits.
        return 32 - np.frexp(words.astype(np.float64))[1]
    return jax.lax.clz(words)


def _feistel(words: Lanes, seed: int) -> Lanes:
    left, right = words.lo, words.hi
    for step in range(_ROUNDS):
        key = np.uint32((seed + (step + 1) * _GOLDEN) % 2**32)
        left, right = right, left ^ fmix32(right + key)
    return Lanes(left, right)


def _same_lengths(
    data: np.ndarray, offsets: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Rows, their zero-padded bytes (rows, multiple of 16) and their length, group by group."""
    starts = offsets[:-1].astype(np.int64)
    lengths = np.diff(offsets).astype(np.int64)
    order = np.argsort(lengths, kind="stable")
    bounds = [*np.flatnonzero(np.diff(lengths[order], prepend=-1)), len(order)]
    for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
        length = int(lengths[order[begin]])
        step = max(1, _BLOCK_BYTES // (length + 16))
        for low in range(begin, end, step):
            rows = order[low : min(low + step, end)]
            texts = np.zeros((len(rows), -(-length // 16) * 16), np.uint8)
            texts[:, :length] = data[starts[rows, None] + np.arange(length)[None]]
            yield rows, texts, length


def _text_block(
    state: tuple[Any, Any], pair: tuple[Any, Any], left: Any, xp: Any
) -> tuple[Any, Any]:
    """The state after 16 bytes of texts of which `left` are left; a partial block adds its keys."""
    c1, c2 = (np.uint64(c) for c in _X64)
    # Bytes behind the end of a text become 0, whose keys change nothing.
    word1, word2 = (_leading_bytes(pair[i], left - 8 * i, xp) for i in range(2))
    first = state[0] ^ (_rotl(word1 * c1, 31) * c2)
    second = state[1] ^ (_rotl(word2 * c2, 33) * c1)
    mixed1 = (_rotl(first, 27) + state[1]) * np.uint64(5) + np.uint64(0x52DCE729)
    mixed2 = (_rotl(second, 31) + mixed1) * np.uint64(5) + np.uint64(0x38495AB5)
    whole = left >= 16
    return xp.where(whole, mixed1, first), xp.where(whole, mixed2, second)


def _leading_bytes(words: Any, number: Any, xp: Any) -> Any:
    """Words with all but their first bytes, 0 to 8 of them, set to zero."""
    missing = (8 * (8 - number.clip(0, 8))).astype(np.uint64)
    mask = np.uint64(2**64 - 1) >> missing.clip(max=np.uint64(63))
    return words & xp.where(missing < np.uint64(64), mask, np.uint64(0))


def _rotl(x: Any, bits: int) -> Any:
    kind = x.dtype.type
    return (x << kind(bits)) | (x >> kind(8 * x.dtype.itemsize - bits))


def _x64_128(words: np.ndarray, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    first, second = (np.full(len(words), seed, np.uint64) for _ in range(2))
    c1, c2 = (np.uint64(c) for c in _X64)
    five = np.uint64(5)
    for column in range(0, words.shape[1], 2):
        key1 = _rotl(words[:, column] * c1, 31) * c2
        key2 = _rotl(words[:, column + 1] * c2, 33) * c1
        # The last, partial block changes the state by its keys alone.
        first = first ^ key1
        if 8 * (column + 2) > length:
            second = second ^ key2
            break
        first = (_rotl(first, 27) + second) * five + np.uint64(0x52DCE729)
        second = (_rotl(second ^ key2, 31) + first) * five + np.uint64(0x38495AB5)
    first, second = first ^ np.uint64(length), second ^ np.uint64(length)
    first = first + second
    second = second + first
    first, second = _fmix64(first), _fmix64(second)
    first = first + second
    return first, second + first


def _fmix64(x: Any) -> Any:
    for factor in _FMIX64:
        x = (x ^ (x >> np.uint64(33))) * np.uint64(factor)
    return x ^ (x >> np.uint64(33))


def _x86_128(words: np.ndarray, length: int, seed: int) -> list[np.ndarray]:
    state = [np.full(len(words), seed, np.uint32) for _ in range(4)]
    for column in range(0, words.shape[1], 4):
        whole = 4 * (column + 4) <= length
        for lane, (key_bits, bits, addend) in enumerate(_X86_STEPS):
            key = _rotl(words[:, column + lane] * np.uint32(_X86[lane]), key_bits)
            state[lane] = state[lane] ^ (key * np.uint32(_X86[(lane + 1) % 4]))
            if whole:
                mixed = _rotl(state[lane], bits) + state[(lane + 1) % 4]
                state[lane] = mixed * np.uint32(5) + np.uint32(addend)
    state = _spread([lane ^ np.uint32(length) for lane in state])
    return _spread([np.asarray(fmix32(lane)) for lane in state])


def _spread(state: list[np.ndarray]) -> list[np.ndarray]:
    first = state[0] + state[1] + state[2] + state[3]
    return [first, *(lane + first for lane in state[1:])]


def _constant(value: int) -> tuple[Any, Any]:
    return np.uint32(value >> 32), np.uint32(value & 0xFFFFFFFF)


def _xor(a: Any, b: Any) -> Lanes:
    return Lanes(a[0] ^ b[0], a[1] ^ b[1])


def _plus(a: Any, b: Any) -> Lanes:
    lo = a[1] + b[1]
    carry = (lo < b[1]).astype(np.uint32)
    return Lanes(a[0] + b[0] + carry, lo)


def _rotate(words: Lanes, bits: int) -> Lanes:
    """Rotation to the left by 1 to 31 bits."""
    left, right = np.uint32(bits), np.uint32(32 - bits)
    hi = (words.hi << left) | (words.lo >> right)
    return Lanes(hi, (words.lo << left) | (words.hi >> right))


def _times(words: Lanes, factor: int) -> Lanes:
    """Product with a constant, modulo 2^64, from products of 16-bit halves."""
    factor_hi, factor_lo = _constant(factor)
    low16, bits = np.uint32(0xFFFF), np.uint32(16)
    a0, a1 = words.lo & low16, words.lo >> bits
    b0, b1 = factor_lo & low16, factor_lo >> bits
    middle = a1 * b0 + ((a0 * b0) >> bits)
    cross = a0 * b1 + (middle & low16)
    carry = a1 * b1 + (middle >> bits) + (cross >> bits)
    return Lanes(words.hi * factor_lo + words.lo * factor_hi + carry, words.lo * factor_lo)


def _fmix64_lanes(words: Lanes) -> Lanes:
    for factor in _FMIX64:
        words = _times(Lanes(words.hi, words.lo ^ (words.hi >> np.uint32(1))), factor)
    return Lanes(words.hi, words.lo ^ (words.hi >> np.uint32(1)))
