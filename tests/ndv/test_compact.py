"""Columns in few bytes: the hash backwards, round trips, never more than the values, damage."""

import datetime
import decimal

import jax
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.ndv.bottom_k import BottomK
from jaxlab.ndv.column_records import is_dictionary
from jaxlab.ndv.compact import Column, column_to_bytes, read_column, shared_of, words_of_hashes
from jaxlab.ndv.formats import Reader
from jaxlab.ndv.hashing import FAST, INTERCHANGE, Hasher, hash_words, join_words, split_words
from jaxlab.ndv.table import merge, merge_all, sketch, table_from_bytes, table_to_bytes


def record_of(values, **options):
    return sketch([pa.table({"x": values})], **options).columns["x"].record


def assert_equal(a, b):
    assert jax.tree.structure(a.sketch) == jax.tree.structure(b.sketch)
    for x, y in zip(jax.tree.leaves(a.sketch), jax.tree.leaves(b.sketch), strict=True):
        np.testing.assert_array_equal(x, y)
    for field in ("num_rows", "num_nulls", "rate", "partitions", "heavy_hashes", "heavy_counts"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)


def sent(record, num_read):
    """The bytes of a column in a table of so many rows read, and what they are read as."""
    shared = shared_of(record, num_read, num_read)
    data = column_to_bytes(Column(record, record.num_rows / record.rate), shared)
    reader = Reader(data)
    column = read_column(reader, shared)
    assert reader.offset == column.sent_bytes == len(data)
    return data, column.record


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20), st.sampled_from([0, 77]))
@settings(max_examples=50, deadline=None)
def test_the_fast_hash_runs_backwards(words, seed):
    words = np.array(words, np.uint64)
    hashes = join_words(hash_words(split_words(words), Hasher(0, seed)))
    np.testing.assert_array_equal(words_of_hashes(hashes, seed), words)


COLUMNS = {
    "bytes": np.array([-128, 127, 0, 127], np.int64),
    "beyond bytes": np.array([128, 0, 0], np.int64),
    "beyond ints": np.array([2**31, -5, -(2**63), 2**63 - 1], np.int64),
    "texts": ["red", "green", None, "red", "", "seven b", "eight by", "a\0", "a"],
    "floats": np.array([0.5, -0.0, np.nan, -np.inf, 1e300, 5e-324, 1 / 3]),
    "short floats": np.arange(-5, 6, dtype=np.float32) / 100,
    "nothing": pa.array([None, None], pa.int64()),
    "heavy": np.repeat([3, 4, 5], [2000, 1500, 2]),
    "only heavy": np.repeat([3, 4], [2000, 1500]),
    "hashes": np.repeat(np.arange(9000), np.where(np.arange(9000) == 5, 3000, 1)),
}


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("hasher", [FAST, INTERCHANGE, Hasher(0, 5)])
@pytest.mark.parametrize("name", COLUMNS)
def test_columns_come_back_the_same(name, hasher, mixed):
    record = record_of(
        COLUMNS[name], hasher=hasher, partition=7, mixed_rates=mixed, rate=0.5, is_sampled=True
    )
    assert_equal(sent(record, record.num_rows + record.num_nulls)[1], record)
    # Where rows do not follow from the rows read they are sent.
    assert_equal(sent(record, 10**6)[1], record)


VALUES = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=12),
    st.booleans(),
    st.dates(),
    st.decimals(-(10**9), 10**9, places=2),
)


@given(st.lists(VALUES, max_size=30), st.sampled_from([FAST, INTERCHANGE]), st.booleans())
@settings(max_examples=12, deadline=None)
def test_any_values_come_back_the_same(values, hasher, twice):
    kind = type(values[0]) if values else int
    column = pa.array([value for value in values if type(value) is kind] or [None])
    parts = [
        sketch([pa.table({"x": column})], partition=i, hasher=hasher, budget_bytes=700)
        for i in range(3)
    ]
    found = merge_all(parts) if twice else parts[0]
    read = table_from_bytes(table_to_bytes(found))
    assert_equal(read.columns["x"].record, found.columns["x"].record)
    assert read.columns["x"][1:] == found.columns["x"][1:]
    assert read.shared_bytes == found.shared_bytes


def test_heavy_counts_of_a_part_come_back_too():
    heavy, light = (
        sketch([pa.table({"x": np.full(n, 3)})], partition=i) for i, n in enumerate((2000, 5))
    )
    record = merge(heavy, light).columns["x"].record
    assert record.heavy_counts.tolist() == [2000] and record.sketch.count.max() == 2005
    data, read = sent(record, 2005)
    assert_equal(read, record)
    assert len(data) < 10


