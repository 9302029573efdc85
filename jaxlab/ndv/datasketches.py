"""Images of Apache DataSketches: HyperLogLog and compact theta sketches, in and out.

HyperLogLog images hold a register in 4, 6 or 8 bits (HLL_4, HLL_6, HLL_8). Those of 4 are relative
to the smallest register; 15 stands for what is in a list of exceptions behind.

Both need hash id 1 with the seed of the image, 9001 unless told otherwise. The package counts the
empty string as nothing, here it is a value; leave it out for equal sketches. Its own HLL estimate
depends on the order of insertion until a union; a union of an image from here with any other gives
the same estimate as a union there.

Reading is strict: truncated or trailing bytes, unknown versions, hashes out of order or above
theta, registers that contradict their sums and everything else that no sketch can have are a
ValueError with the offset or the field.

References:
  Apache DataSketches, `HllUtil`, `PreambleUtil` and `CompactSketch`; checked against the release
  5.2.0 of its Python package.
"""

import struct
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8, UInt32, UInt64

from jaxlab.ndv.bottom_k import BottomK
from jaxlab.ndv.formats import Reader
from jaxlab.ndv.hashing import INTERCHANGE, Lanes, join_words, murmur3_x64_128
from jaxlab.ndv.hll import COUPON_MAX_RANK, MAX_PRECISION, MIN_PRECISION, Hll

MAX_THETA = 2**63 - 1
DEFAULT_SEED = INTERCHANGE.seed
_HLL_FAMILY, _THETA_FAMILY = 7, 3
_BIG_ENDIAN, _READ_ONLY, _EMPTY, _COMPACT, _UNORDERED, _ORDERED = 1, 2, 4, 8, 16, 16
_LIST, _SET, _HLL = 0, 1, 2
_HLL_4, _HLL_6, _HLL_8 = range(3)
_TARGETS = {4: _HLL_4, 6: _HLL_6, 8: _HLL_8}
_EXCEPTION = 15
# log2 of the slots that the package has ready for exceptions, by lgK from 4 on.
_LG_EXCEPTIONS = (2, 2, 2, 3, 3, 3, 4, 4, 5, 5, 6, 7, 8, 9, 10, 11, 12, 13)
_PREAMBLE = struct.Struct("<BBBBBBBB")
_SUMS = struct.Struct("<dddII")
_SLOT_BITS = 26


class Theta(NamedTuple):
    """A theta sketch: all hashes of a sample's values that are below theta.

    Attributes:
      theta: 2^63 - 1 as long as nothing was dropped.
      hashes: distinct 63-bit hashes below theta, ascending.
    """

    theta: int
    hashes: UInt64[np.ndarray, " retained"]


def hll_to_bytes(sketch: Hll, *, bits: int = 8) -> bytes:
    """The compact image of one column's sketch.

    An array of registers has no order of insertion: the image says so (flag 16), and its reader
    estimates from the registers.

    Args:
      sketch: of one column, with hash id 1 and seed 9001.
      bits: of a register, 4, 6 or 8.

    Raises:
      ValueError: if the sketch has another hash or there are no such registers.
    """
    if sketch.hasher != INTERCHANGE:
        raise ValueError(
            f"the sketch was built with {sketch.hasher}; images hold {INTERCHANGE}, so build the "
            "sketch with hashing.INTERCHANGE"
        )
    if bits not in _TARGETS:
        raise ValueError(f"bits={bits}; images hold registers of {sorted(_TARGETS)} bits")
    target, registers = _TARGETS[bits], np.asarray(sketch.registers)
    precision = len(registers).bit_length() - 1
    if not registers.any():
        flags, mode = _COMPACT | _EMPTY, target << 2 | _LIST
        return _PREAMBLE.pack(2, 1, _HLL_FAMILY, precision, 3, flags, 0, mode)
    lowest = int(registers.min()) if target == _HLL_4 else 0
    body, exceptions = _write_registers(registers, target, lowest)
    lg_exceptions = _lg_exceptions(precision, len(exceptions)) if len(exceptions) else 0
    flags, mode = _COMPACT | _UNORDERED, target << 2 | _HLL
    head = _PREAMBLE.pack(10, 1, _HLL_FAMILY, precision, lg_exceptions, flags, lowest, mode)
    num_lowest = int((registers == lowest).sum())
    sums = _SUMS.pack(0.0, *_power_sums(registers), num_lowest, len(exceptions))
    return head + sums + body + exceptions.astype("<u4").tobytes()


