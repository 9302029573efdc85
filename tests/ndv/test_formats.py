"""Records as bytes: round trips, layouts by hand, every damage refused, wrong merges refused."""

import struct
import zlib

import jax
import numpy as np
import pytest

from jaxlab.ndv import bottom_k, count_sketch, hll, mask_sketch, registers
from jaxlab.ndv.formats import Record, from_bytes, merge_records, missing_partitions, to_bytes
from jaxlab.ndv.hashing import FAST, Hasher, hash_words, split_words

SEEDED = Hasher(0, 5)
ROWS = 64
BUILD = {
    "hll": lambda rows, mask: hll.update(hll.empty(4, hasher=SEEDED), rows, mask),
    "bottom_k": lambda rows, mask: bottom_k.update(
        bottom_k.empty(9, hasher=SEEDED), rows, mask, block=8
    ),
    "mask": lambda rows, mask: mask_sketch.update(
        mask_sketch.empty(9, hasher=SEEDED), rows, mask, block=8
    ),
    "registers": lambda rows, mask: registers.update(registers.empty(6, hasher=SEEDED), rows, mask),
    "table": lambda rows, mask: count_sketch.update(
        count_sketch.empty(2, 8, hasher=SEEDED), rows, None, mask
    ),
}
build = {kind: jax.jit(function) for kind, function in BUILD.items()}
KINDS = tuple(BUILD)
ROOMS = (hll, bottom_k, mask_sketch, registers, count_sketch)
MERGES = {kind: jax.jit(room.merge) for kind, room in zip(KINDS, ROOMS, strict=True)}


def sketch_of(kind, values):
    padded = np.zeros(ROWS, np.uint64)
    padded[: len(values)] = values
    return build[kind](hash_words(split_words(padded), SEEDED), np.arange(ROWS) < len(values))


def words(*values):
    return np.array(values, np.uint64)


def record_of(kind, values, **options):
    return Record(sketch_of(kind, values), num_rows=len(values), **options)


def assert_equal(a, b):
    assert jax.tree.structure(a.sketch) == jax.tree.structure(b.sketch)
    for x, y in zip(jax.tree.leaves(a.sketch), jax.tree.leaves(b.sketch), strict=True):
        assert x.dtype == y.dtype and isinstance(y, np.ndarray)
        np.testing.assert_array_equal(x, y)
    for name in ("num_rows", "num_nulls", "rate"):
        assert getattr(a, name) == getattr(b, name)
    for name in ("partitions", "heavy_hashes", "heavy_counts"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (a.weights is None) == (b.weights is None)
    if a.weights is not None:
        np.testing.assert_array_equal(a.weights, b.weights)


def resealed(image):
    """The bytes with a checksum that fits them."""
    return bytes(image[:-4]) + struct.pack("<I", zlib.crc32(bytes(image[:-4])))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [0, 3, 50])
def test_what_was_written_is_read(kind, number):
    plain = record_of(kind, np.arange(number))
    assert_equal(plain, from_bytes(to_bytes(plain)))
    full = record_of(
        kind, np.arange(number) % 7, num_nulls=2**40, rate=0.25, partitions=words(1, 2**63),
        heavy_hashes=words(0, 2**64 - 1), heavy_counts=words(2**50, 7),
    )  # fmt: skip
    assert_equal(full, from_bytes(to_bytes(full)))


def test_the_layout_is_the_documented_one():
    ranks = np.arange(16, dtype=np.uint8)
    record = Record(
        hll.Hll(ranks, Hasher(2, 313)), 1000, 24, 0.5, words(3, 9), words(77), words(500)
    )
    body = b"JXND" + bytes([1, 1, 4, 8, 2, 0, 0, 0]) + (313).to_bytes(4, "little")
    body += struct.pack("<QQd", 1000, 24, 0.5)
    body += struct.pack("<IQQ", 2, 3, 9) + struct.pack("<HQQ", 1, 77, 500) + bytes(range(16))
    assert to_bytes(record) == body + struct.pack("<I", zlib.crc32(body))