def dictionary_bytes(values):
    """Bytes of the values of a partition, each as its text, a length and 4 bytes of its rows."""
    return sum(len(str(value).encode()) + 5 for value in set(values) if value is not None)


def day(number):
    return datetime.date(2024, 1, 1) + datetime.timedelta(days=number)


RNG = np.random.default_rng(3)
KINDS = {
    "booleans": (lambda i: i, RNG.integers(0, 2, 900)),
    "flags": (lambda i: "ANR"[i], RNG.integers(0, 3, 900)),
    "digits": (int, RNG.integers(0, 10, 900)),
    "integers": (lambda i: i * 37 - 5000, RNG.integers(0, 300, 900)),
    "one large": (lambda i: i if i else 10**12, RNG.integers(0, 10, 900)),
    "days": (day, RNG.integers(0, 365, 900)),
    "moments": (lambda i: datetime.datetime(2024, 1, 1, 0, 0, i), RNG.integers(0, 60, 900)),
    "cents": (lambda i: i / 100, RNG.integers(0, 11, 900)),
    "decimals": (lambda i: decimal.Decimal(i) / 100, RNG.integers(0, 11, 900)),
    "short texts": (lambda i: f"{i:03}", RNG.integers(0, 50, 900)),
    "texts": (lambda i: f"m{i}" if i % 2 else f"country {i}", RNG.integers(0, 50, 900)),
    "long texts": (lambda i: f"a long text, number {i}", RNG.integers(0, 50, 900)),
    "one value": (lambda i: "A", np.zeros(900, int)),
    "keys": (int, np.arange(900)),
    "many integers": (int, np.arange(4_100)),
    "many more integers": (int, RNG.permutation(9_000)),
}


