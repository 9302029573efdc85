"""Sketches as bytes: what a partition sends, and what a coordinator makes of many.

A record is a sketch with what it needs to be merged and read: how many rows and nulls it has seen,
at which sampling rate, from which partitions, the values that are counted exactly beside it, and
for mixed rates a weight per retained value. Layout, all numbers little-endian:

    offset  size  field
    0       4     magic "JXND"
    4       1     version, 1
    5       1     kind: 1 HLL, 2 bottom-k, 3 mask, 4 registers, 5 CountSketch
    6       1     log2 of the registers; of the capacity, rounded up, for kinds 2 and 3; 0 for 5
    7       1     bits of a count: 8 (HLL: of a rank), 16 or 32
    8       1     hash id
    9       1     flags: bit 0 says that weights follow
    10      2     zero
    12      4     hash seed
    16      24    u64 rows, u64 nulls, f64 sampling rate
    40      4+    u32 number of partitions (0: not tracked), their u64 ids in ascending order
            2+    u16 number of heavy values, then for each its u64 hash and u64 count
            4+    if flagged: u32 number of weights, then float32 each, in the order of the slots
                  in use (kinds 2 and 3) or of all registers (kind 4)
            ...   the sketch, see below
            4     CRC-32 of all before

HLL: a byte per register. Registers: all u32 minima, then all counts. Bottom-k: u32 capacity, u32
slots in use, their u64 hashes, their u32 counts. Mask: u32 capacity, u32 level, then likewise.
CountSketch: u32 depth, u32 width, i32 cells row by row.

Partial results must enter a merge exactly once: twice would turn values that occur once into
values that occur twice. Records with partition ids refuse a repeated one.
"""

import dataclasses
import struct
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, UInt64

from jaxlab.ndv import bottom_k, count_sketch, hll, mask_sketch, registers
from jaxlab.ndv.bottom_k import BottomK
from jaxlab.ndv.count_sketch import CountSketch
from jaxlab.ndv.hashing import HASH_IDS, Hasher, Lanes, join_words, split_words
from jaxlab.ndv.hll import Hll
from jaxlab.ndv.mask_sketch import MaskSketch
from jaxlab.ndv.registers import Registers
from jaxlab.ndv.sketch import EMPTY_HASH, MAX_CAPACITY

MAGIC, VERSION = b"JXND", 1
HEADER = struct.Struct("<4sBBBBBBHIQQd")
_REAL = struct.Struct("<d")
KINDS = {1: Hll, 2: BottomK, 3: MaskSketch, 4: Registers, 5: CountSketch}
MAX_HEAVY = 2**16 - 1
_WEIGHTS_FLAG = 1
_MERGES: dict[type, Callable[..., Any]] = {
    Hll: jax.jit(hll.merge),
    BottomK: jax.jit(bottom_k.merge),
    MaskSketch: jax.jit(mask_sketch.merge),
    Registers: jax.jit(registers.merge),
    CountSketch: jax.jit(count_sketch.merge),
}

Sketch = Hll | BottomK | MaskSketch | Registers | CountSketch


def _no_words() -> np.ndarray:
    return np.zeros(0, np.uint64)


