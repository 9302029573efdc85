"""Bad input from end to end: empty columns, wrong numbers, foreign and damaged partial results.

What belongs to one part is tested beside that part; here stands what has to hold for all of them:
every kind of sketch, every format, columns of every type.
"""

import datetime
import decimal
import struct
import zlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.ndv import bottom_k, count_sketch, hll, mask_sketch, registers
from jaxlab.ndv import datasketches as images
from jaxlab.ndv.columns import hash_column
from jaxlab.ndv.formats import Record, from_bytes, merge_records, to_bytes
from jaxlab.ndv.hashing import FAST, INTERCHANGE, Hasher, join_words
from jaxlab.ndv.profile import profile_from_counts, profile_from_values
from jaxlab.ndv.table import (
    estimate_table,
    merge,
    merge_all,
    sketch,
    table_from_bytes,
    table_to_bytes,
)

TYPES = {
    "bool": pa.bool_(), "int8": pa.int8(), "uint64": pa.uint64(), "double": pa.float64(),
    "string": pa.string(), "binary": pa.binary(), "date": pa.date32(), "time": pa.time64("us"),
    "timestamp": pa.timestamp("us"), "decimal": pa.decimal128(10, 2), "null": pa.null(),
    "dictionary": pa.dictionary(pa.int8(), pa.string()),
}  # fmt: skip


def one(values, **options):
    return sketch([pa.table({"x": values})], **options)


def answer_of(values, **options):
    return estimate_table(one(values, **options))[0]


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("kind", TYPES)
def test_columns_without_values_have_none(kind, rows):
    for options in ({}, {"rate": 0.5}, {"rate": 0.5, "collapse": True}):
        answer = answer_of(pa.nulls(rows, TYPES[kind]), partition=1, **options)
        result = answer.result
        # Blocks that were not read may hold what they like: as many rows as were read.
        most = rows if options.get("collapse") else 0
        assert (result.estimate, result.low, result.high, result.status) == (0, 0, most, "empty")
    assert answer.null_fraction == (1 if rows else 0)


def test_a_column_that_is_empty_in_one_partition_only_is_not_empty():
    parts = [one(values, partition=i) for i, values in enumerate(([None] * 3, [7, 7, None], []))]
    parts[2] = sketch([], columns=["x"], partition=2)
    (answer,) = estimate_table(merge_all(parts), partitions=range(3))
    assert (answer.result.estimate, answer.null_fraction) == (1, 4 / 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: one([1], rate=0), "rate=0 is not in"),
        (lambda: one([1], rate=-0.1), "rate=-0.1 is not in"),
        (lambda: one([1], rate=1.01), "rate=1.01 is not in"),
        (lambda: one([1], rate=np.nan), "rate=nan is not in"),
        (lambda: profile_from_counts([3, 3], population=5), "N=5.0 is out of range; wanted at lea"),
        (lambda: profile_from_counts([3, -1], population=5), "counts has the negative entry -1"),
        (lambda: profile_from_values(np.arange(3), population=np.nan), "N has the entry nan"),
        (lambda: one([1], budget_bytes=-1), "budget_bytes=-1"),
        (lambda: one([1], block_rows=0), "block_rows=0"),
    ],
)
def test_numbers_out_of_range_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_without_the_rows_of_a_table_they_follow_from_the_sample():
    """A profile needs N; a sample that was drawn elsewhere gives it by its rate."""
    with pytest.raises(TypeError, match="population"):
        profile_from_counts([1, 2])
    found = one([1, 1, 2, None], rate=0.25, is_sampled=True)
    assert (found.num_rows, found.columns["x"].population) == (16, 12)


MAKERS = {
    "hll": lambda size=6, hasher=FAST: hll.empty(size, hasher=hasher),
    "bottom_k": lambda size=6, hasher=FAST: bottom_k.empty(2**size, hasher=hasher),
    "mask": lambda size=6, hasher=FAST: mask_sketch.empty(2**size, hasher=hasher),
    "registers": lambda size=6, hasher=FAST: registers.empty(size, hasher=hasher),
    "count_sketch": lambda size=6, hasher=FAST: count_sketch.empty(4, 2**size, hasher=hasher),
}