def hll_from_bytes(data: bytes) -> Hll:
    """The sketch of an HLL image: a list or a set of coupons, or registers of 4, 6 or 8 bits.

    Args:
      data: a compact or updatable image.

    Returns:
      A sketch with hash id 1 and seed 9001 (an image does not say with which seed it was made).

    Raises:
      ValueError: if the bytes are no such image, see the module.
    """
    reader = Reader(data)
    ints, version, family, precision, log2_array, flags, small, mode = reader.unpack(_PREAMBLE)
    _check_preamble("HLL", version, 1, family, _HLL_FAMILY, flags)
    if not MIN_PRECISION <= precision <= MAX_PRECISION:
        raise ValueError(f"lgK={precision} is not from {MIN_PRECISION} to {MAX_PRECISION}")
    kind, target = mode & 3, mode >> 2
    if kind > _HLL or target > _HLL_8 or ints != (2, 3, 10)[kind]:
        raise ValueError(f"mode {mode} with a preamble of {ints} numbers is unknown")
    if kind == _HLL:
        is_compact = bool(flags & _COMPACT)
        registers = _read_registers(reader, target, precision, small, log2_array, is_compact)
    else:
        number = reader.number("<I") if kind == _SET else small
        size = number if flags & _COMPACT else 2 ** min(log2_array, 32)
        registers = _from_coupons(reader.array("<u4", size), number, precision)
    _finish(reader)
    if bool(flags & _EMPTY) == bool(registers.any()):
        raise ValueError(f"flags {flags} and the registers disagree on whether the sketch is empty")
    return Hll(registers, INTERCHANGE)


def theta_of_bottom_k(sketch: BottomK) -> Theta:
    """The theta sketch of a bottom-k sketch of one column: the same hashes, without counts.

    Equal to the package's sketch of the same values with 2^lg_k = K, trimmed.

    Raises:
      ValueError: if the sketch is not of hash id 1.
    """
    if sketch.hasher.hash_id != 1:
        raise ValueError(
            f"the sketch was built with {sketch.hasher}; theta images hold hash id 1, so build the "
            "sketch with hashing.INTERCHANGE"
        )
    used = np.asarray(sketch.count) > 0
    words = join_words(Lanes(sketch.hi, sketch.lo))[used] >> np.uint64(1)
    theta = int(words[-1]) if used.all() else MAX_THETA
    # The package uses 0 for empty slots and never retains it.
    hashes = np.unique(words[(words > 0) & (words < np.uint64(theta))])
    return Theta(theta, hashes)


def theta_union(a: Theta, b: Theta, capacity: int) -> Theta:
    """The union, with at most `capacity` hashes retained.

    Raises:
      ValueError: if the capacity is not positive.
    """
    if capacity < 1:
        raise ValueError(f"capacity={capacity} is not positive")
    theta = min(a.theta, b.theta)
    hashes = np.union1d(a.hashes, b.hashes)
    hashes = hashes[hashes < np.uint64(theta)]
    if len(hashes) > capacity:
        theta = int(hashes[capacity])
    return Theta(theta, hashes[:capacity])


def theta_distinct(sketch: Theta) -> float:
    """Estimate of the number of distinct values; exact as long as nothing was dropped."""
    share = 1.0 if sketch.theta == MAX_THETA else sketch.theta / 2**63
    return len(sketch.hashes) / share


def seed_hash(seed: int) -> int:
    """The 16 bits by which theta images name their seed.

    Example:
      >>> hex(seed_hash(9001))
      '0x93cc'
    """
    first, _ = murmur3_x64_128(np.array([seed], "<u8").view(np.uint8), np.array([0, 8]), 0)
    return int(first[0]) % 2**16


def theta_to_bytes(sketch: Theta, *, seed: int = DEFAULT_SEED) -> bytes:
    """The compact, ordered image of a theta sketch."""
    number, exact = len(sketch.hashes), sketch.theta == MAX_THETA
    longs = 3 if not exact else 1 if number <= 1 else 2
    flags = _READ_ONLY | _COMPACT | _ORDERED | (_EMPTY if exact and not number else 0)
    image = struct.pack("<BBBBBBH", longs, 3, _THETA_FAMILY, 0, 0, flags, seed_hash(seed))
    if longs > 1:
        image += struct.pack("<II", number, 0)
    if longs > 2:
        image += struct.pack("<Q", sketch.theta)
    return image + sketch.hashes.astype("<u8").tobytes()