@dataclasses.dataclass(frozen=True)
class Record:
    """A sketch of one column and what belongs to it, on the host.

    Attributes:
      sketch: of one column; its arrays become NumPy's.
      num_rows: rows that were added, nulls not counted.
      num_nulls: rows that were null.
      rate: sampling rate of the rows, in (0, 1].
      partitions: ids of the partitions inside, ascending; none if they are not tracked.
      heavy_hashes: hashes of values that are counted here and not in the sketch, ascending.
      heavy_counts: their rows.
      weights: for each slot in use (or each register) the weight of its value if it is a singleton
        of one partition, 1 otherwise; None if rates do not differ.
    """

    sketch: Sketch
    num_rows: int
    num_nulls: int = 0
    rate: float = 1.0
    partitions: UInt64[np.ndarray, " partitions"] = dataclasses.field(default_factory=_no_words)
    heavy_hashes: UInt64[np.ndarray, " heavy"] = dataclasses.field(default_factory=_no_words)
    heavy_counts: UInt64[np.ndarray, " heavy"] = dataclasses.field(default_factory=_no_words)
    weights: Float32[np.ndarray, " slots"] | None = None

    def __post_init__(self) -> None:
        """Bring the sketch to the host and check the fields.

        Raises:
          ValueError: listing everything that is wrong.
        """
        object.__setattr__(self, "sketch", jax.tree.map(np.asarray, self.sketch))
        errors = [
            f"{name}={value} is not from 0 to 2^64 - 1"
            for name, value in (("num_rows", self.num_rows), ("num_nulls", self.num_nulls))
            if not 0 <= value < 2**64
        ]
        if not 0 < self.rate <= 1:
            errors.append(f"rate={self.rate} is not in (0, 1]")
        for name in ("partitions", "heavy_hashes"):
            if not _ascending(getattr(self, name)):
                errors.append(f"{name} must be ascending, without repetition")
        if len(self.heavy_hashes) > MAX_HEAVY:
            errors.append(f"{len(self.heavy_hashes)} heavy values are more than {MAX_HEAVY}")
        slots = _num_weights(self.sketch)
        if self.weights is not None and len(self.weights) != slots:
            errors.append(f"{len(self.weights)} weights for {slots} retained values")
        if errors:
            raise ValueError(f"bad record: {'; '.join(errors)}")


def merge_records(
    a: Record, b: Record, merge: Callable[[Any, Any], Sketch] | None = None
) -> Record:
    """The record of the rows of both.

    Rows and nulls add, so do the counts of equal heavy values. Sampling rates must agree unless the
    records carry weights; the rate is then that of all rows, by what each stands for.

    Args:
      a: a record.
      b: of other rows.
      merge: of the sketches; by default the `merge` of their module.

    Raises:
      ValueError: if the sketches do not merge, a partition is in both, only one tracks partitions,
        rates differ without weights, or only one has weights.
    """
    if type(a.sketch) is not type(b.sketch):
        kinds = " and ".join(type(record.sketch).__name__ for record in (a, b))
        raise ValueError(f"cannot merge: sketches {kinds}; build both of one kind")
    if bool(len(a.partitions)) != bool(len(b.partitions)):
        raise ValueError("cannot merge: one record tracks its partitions and the other does not")
    if len(twice := np.intersect1d(a.partitions, b.partitions)):
        raise ValueError(f"cannot merge: partitions {twice[:5].tolist()} are in both records")
    if (a.weights is None) != (b.weights is None):
        raise ValueError("cannot merge: one record has weights and the other has none")
    if a.weights is None and a.rate != b.rate:
        raise ValueError(
            f"cannot merge: sampling rates {a.rate} and {b.rate}; records of different rates need "
            "weights"
        )
    merge = _MERGES[type(a.sketch)] if merge is None else merge
    sketch = jax.tree.map(np.asarray, merge(a.sketch, b.sketch))
    hashes, counts = _add_heavy(a, b)
    return Record(
        sketch, a.num_rows + b.num_rows, a.num_nulls + b.num_nulls, _joint_rate(a, b),
        np.union1d(a.partitions, b.partitions), hashes, counts, _merge_weights(a, b, sketch),
    )  # fmt: skip


def missing_partitions(record: Record, declared: Iterable[int]) -> list[int]:
    """Declared partitions that the record does not hold, ascending.

    Raises:
      ValueError: if it holds one that was not declared.
    """
    wanted, held = set(declared), set(record.partitions.tolist())
    if extra := sorted(held - wanted):
        raise ValueError(f"partitions {extra[:5]} are in the record and were not declared")
    return sorted(wanted - held)