@pytest.mark.parametrize("other", [{"size": 7}, {"hasher": INTERCHANGE}, {"hasher": Hasher(0, 1)}])
@pytest.mark.parametrize("kind", MAKERS)
def test_sketches_of_other_sizes_hashes_and_seeds_never_merge(kind, other):
    a, b = Record(MAKERS[kind](), 0), Record(MAKERS[kind](**other), 0)
    for pair in ((a, b), (b, a), (from_bytes(to_bytes(a)), from_bytes(to_bytes(b)))):
        with pytest.raises(ValueError, match="cannot merge: "):
            merge_records(*pair)


@pytest.mark.parametrize(
    "other",
    [
        {"hasher": INTERCHANGE}, {"hasher": Hasher(0, 9)}, {"rate": 0.25}, {"collapse": True},
        {"partition": None}, {"mixed_rates": True}, {"partition": 0},
    ],
)  # fmt: skip
def test_tables_of_other_settings_never_merge(other):
    usual = {"partition": 1, "rate": 0.5, "is_sampled": True}
    a = one([1, 2, 3], **{**usual, "partition": 0})
    b = one([1, 2, 3], **{**usual, **other})
    for pair in ((a, b), (b, a)):
        with pytest.raises(ValueError, match="cannot merge: "):
            merge(*pair)
        with pytest.raises(ValueError, match="cannot merge: "):
            merge(*(table_from_bytes(table_to_bytes(table)) for table in pair))


def parts(number):
    for index in range(number):
        yield one([1, 2, index + 10], partition=index + 5)


def test_a_partition_that_arrives_twice_is_found_however_the_messages_are_merged():
    a, b, c, d = (table_from_bytes(table_to_bytes(part)) for part in parts(4))
    for merged in (
        lambda: merge_all([a, b, c, d, a]),
        lambda: merge(merge(a, b), merge(c, b)),
        lambda: merge(a, merge(merge(b, c), merge(d, a))),
    ):
        with pytest.raises(ValueError, match=r"column 'x': cannot merge: partitions \[[56]\] are"):
            merged()


def test_partitions_that_are_lost_are_named_and_unknown_ones_too():
    a, _, c, _ = parts(4)
    found = table_from_bytes(table_to_bytes(merge(a, c)))
    with pytest.raises(ValueError, match=r"partitions \[6, 8\] are missing .*\(2 of 4\)"):
        estimate_table(found, partitions=[5, 6, 7, 8])
    with pytest.raises(ValueError, match=r"partitions \[7\] are in the record and were not decl"):
        estimate_table(found, partitions=[5])
    assert estimate_table(found, partitions=[7, 5])[0].result.estimate == 4


def test_a_value_of_two_partitions_is_seen_twice_and_not_once_in_each():
    profile = (
        merge_all(one([1, 2, 3], partition=i) for i in range(2)).columns["x"].record.sketch.count
    )
    assert profile[profile > 0].tolist() == [2, 2, 2]


def with_checksum(body):
    return body + struct.pack("<I", zlib.crc32(body))


def messages():
    rng = np.random.default_rng(0)
    columns = {
        "few": ["A", "N", None, "a longer text"] * 100,
        "number": rng.integers(-300, 300, 400),
        "many": np.arange(400),
        "cents": rng.integers(0, 9, 400) / 100,
        "heavy": np.repeat([3, 4], [396, 4]),
    }
    options = {"budget_bytes": 700, "block_rows": 128, "rate": 0.5, "is_sampled": True}
    table = sketch([pa.table(columns)], partition=2, **options)
    mixed = sketch([pa.table(columns)], partition=3, mixed_rates=True, **options)
    kinds = [to_bytes(Record(make(), 0)) for make in MAKERS.values()]
    return [table_to_bytes(table), table_to_bytes(mixed)], kinds


MESSAGES, RECORDS = messages()


@given(data=st.data(), which=st.integers(0, 6))
@settings(max_examples=200, deadline=None)
def test_whatever_the_bytes_say_the_answer_is_a_value_or_a_value_error(data, which):
    """Damage whose checksum was made right again: nothing else than a ValueError comes out."""
    is_table = which < len(MESSAGES)
    body = bytearray((MESSAGES + RECORDS)[which][:-4])
    read = table_from_bytes if is_table else from_bytes
    for _ in range(data.draw(st.integers(1, 3))):
        # Heads are where lengths stand.
        place = data.draw(st.one_of(st.integers(0, 60), st.integers(0, len(body) - 1)))
        body[min(place, len(body) - 1)] = data.draw(st.sampled_from([0, 1, 2, 127, 128, 255]))
    body = bytes(body[: data.draw(st.one_of(st.just(len(body)), st.integers(0, len(body))))])
    try:
        found = read(with_checksum(body))
    except ValueError as error:
        assert str(error)
        return
    if is_table:
        assert table_to_bytes(found)