@pytest.mark.parametrize("hasher", [FAST, Hasher(0, 9)])
@pytest.mark.parametrize("name", KINDS)
def test_a_column_never_takes_more_bytes_than_its_values(name, hasher):
    """Partitions of all sizes, and with the rows of each multiplied, as large tables have them."""
    value_of, chosen = KINDS[name]
    values = [value_of(i) for i in chosen.tolist()]
    for parts in (1, 2, 16, 90):
        for index in range(0, parts, max(1, parts // 4)):
            rows = values[index::parts]
            found = sketch([pa.table({"x": rows})], partition=index, hasher=hasher)
            assert found.columns["x"].sent_bytes <= dictionary_bytes(rows), (parts, index)
    for times in (2**10, 2**18):
        record = record_of(values, hasher=hasher)
        if not is_dictionary(record):
            continue
        count = record.sketch.count.astype(np.uint64) * np.uint64(times)
        many = with_counts(record, count)
        assert len(sent(many, many.num_rows)[0]) <= dictionary_bytes(values)


def with_counts(record, count):
    """The record of a column with other numbers of rows of its values, its own list of heavy."""
    sketch_ = record.sketch
    words = (sketch_.hi.astype(np.uint64) << np.uint64(32)) | sketch_.lo
    heavy = np.flatnonzero(count >= np.maximum(count.sum() / 1024, 1024))[:256]
    return type(record)(
        BottomK(sketch_.hi, sketch_.lo, count.astype(np.uint32), sketch_.hasher),
        int(count.sum()), 0, record.rate, record.partitions, words[heavy], count[heavy],
    )  # fmt: skip


def test_the_smallest_columns_and_what_nulls_take():
    def size(values):
        return sketch([pa.table({"x": values})]).columns["x"].sent_bytes

    # One value: 4 bytes beside 6, or 5 for the empty text, whatever the number of its rows.
    assert size(["A"]) == size(["A"] * 50_000) == 4 and size([""] * 50_000) == 3
    assert size([True] * 50_000) == 4 and size(["A", "N"] * 25_000) == 8
    # The number of nulls takes 1 to 3 bytes more up to two million of them; of a column with one
    # value of one byte they are too many from 16,384 nulls on.
    assert size(["A"] + [None] * 16_383) == 6 and size(["A"] + [None] * 16_384) == 7
    assert size(["A", "N"] + [None] * 16_384) == 9
    # A column without values, whose dictionary is empty, is never smaller than what it says.
    assert size(pa.array([], pa.int64())) == 2
    assert size([None] * 127) == 3 and size([None] * 20_000) == 5


LETTERS = [chr(65 + i) for i in range(26)]


@pytest.mark.parametrize(("rows", "from_values"), [(1, 5), (200, 6), (300, 8)])
def test_from_so_many_one_letter_values_on_even_the_head_is_paid_for(rows, from_values):
    """A message with one column against its values alone, of so many rows each.

    The head, the name and the checksum take 21 or 22 bytes here, a dictionary of values 6 each.
    """
    for number in range(1, 27):
        values = LETTERS[:number] * rows
        size = len(table_to_bytes(sketch([pa.table({"x": values})])))
        assert (size <= dictionary_bytes(values)) == (number >= from_values), number


def test_nulls_of_a_sampled_partition_are_paid_for_from_two_values_on():
    """Two numbers more: the nulls in the sample, and the rows of the partition with a value."""
    for number in range(1, 27):
        values = (LETTERS[:number] + [None]) * 500
        found = sketch([pa.table({"x": values})], rate=0.5, partition=1).columns["x"]
        assert found.population == number * 500 and found.record.num_nulls > 128
        assert (found.sent_bytes <= dictionary_bytes(values)) == (number >= 2), number


def test_a_table_of_many_partitions_takes_less_than_its_values():
    """Everything included, the head of every message too, with two columns a partition."""
    rng = np.random.default_rng(0)
    for rows, parts in ((100, 20), (20, 20)):
        flags, digits = rng.integers(0, 3, (parts, rows)), rng.integers(0, 10, (parts, rows))
        tables = [
            pa.table({"flag": ["ANR"[i] for i in flag], "digit": digit})
            for flag, digit in zip(flags.tolist(), digits.tolist(), strict=True)
        ]
        messages = [table_to_bytes(sketch([t], partition=i)) for i, t in enumerate(tables)]
        merged = merge_all(map(table_from_bytes, messages))
        assert merged.sent_bytes == sum(map(len, messages))
        values = sum(
            dictionary_bytes(t[name].to_pylist()) for t in tables for name in t.schema.names
        )
        assert merged.sent_bytes < values


def test_hashes_take_the_bits_of_their_gaps():
    """Between 8,765 of d hashes lie 64 - log2(d) bits, of which each takes 2 more on average."""
    for number in (10_000, 400_000):
        column = sketch([pa.table({"x": np.arange(number)})]).columns["x"]
        held = column.record.sketch.count.shape[-1] - 1
        gap = np.log2(2**64 / number)
        assert held > 8_500 and gap < 8 * column.sent_bytes / held < gap + 2.1


def test_a_message_says_once_what_columns_share():
    columns = {f"column {i:02}": ["A"] * 5 for i in range(40)}
    one, all_ = (sketch([pa.table(c)]) for c in ({"column 00": ["A"] * 5}, columns))
    # Magic and version; flags, hash, seed; rows, rows read, partitions, columns; CRC.
    assert one.shared_bytes == 5 + 3 + 4 + (1 + 9) + 4
    assert all_.shared_bytes == one.shared_bytes + 39 * (1 + 9)
    for found in (one, all_):
        assert len(table_to_bytes(found)) == found.sent_bytes
        assert found.sent_bytes == found.shared_bytes + 4 * len(found.columns)
    sampled = sketch([pa.table(columns)], partition=300, rate=0.5, seed=1)
    assert sampled.shared_bytes == all_.shared_bytes + 2 + 8
    part = table_from_bytes(table_to_bytes(sampled))
    assert part.shared_bytes == sampled.shared_bytes and part.sent_bytes == sampled.sent_bytes


def test_damage_is_refused():
    record = record_of(COLUMNS["heavy"])
    data, _ = sent(record, record.num_rows)
    shared = shared_of(record, record.num_rows, record.num_rows)
    for length in range(len(data)):
        with pytest.raises(ValueError, match="truncated"):
            read_column(Reader(data[:length]), shared)
    # Form; entries; kind and code of the values; code of the counts; counts; the heavy ones.
    for offset, value, message in (
        (0, 3, "form 3 of a column at offset 0"),
        (1, 200, "truncated|at most"),
        (2, data[2] | 0b111100 & ~0b10100, "lengths of up to|truncated"),
        (6, 9, "code 9 with lengths of up to 9"),
        (8, 255, "3502 rows do not fit the counts"),
        (len(data) - 1, 9, "9 heavy entries of 3"),
        (3, data[4], "a value is twice"),
    ):
        changed = bytearray(data)
        changed[offset] = value
        with pytest.raises(ValueError, match=message):
            read_column(Reader(bytes(changed)), shared)
    few = shared._replace(num_read=5)
    nulls = bytes([data[0] | 16, 9]) + data[1:]
    with pytest.raises(ValueError, match="9 nulls of 5 rows"):
        read_column(Reader(nulls), few)