def to_bytes(record: Record) -> bytes:
    """The record in the layout of the module."""
    sketch = record.sketch
    kind = next(number for number, cls in KINDS.items() if isinstance(sketch, cls))
    flags = 0 if record.weights is None else _WEIGHTS_FLAG
    header = HEADER.pack(
        MAGIC, VERSION, kind, _log2_size(sketch), _count_bits(sketch), sketch.hasher.hash_id,
        flags, 0, sketch.hasher.seed, record.num_rows, record.num_nulls, record.rate,
    )  # fmt: skip
    heavy = np.stack([record.heavy_hashes, record.heavy_counts], axis=1)
    parts = [
        header,
        struct.pack("<I", len(record.partitions)),
        record.partitions.astype("<u8").tobytes(),
        struct.pack("<H", len(heavy)),
        heavy.astype("<u8").tobytes(),
    ]
    if record.weights is not None:
        parts += [struct.pack("<I", len(record.weights)), record.weights.astype("<f4").tobytes()]
    body = b"".join([*parts, *_payload(sketch)])
    return body + struct.pack("<I", zlib.crc32(body))


def from_bytes(data: bytes) -> Record:
    """The record that `to_bytes` wrote.

    Raises:
      ValueError: for anything else: another format, version or kind, truncated or trailing bytes
        (with the offset), a wrong checksum, or values that no sketch can have.
    """
    reader = Reader(data)
    magic, version, kind, log2_size, bits, hash_id, flags, zero, seed, rows, nulls, rate = (
        reader.unpack(HEADER)
    )
    if magic != MAGIC:
        raise ValueError(f"bytes start with {magic!r}; a sketch of this library starts {MAGIC!r}")
    known = {
        "version": (version, (VERSION,)),
        "kind": (kind, KINDS),
        "hash id": (hash_id, HASH_IDS),
    }
    known |= {"flags": (flags, (0, _WEIGHTS_FLAG)), "reserved field": (zero, (0,))}
    for name, (value, allowed) in known.items():
        if value not in allowed:
            raise ValueError(f"{name} {value} is unknown; this release reads {sorted(allowed)}")
    partitions = reader.array("<u8", reader.number("<I"))
    heavy = reader.array("<u8", 2 * reader.number("<H")).reshape(-1, 2)
    weights = reader.array("<f4", reader.number("<I")) if flags else None
    read = {1: _read_hll, 2: _read_bottom_k, 3: _read_mask, 4: _read_registers, 5: _read_table}
    sketch = read[kind](reader, log2_size, bits, Hasher(hash_id, seed))
    reader.finish(zlib.crc32(data[: reader.offset]), reader.number("<I"))
    if (log2_size, bits) != (_log2_size(sketch), _count_bits(sketch)):
        raise ValueError(f"size 2^{log2_size} with counts of {bits} bits does not fit the sketch")
    hashes, counts = np.ascontiguousarray(heavy.T)
    return Record(sketch, rows, nulls, rate, partitions, hashes, counts, weights)


class Reader:
    """Reads numbers one after the other; every shortage is a ValueError with its offset."""

    def __init__(self, data: bytes, offset: int = 0):
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data is a {type(data).__name__}; wanted the bytes of a message")
        self.data, self.offset = data, offset

    def take(self, size: int) -> bytes:
        """The next bytes."""
        if self.offset + size > len(self.data):
            raise ValueError(
                f"bytes are truncated: {size} wanted at offset {self.offset}, and there are "
                f"{len(self.data)} bytes in all"
            )
        self.offset += size
        return self.data[self.offset - size : self.offset]

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        """The next fields."""
        return layout.unpack(self.take(layout.size))

    def number(self, code: str) -> int:
        """The next whole number."""
        return self.unpack(struct.Struct(code))[0]

    def real(self) -> float:
        """The next float64."""
        return self.unpack(_REAL)[0]

    def array(self, dtype: str, length: int) -> np.ndarray:
        """The next numbers, as an array of their own in the machine's byte order."""
        kind = np.dtype(dtype)
        values = np.frombuffer(self.take(kind.itemsize * length), kind)
        return values.astype(kind.newbyteorder("="))

    def finish(self, checksum: int, stored: int) -> None:
        """Refuse trailing bytes and a wrong checksum."""
        if self.offset != len(self.data):
            raise ValueError(
                f"{len(self.data) - self.offset} bytes too many, from offset {self.offset}"
            )
        if checksum != stored:
            raise ValueError(
                f"checksum {stored:#010x} at offset {self.offset - 4} is not that of the bytes, "
                f"{checksum:#010x}: they were changed"
            )