def test_the_layouts_of_the_other_kinds():
    nothing = np.full(4, 2**32 - 1, np.uint32)
    lo = nothing.copy()
    lo[:2], count, hi = [8, 16], np.array([3, 1, 0, 0], np.uint32), nothing.copy()
    hi[:2] = 1
    pairs = struct.pack("<IQQII", 2, 2**32 + 8, 2**32 + 16, 3, 1)
    masks = mask_sketch.MaskSketch(hi, lo, count, np.array(3, np.int32), FAST)
    minimum = np.full(16, 2**32 - 1, np.uint32)
    held = np.zeros(16, np.uint16)
    minimum[2], held[2] = 5, 600
    table = np.array([[1, -2]], np.int32)
    for sketch, size, bits, payload in (
        (bottom_k.BottomK(hi, lo, count, FAST), 2, 32, struct.pack("<I", 3) + pairs),
        (masks, 2, 32, struct.pack("<II", 4, 3) + pairs),
        (registers.Registers(minimum, held, FAST), 4, 16, minimum.tobytes() + held.tobytes()),
        (count_sketch.CountSketch(table, FAST), 0, 32, struct.pack("<IIii", 1, 2, 1, -2)),
    ):
        image = to_bytes(Record(sketch, 4))
        assert image[6:8] == bytes([size, bits]) and image[46:-4] == payload
        assert_equal(Record(sketch, 4), from_bytes(image))


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_and_every_changed_byte_is_refused(kind):
    image = to_bytes(record_of(kind, np.arange(20), partitions=words(4), rate=0.5))
    for length in range(len(image)):
        with pytest.raises(ValueError, match="truncated: .* at offset"):
            from_bytes(image[:length])
    with pytest.raises(ValueError, match=f"2 bytes too many, from offset {len(image)}"):
        from_bytes(image + b"ab")
    for offset in range(len(image)):
        damaged = bytearray(image)
        damaged[offset] ^= 0x41
        with pytest.raises(ValueError):
            from_bytes(bytes(damaged))


@pytest.mark.parametrize(
    ("kind", "offset", "values", "message"),
    [
        ("hll", 0, b"PK", "bytes start with b'PKND'"),
        ("hll", 4, [2], "version 2 is unknown"),
        ("hll", 5, [6], "kind 6 is unknown"),
        ("hll", 8, [3], "hash id 3 is unknown"),
        ("hll", 9, [2], "flags 2 is unknown"),
        ("hll", 10, [1], "reserved field 1 is unknown"),
        ("hll", 6, [3], r"2\^3 registers; a sketch has"),
        ("hll", 7, [16], "counts of 16 bits does not fit"),
        ("hll", 32, struct.pack("<d", 1.5), r"rate=1.5 is not in \(0, 1\]"),
        ("hll", 32, struct.pack("<d", float("nan")), r"rate=nan is not in \(0, 1\]"),
        ("hll", 46, [62], "rank 62 is above 61"),
        ("registers", 7, [32], "counts of 32 bits"),
        ("registers", 46 + 256, [0] * 128, "a register has a hash and the count 0"),
        ("bottom_k", 6, [3], r"capacity of 9, at most 2\^3"),
        ("bottom_k", 46, [1], "capacity of 1"),
        ("bottom_k", 50, [11], "11 slots used of a capacity of 9"),
        ("bottom_k", 54, [255] * 8, "hashes are not ascending"),
        ("bottom_k", 54 + 80, [0] * 4, "a retained hash has the count 0"),
        ("mask", 50, [65], "level 65 is above 64"),
        ("mask", 50, [40], "do not end in 40 zero bits"),
        ("table", 46, [0], "a table of 0 by 8 cells is empty"),
    ],
)
def test_values_that_no_sketch_can_have_are_refused(kind, offset, values, message):
    image = bytearray(to_bytes(record_of(kind, np.arange(40))))
    image[offset : offset + len(values)] = bytes(values)
    with pytest.raises(ValueError, match=message):
        from_bytes(resealed(image))