def theta_from_bytes(data: bytes, *, seed: int = DEFAULT_SEED) -> Theta:
    """The theta sketch of a compact image of version 3.

    Args:
      data: the image, ordered or not.
      seed: the seed that it must have been made with.

    Raises:
      ValueError: if the bytes are no such image, see the module, or have another seed.
    """
    reader = Reader(data)
    longs, version, family, _, _, flags, seed_bits = reader.unpack(struct.Struct("<BBBBBBH"))
    _check_preamble("theta", version, 3, family, _THETA_FAMILY, flags)
    if not flags & _COMPACT or longs not in (1, 2, 3):
        raise ValueError(
            f"flags {flags} with a preamble of {longs} words: only compact images are read; "
            "serialise the compact form of the sketch"
        )
    if seed_bits != seed_hash(seed):
        raise ValueError(
            f"the image has the seed hash {seed_bits:#06x}, and seed {seed} has "
            f"{seed_hash(seed):#06x}; pass the seed that it was made with"
        )
    number = reader.unpack(struct.Struct("<II"))[0] if longs > 1 else int(not flags & _EMPTY)
    theta = reader.number("<Q") if longs > 2 else MAX_THETA
    hashes = reader.array("<u8", number)
    _finish(reader)
    return _check_theta(Theta(theta, hashes), bool(flags & _EMPTY), bool(flags & _ORDERED))


def _check_theta(sketch: Theta, empty: bool, ordered: bool) -> Theta:
    if not 0 < sketch.theta <= MAX_THETA:
        raise ValueError(f"theta={sketch.theta} is not from 1 to 2^63 - 1")
    if empty and (len(sketch.hashes) or sketch.theta != MAX_THETA):
        raise ValueError("the image says that it is empty and has hashes or a theta below 2^63 - 1")
    hashes = sketch.hashes if ordered else np.sort(sketch.hashes)
    if (hashes[1:] <= hashes[:-1]).any():
        raise ValueError("hashes repeat, or are not in the order that the image announces")
    if len(hashes) and not (hashes[0] > 0 and int(hashes[-1]) < sketch.theta):
        raise ValueError(f"a hash is 0 or not below theta={sketch.theta}")
    return Theta(sketch.theta, hashes)


def _check_preamble(
    name: str, version: int, wanted_version: int, family: int, wanted_family: int, flags: int
) -> None:
    if family != wanted_family:
        raise ValueError(f"family {family} is not {wanted_family}, that of {name} sketches")
    if version != wanted_version:
        raise ValueError(f"serial version {version} is unknown; {wanted_version} is read")
    if flags & _BIG_ENDIAN:
        raise ValueError("the image is big-endian; only little-endian ones are read")


def _finish(reader: Reader) -> None:
    if extra := len(reader.data) - reader.offset:
        raise ValueError(f"{extra} bytes too many, from offset {reader.offset}")


def _power_sums(registers: UInt8[np.ndarray, " registers"]) -> tuple[float, float]:
    """Sums of 2^-M over registers below 32 and over the others."""
    powers = np.exp2(-registers.astype(np.float64))
    low = registers < 32
    return float(powers[low].sum()), float(powers[~low].sum())


def _write_registers(
    registers: UInt8[np.ndarray, " registers"], target: int, lowest: int
) -> tuple[bytes, UInt32[np.ndarray, " exceptions"]]:
    """The packed registers, and the coupons of those that are not among them."""
    nothing = np.zeros(0, np.uint32)
    if target == _HLL_8:
        return registers.tobytes(), nothing
    if target == _HLL_6:
        bits = np.unpackbits(registers[:, None], axis=1, count=6, bitorder="little")
        # A byte of padding, so that two bytes can be read at the place of each register.
        return np.packbits(bits, bitorder="little").tobytes() + b"\0", nothing
    above = registers - np.uint8(lowest)
    slots = np.flatnonzero(above >= _EXCEPTION)
    halves = above.clip(max=_EXCEPTION)
    coupons = slots.astype(np.uint32) | registers[slots].astype(np.uint32) << np.uint32(_SLOT_BITS)
    return (halves[::2] | halves[1::2] << np.uint8(4)).tobytes(), coupons