def _ascending(values: np.ndarray) -> bool:
    return bool((values[1:] > values[:-1]).all())


def _used(sketch: BottomK | MaskSketch) -> np.ndarray:
    return np.asarray(sketch.count) > 0


def _num_weights(sketch: Sketch) -> int:
    if isinstance(sketch, (BottomK, MaskSketch)):
        return int(_used(sketch).sum())
    return sketch.count.shape[-1] if isinstance(sketch, Registers) else 0


def _log2_size(sketch: Sketch) -> int:
    if isinstance(sketch, CountSketch):
        return 0
    if isinstance(sketch, BottomK):
        return (sketch.hi.shape[-1] - 2).bit_length()
    size = {Hll: "registers", MaskSketch: "hi", Registers: "minimum"}[type(sketch)]
    return (getattr(sketch, size).shape[-1] - 1).bit_length()


def _count_bits(sketch: Sketch) -> int:
    if isinstance(sketch, Hll):
        return 8
    return 8 * sketch.count.dtype.itemsize if isinstance(sketch, Registers) else 32


def _payload(sketch: Sketch) -> list[bytes]:
    if isinstance(sketch, Hll):
        return [np.asarray(sketch.registers).tobytes()]
    if isinstance(sketch, Registers):
        count = np.asarray(sketch.count)
        wide = count.astype(count.dtype.newbyteorder("<"))
        return [np.asarray(sketch.minimum).astype("<u4").tobytes(), wide.tobytes()]
    if isinstance(sketch, CountSketch):
        return [struct.pack("<II", *sketch.table.shape), np.asarray(sketch.table, "<i4").tobytes()]
    used, slots = _used(sketch), sketch.hi.shape[-1]
    first = (
        struct.pack("<I", slots - 1)
        if isinstance(sketch, BottomK)
        else struct.pack("<II", slots, int(sketch.level))
    )
    words = join_words(Lanes(sketch.hi, sketch.lo))[used]
    counts = np.asarray(sketch.count)[used].astype("<u4")
    number = struct.pack("<I", int(used.sum()))
    return [first, number, words.astype("<u8").tobytes(), counts.tobytes()]


def _read_hll(reader: Reader, log2_size: int, bits: int, hasher: Hasher) -> Hll:
    _check_log2(log2_size, hll.MIN_PRECISION, hll.MAX_PRECISION)
    values = reader.array("<u1", 2**log2_size)
    largest = hll.max_rank(log2_size, hasher)
    if (values > largest).any():
        raise ValueError(f"rank {values.max()} is above {largest}, the largest of this sketch")
    return Hll(values, hasher)


def _read_registers(reader: Reader, log2_size: int, bits: int, hasher: Hasher) -> Registers:
    _check_log2(log2_size, registers.MIN_PRECISION, registers.MAX_PRECISION)
    if bits not in registers.COUNT_TYPES:
        raise ValueError(f"counts of {bits} bits; registers have {sorted(registers.COUNT_TYPES)}")
    minimum = reader.array("<u4", 2**log2_size)
    count = reader.array(f"<u{bits // 8}", 2**log2_size)
    if ((count == 0) & (minimum != EMPTY_HASH)).any():
        raise ValueError("a register has a hash and the count 0")
    return Registers(minimum, count, hasher)


def _read_bottom_k(reader: Reader, log2_size: int, bits: int, hasher: Hasher) -> BottomK:
    capacity = reader.number("<I")
    hi, lo, count = _read_slots(reader, log2_size, capacity, capacity + 1)
    if not _ascending(join_words(Lanes(hi, lo))[count > 0]):
        raise ValueError("hashes are not ascending")
    return BottomK(hi, lo, count, hasher)