@pytest.mark.parametrize("kind", KINDS)
def test_merged_records_equal_the_record_of_all_rows(kind):
    a, b = np.arange(30), np.arange(20, 60) % 45
    merged = merge_records(
        record_of(kind, a, num_nulls=3, partitions=words(5), rate=0.5,
                  heavy_hashes=words(1, 4), heavy_counts=words(10, 20)),
        record_of(kind, b, num_nulls=4, partitions=words(2, 9), rate=0.5,
                  heavy_hashes=words(4, 8), heavy_counts=words(7, 30)),
    )  # fmt: skip
    rows = np.concatenate([a, b])
    whole = sketch_of(kind, rows[:ROWS])
    whole = MERGES[kind](whole, sketch_of(kind, rows[ROWS:]))
    expected = Record(whole, 70, 7, 0.5, words(2, 5, 9), words(1, 4, 8), words(10, 27, 30))
    assert_equal(expected, merged)
    assert_equal(merged, from_bytes(to_bytes(merged)))


def test_a_partition_counts_once_and_what_is_missing_is_named():
    a, b = (record_of("hll", np.arange(3), partitions=words(*ids)) for ids in ((1, 2), (2, 3)))
    with pytest.raises(ValueError, match=r"cannot merge: partitions \[2\] are in both"):
        merge_records(a, b)
    assert missing_partitions(b, [1, 2, 3, 4]) == [1, 4]
    with pytest.raises(ValueError, match=r"partitions \[2\] are in the record and were not"):
        missing_partitions(b, [1, 3])
    with pytest.raises(ValueError, match="tracks its partitions and the other does not"):
        merge_records(a, record_of("hll", np.arange(3)))


def test_records_of_another_kind_are_refused():
    a = record_of("hll", np.arange(3), rate=0.5)
    with pytest.raises(ValueError, match="cannot merge: sketches Hll and BottomK"):
        merge_records(a, record_of("bottom_k", np.arange(3), rate=0.5))
    with pytest.raises(ValueError, match="cannot merge: sampling rates 0.5 and 0.25"):
        merge_records(a, record_of("hll", np.arange(3), rate=0.25))
    with pytest.raises(ValueError, match="cannot merge: hashes of dual-lane fmix32 with seed 5"):
        merge_records(a, Record(hll.empty(4, hasher=FAST), 0, rate=0.5))
    with pytest.raises(ValueError, match="cannot merge: numbers of registers"):
        merge_records(a, Record(hll.empty(5, hasher=SEEDED), 0, rate=0.5))


@pytest.mark.parametrize("kind", ["bottom_k", "mask", "registers"])
def test_weights_follow_their_values_through_merges(kind):
    """A value of one record keeps its weight, one of both becomes 1."""

    def weighted(values, rate, weight):
        sketch = sketch_of(kind, values)
        number = 64 if kind == "registers" else int((np.asarray(sketch.count) > 0).sum())
        weights = np.full(number, weight, np.float32)
        return Record(sketch, len(values), rate=rate, weights=weights)

    a, b = weighted(np.arange(4), 0.25, 2.0), weighted(np.arange(3, 7), 0.0625, 4.0)
    merged = merge_records(a, b)
    assert_equal(merged, from_bytes(to_bytes(merged)))
    assert_equal(merged, merge_records(b, a))
    assert merged.rate == pytest.approx(8 / (4 / 0.25 + 4 / 0.0625))
    counts = merged.sketch.count if kind == "registers" else merged.sketch.count[:7]
    assert sorted(merged.weights[counts == 1].tolist()) == [2.0] * 3 + [4.0] * 3
    assert (merged.weights[counts != 1] == 1).all() and (counts == 2).sum() == 1
    with pytest.raises(ValueError, match="one record has weights and the other has none"):
        merge_records(a, record_of(kind, np.arange(4), rate=0.25))


def test_bad_records_say_everything_that_is_wrong():
    with pytest.raises(ValueError, match="num_rows=-1 .* rate=0.0 .* partitions .* 3 weights"):
        Record(hll.empty(4), -1, rate=0.0, partitions=words(2, 1), weights=np.ones(3, np.float32))