def _lg_exceptions(precision: int, number: int) -> int:
    """log2 of the slots for exceptions, of which at most three quarters are used."""
    lg_size = _LG_EXCEPTIONS[precision - MIN_PRECISION]
    while 4 * number > 3 * 2**lg_size:
        lg_size += 1
    return lg_size


def _read_registers(
    reader: Reader, target: int, precision: int, minimum: int, lg_exceptions: int, is_compact: bool
) -> UInt8[np.ndarray, " registers"]:
    _, low, high, num_lowest, num_exceptions = reader.unpack(_SUMS)
    size = 2**precision
    if target == _HLL_8:
        registers = reader.array("<u1", size)
    elif target == _HLL_6:
        bits = np.unpackbits(reader.array("<u1", 3 * size // 4), bitorder="little")
        registers = np.packbits(bits.reshape(size, 6), axis=1, bitorder="little").reshape(size)
        if reader.number("<B"):
            raise ValueError(f"the padding at offset {reader.offset - 1} is not 0")
    else:
        halves = reader.array("<u1", size // 2)
        above = np.stack([halves & np.uint8(15), halves >> np.uint8(4)], axis=1).reshape(size)
        ready = lg_exceptions or _LG_EXCEPTIONS[precision - MIN_PRECISION]
        slots = num_exceptions if is_compact else 2 ** min(ready, 32)
        coupons = reader.array("<u4", slots)
        registers = _with_exceptions(above, coupons, minimum, num_exceptions)
    if registers.max() > COUPON_MAX_RANK:
        raise ValueError(f"a register holds {registers.max()}, above {COUPON_MAX_RANK}")
    # HLL_4 counts the registers at its minimum, the others those at 0, and some unions of HLL_8
    # those at the true minimum.
    lowest = int((registers == minimum).sum())
    possible = {_HLL_4: registers.min() == minimum, _HLL_6: minimum == 0, _HLL_8: True}[target]
    if target != _HLL_4 and num_exceptions or minimum > registers.min():
        possible = False
    if not possible or num_lowest != lowest:
        raise ValueError(
            f"minimum {minimum}, {num_lowest} registers at it and {num_exceptions} exceptions do "
            f"not fit HLL_{4 + 2 * target} registers with minimum {registers.min()}, of which "
            f"{lowest} are there"
        )
    if not np.allclose((low, high), _power_sums(registers), rtol=1e-9, atol=1e-15):
        raise ValueError(f"sums {low} and {high} of 2^-register do not fit the registers")
    return registers


def _with_exceptions(
    above: UInt8[np.ndarray, " registers"],
    coupons: UInt32[np.ndarray, " slots"],
    minimum: int,
    number: int,
) -> UInt8[np.ndarray, " registers"]:
    """Registers relative to their minimum, and those that are too large for 4 bits."""
    used = coupons[coupons != 0]
    slots = (used & np.uint32(2**_SLOT_BITS - 1)).astype(np.int64)
    values = (used >> np.uint32(_SLOT_BITS)).astype(np.int64)
    wanted = np.flatnonzero(above == _EXCEPTION)
    if number != len(used) or not np.array_equal(np.sort(slots), wanted):
        raise ValueError(
            f"{number} exceptions are announced and {len(used)} listed; {len(wanted)} registers "
            "need one each"
        )
    if (values < minimum + _EXCEPTION).any():
        raise ValueError(f"an exception of {values.min()} is less than {_EXCEPTION} above the rest")
    registers = above.astype(np.int64) + minimum
    registers[slots] = values
    return registers.clip(max=255).astype(np.uint8)


def _from_coupons(
    coupons: UInt32[np.ndarray, " slots"], number: int, precision: int
) -> UInt8[np.ndarray, " registers"]:
    used = coupons[coupons != 0]
    ranks = used >> np.uint32(_SLOT_BITS)
    if len(used) != number or len(np.unique(used)) != number or (ranks == 0).any():
        raise ValueError(f"{number} coupons are announced; there are {len(used)}, or bad ones")
    registers = np.zeros(2**precision, np.uint8)
    np.maximum.at(registers, used & np.uint32(2**precision - 1), ranks.astype(np.uint8))
    return registers