def _read_mask(reader: Reader, log2_size: int, bits: int, hasher: Hasher) -> MaskSketch:
    capacity, level = reader.number("<I"), reader.number("<I")
    if level > mask_sketch.MAX_LEVEL:
        raise ValueError(f"level {level} is above {mask_sketch.MAX_LEVEL}")
    hi, lo, count = _read_slots(reader, log2_size, capacity, capacity)
    words = join_words(Lanes(hi, lo))[count > 0]
    if (words & np.uint64(2**level - 1)).any() or len(np.unique(words)) < len(words):
        raise ValueError(f"hashes repeat or do not end in {level} zero bits")
    return MaskSketch(hi, lo, count, np.asarray(level, np.int32), hasher)


def _read_slots(
    reader: Reader, log2_size: int, capacity: int, slots: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    used = reader.number("<I")
    if not 2 <= capacity <= min(2**log2_size, MAX_CAPACITY) or used > slots:
        raise ValueError(f"{used} slots used of a capacity of {capacity}, at most 2^{log2_size}")
    words, counts = reader.array("<u8", used), reader.array("<u4", used)
    if not counts.all():
        raise ValueError("a retained hash has the count 0")
    lanes = np.full((2, slots), EMPTY_HASH, np.uint32)
    lanes[:, :used] = split_words(words)
    return lanes[0], lanes[1], np.concatenate([counts, np.zeros(slots - used, np.uint32)])


def _read_table(reader: Reader, log2_size: int, bits: int, hasher: Hasher) -> CountSketch:
    depth, width = reader.number("<I"), reader.number("<I")
    if not depth * width:
        raise ValueError(f"a table of {depth} by {width} cells is empty")
    return CountSketch(reader.array("<i4", depth * width).reshape(depth, width), hasher)


def _check_log2(log2_size: int, low: int, high: int) -> None:
    if not low <= log2_size <= high:
        raise ValueError(f"2^{log2_size} registers; a sketch has 2^{low} to 2^{high}")


def _add_heavy(a: Record, b: Record) -> tuple[np.ndarray, np.ndarray]:
    hashes, where = np.unique(np.concatenate([a.heavy_hashes, b.heavy_hashes]), return_inverse=True)
    counts = np.zeros(len(hashes), np.uint64)
    np.add.at(counts, where, np.concatenate([a.heavy_counts, b.heavy_counts]))
    return hashes, counts


def _joint_rate(a: Record, b: Record) -> float:
    if a.rate == b.rate:
        return a.rate
    rows = a.num_rows + b.num_rows
    population = a.num_rows / a.rate + b.num_rows / b.rate
    return rows / population if population else min(a.rate, b.rate)


def _merge_weights(a: Record, b: Record, sketch: Sketch) -> np.ndarray | None:
    """Weights of the merged slots: the own one of a value that one record holds, 1 of others."""
    if a.weights is None or b.weights is None:
        return None
    if isinstance(sketch, Registers):
        kept = [_holds(record.sketch, sketch) for record in (a, b)]
        alone = np.where(kept[0], a.weights, np.where(kept[1], b.weights, np.float32(1)))
        return np.where(kept[0] & kept[1], np.float32(1), alone).astype(np.float32)
    words = _slot_words(sketch)
    merged, times = np.ones(len(words), np.float32), np.zeros(len(words), np.int64)
    for part, weights in ((a.sketch, a.weights), (b.sketch, b.weights)):
        own = _slot_words(part)
        order = np.argsort(own)
        place = np.searchsorted(own, words, sorter=order)
        inside = np.flatnonzero(place < len(own))
        inside = inside[own[order[place[inside]]] == words[inside]]
        merged[inside] = weights[order[place[inside]]]
        times[inside] += 1
    return np.where(times == 1, merged, np.float32(1))


def _holds(part: Sketch, whole: Registers) -> np.ndarray:
    assert isinstance(part, Registers)
    return np.asarray((part.count > 0) & (part.minimum == whole.minimum))


def _slot_words(sketch: Sketch) -> UInt64[np.ndarray, " slots"]:
    assert isinstance(sketch, (BottomK, MaskSketch))
    return join_words(Lanes(sketch.hi, sketch.lo))[_used(sketch)]
