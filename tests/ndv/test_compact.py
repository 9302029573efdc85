"""Dictionaries in few bytes: the hash backwards, round trips, sizes, damage."""

import jax
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.ndv.compact import column_from_bytes, column_to_bytes, words_of_hashes
from jaxlab.ndv.formats import to_bytes
from jaxlab.ndv.hashing import FAST, INTERCHANGE, hash_words, join_words, split_words
from jaxlab.ndv.table import merge, sketch


def record_of(values, **options):
    return sketch([pa.table({"x": values})], **options).columns["x"].record


def assert_equal(a, b):
    assert jax.tree.structure(a.sketch) == jax.tree.structure(b.sketch)
    for x, y in zip(jax.tree.leaves(a.sketch), jax.tree.leaves(b.sketch), strict=True):
        np.testing.assert_array_equal(x, y)
    for field in ("num_rows", "num_nulls", "rate", "partitions", "heavy_hashes", "heavy_counts"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20))
@settings(max_examples=50, deadline=None)
def test_the_fast_hash_runs_backwards(words):
    words = np.array(words, np.uint64)
    hashes = join_words(hash_words(split_words(words), FAST))
    np.testing.assert_array_equal(words_of_hashes(hashes), words)


COLUMNS = {
    "bytes": np.array([-128, 127, 0, 127], np.int64),
    "beyond bytes": np.array([128, 0, 0], np.int64),
    "beyond shorts": np.array([-(2**15) - 1], np.int64),
    "beyond ints": np.array([2**31, -5], np.int64),
    "texts": ["red", "green", None, "red"],
    "floats": np.array([0.5, -0.0, np.nan]),
    "nothing": pa.array([None, None], pa.int64()),
    "heavy": np.repeat([3, 4, 5], [2000, 1500, 2]),
    "registers": np.arange(9000),
}


@pytest.mark.parametrize("hasher", [FAST, INTERCHANGE])
@pytest.mark.parametrize("name", COLUMNS)
def test_columns_come_back_the_same(name, hasher):
    record = record_of(COLUMNS[name], hasher=hasher, partition=7)
    assert_equal(column_from_bytes(column_to_bytes(record)), record)


def test_heavy_counts_of_a_part_come_back_too():
    heavy, light = (
        sketch([pa.table({"x": np.full(n, 3)})], partition=i) for i, n in enumerate((2000, 5))
    )
    record = merge(heavy, light).columns["x"].record
    assert record.heavy_counts.tolist() == [2000] and record.sketch.count.max() == 2005
    assert_equal(column_from_bytes(column_to_bytes(record)), record)


def test_entries_take_the_bytes_they_need():
    def size(values):
        return len(column_to_bytes(record_of(values)))

    start = size(pa.array([], pa.int64()))
    assert start < 90
    assert size(np.arange(100)) - start == 100 * 2 + 13
    assert size(np.repeat(np.arange(100), 300)) - start == 100 * 3 + 13
    assert size(np.arange(100) * 1000) - start == 100 * 5 + 13
    texts = [f"number {i}" for i in range(100)]
    assert size(texts) - start == 100 * 9 + 13
    # A dictionary of values ships the text of each, its length and 4 bytes of count.
    assert size(texts) - start < sum(len(text) + 5 for text in texts)
    # Values with 1,024 rows and more are listed for the merge with registers: one bit each.
    many = np.repeat(np.arange(50), 2000)
    assert len(record_of(many).heavy_hashes) == 50 and size(many) - start == 50 * 3 + 7
    assert len(to_bytes(record_of(many))) - start > 50 * 27


def test_damage_is_refused():
    data = column_to_bytes(record_of(COLUMNS["heavy"]))
    for length in range(len(data)):
        with pytest.raises(ValueError):
            column_from_bytes(data[:length])
    with pytest.raises(ValueError, match="1 bytes too many"):
        column_from_bytes(data + b"x")
    with pytest.raises(ValueError, match="form 9 of a column is unknown"):
        column_from_bytes(b"\x09" + data[1:])
    sizes = len(data) - 3 * (1 + 2) - 1 - 6
    for offset, value, message in (
        (0, 255, "truncated"),
        (4, 3, "words of 3"),
        (5, 8, "8 bytes fit no"),
    ):
        changed = bytearray(data)
        changed[sizes + offset] = value
        with pytest.raises(ValueError, match=message):
            column_from_bytes(bytes(changed))