@pytest.mark.parametrize("read", [table_from_bytes, from_bytes, images.hll_from_bytes])
def test_what_is_no_message_is_refused(read):
    for data in (b"", b"J", b"JXNT", b"JXND", b"PK\x03\x04" + bytes(100), bytes(200)):
        with pytest.raises(ValueError):
            read(data)


def test_a_message_of_another_release_is_refused_by_its_version():
    data = bytearray(MESSAGES[0])
    data[4] = 1
    with pytest.raises(ValueError, match="version 1; a table sketch of this release starts with"):
        table_from_bytes(bytes(data))


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1], [2, 3]]),
        pa.array([{"a": 1}]),
        pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
        pa.array([[1, 2]], pa.list_(pa.int8(), 2)),
    ],
    ids=["list", "struct", "map", "fixed list"],
)
def test_nested_columns_are_refused_by_name_or_hashed_when_asked(column):
    with pytest.raises(TypeError, match="column 'x': Arrow type .*serialize_nested=True"):
        one(column)
    assert answer_of(column, serialize_nested=True).result.estimate == len(column)


def test_counts_that_are_full_are_flagged_and_go_to_the_tail():
    """One value of 70,000 rows among 31 of one row, in registers whose counts end at 65,535."""
    counts = np.array([70_000, *[1] * 31])
    words = join_words(hash_column(np.arange(32)).lanes)
    sketch_ = registers.from_counts(words, counts, 4)
    profile = registers.profile(sketch_, 100)
    assert bool(profile.saturated) and int(sketch_.count.max()) == 2**16 - 1
    assert float(profile.f.sum() + profile.d_tail) == pytest.approx(float(profile.d))
    assert float(profile.d_tail) > 0 == float(profile.f[1:].sum())
    # Beside a column's sketch the value is counted in full.
    rows = np.repeat(np.arange(32), counts)
    record = one(rows, budget_bytes=256, block_rows=2**16).columns["x"].record
    assert record.heavy_counts.tolist() == [70_000]


def test_a_sketch_larger_than_its_column_is_exact():
    values = np.repeat(np.arange(30), np.arange(1, 31))
    assert (answer_of(values).result.estimate, answer_of(values).result.method) == (30, "EXACT")


EQUAL = {
    "widths": [pa.array([-3, None, 7, 100] * 5, kind) for kind in ("int8", "int16", "int64")],
    "signs": [pa.array([3, None, 7, 200] * 5, kind) for kind in ("uint8", "uint64", "int64")],
    "floats": [
        pa.array([0.0, np.nan, 0.5, None], pa.float64()),
        pa.array([-0.0, -np.nan, 0.5, None], pa.float64()),
        pa.array([0.0, np.nan, 0.5, None], pa.float32()),
    ],
    "texts": [
        pa.array(["a", None, "größe", "a" * 20, "a"]).cast(kind)
        for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()))
    ],
    "numbers in a dictionary": [
        pa.array([5, None, 5, 2**40]),
        pa.array([5, None, 5, 2**40]).dictionary_encode(),
        pa.chunked_array([[5, None], [5, 2**40]]),
    ],
    "days": [
        pa.array([datetime.date(2024, 1, 2), None]).cast(kind) for kind in (pa.date32(), "date64")
    ],
    "decimals": [
        pa.array([decimal.Decimal("1.5"), None], pa.decimal128(38, 1)).cast(kind)
        for kind in (pa.decimal128(5, 1), pa.decimal128(38, 1))
    ],
}  # fmt: skip


@pytest.mark.parametrize("hasher", [FAST, INTERCHANGE])
@pytest.mark.parametrize("name", EQUAL)
def test_equal_columns_send_equal_bytes_whatever_their_width_or_encoding(name, hasher):
    first, *others = (
        table_to_bytes(one(column, hasher=hasher, partition=1)) for column in EQUAL[name]
    )
    for other in others:
        assert other == first


def test_nulls_are_counted_apart_and_nan_is_a_value():
    answer = answer_of(pa.array([0.0, -0.0, None, np.nan, None, np.nan]))
    assert (answer.result.estimate, answer.null_fraction) == (2, 1 / 3)
    assert answer_of(["", None, ""]).result.estimate == 1
