"""Streams of hashed blocks: the bits of `hash_column`, whatever the column is made of."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from jaxlab.ndv import hashing, streams
from jaxlab.ndv.columns import hash_column
from jaxlab.ndv.hashing import AUTHORS, FAST, INTERCHANGE, join_words

ROWS = 40_000


def texts(rng, lengths):
    letters = rng.choice(np.frombuffer(b"abcdefgh", np.uint8), int(lengths.sum()))
    ends = np.cumsum(np.append(0, lengths)).astype(np.int32)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(letters.tobytes())]
    return pa.StringArray.from_buffers(len(lengths), buffers[1], buffers[2])


def columns():
    rng = np.random.default_rng(0)
    numbers = pa.array(rng.integers(-9, 10**6, ROWS))
    is_null = pa.array(rng.random(ROWS) < 0.2)
    doubles = np.where(rng.random(ROWS) < 0.1, -0.0, rng.normal(size=ROWS))
    doubles[::7] = np.nan
    short = texts(rng, rng.integers(0, 33, ROWS))
    long = texts(rng, rng.choice([0, 5, 16, 70, 128, 300], 20_000))
    encoded = pc.cast(pc.if_else(is_null, None, numbers), pa.string()).dictionary_encode()
    return {
        "int64": numbers,
        "int16": pc.cast(pc.bit_wise_and(numbers, 255), pa.int16()),
        "nulls": pc.if_else(is_null, None, numbers),
        "doubles": pa.array(doubles),
        "unique doubles": pa.array(np.where(doubles == 0, rng.random(ROWS), doubles)),
        "int64 few": pc.if_else(is_null, None, pc.bit_wise_and(numbers, 63)),
        "doubles few": pa.array(rng.choice([0.0, -0.0, np.nan, -np.nan, 1.5], ROWS)),
        "texts few": pc.cast(pc.bit_wise_and(numbers, 63), pa.string()),
        "chunks": pa.chunked_array([numbers, numbers.slice(5, 100), numbers.slice(3)]),
        "short texts": short,
        "texts with nulls": pc.if_else(is_null, None, short),
        "sliced texts": short.slice(1000, 30_000),
        "long texts": long,
        "texts of up to 7 bytes": texts(rng, rng.integers(0, 8, ROWS)),
        "large unsigned": pa.array(rng.integers(0, 2**64, 20_000, np.uint64)),
        "large texts": pc.cast(short, pa.large_string()),
        "dictionary": encoded,
        "null in the dictionary": pa.DictionaryArray.from_arrays(
            pa.array(rng.integers(0, 3, ROWS)), pa.array(["a", None, "b"])
        ),
        "NumPy": rng.integers(0, 9, ROWS),
        "few rows": numbers.slice(7, 100),
        "no rows": numbers.slice(0, 0),
    }


COLUMNS = columns()


def expanded(block):
    """The hashes of all values of a block, in their order; counts must be theirs."""
    if block.all_rows is None:
        return block.words()
    words = block.all_rows().words()
    found, counts = np.unique(words, return_counts=True)
    np.testing.assert_array_equal(block.words(), found)
    np.testing.assert_array_equal(block.counts, counts)
    return words


@pytest.mark.parametrize("hasher", [FAST, INTERCHANGE])
@pytest.mark.parametrize("name", COLUMNS)
def test_blocks_hold_the_hashes_of_the_values_in_order(name, hasher, monkeypatch):
    monkeypatch.setattr(streams, "BLOCK_ROWS", 2**14)
    monkeypatch.setattr(streams, "_TEXT_ROWS", 2**14)
    blocks = list(streams.hashed_blocks(COLUMNS[name], hasher))
    found = np.concatenate([np.zeros(0, np.uint64), *map(expanded, blocks)])
    hashed = hash_column(COLUMNS[name], hasher)
    np.testing.assert_array_equal(found, join_words(hashed.lanes)[hashed.valid])
    assert sum(block.num_values for block in blocks) == hashed.valid.sum()


@pytest.mark.parametrize("precision", [0, 10])
@pytest.mark.parametrize("name", ["nulls", "unique doubles", "short texts"])
def test_a_limit_leaves_out_rows_above_it_only(name, precision, monkeypatch):
    monkeypatch.setattr(streams, "_PROBE_VALUES", 0)
    limit = streams.Limit(precision, 2**27)
    column = COLUMNS[name]
    blocks = list(streams.hashed_blocks(column, limit=lambda: limit))
    found = np.concatenate([block.words() for block in blocks])
    hashed = hash_column(column)
    words = join_words(hashed.lanes)[hashed.valid]
    rest = (words << np.uint64(precision)) >> np.uint64(32)
    found_rest = (found << np.uint64(precision)) >> np.uint64(32)
    np.testing.assert_array_equal(found[found_rest <= 2**27], words[rest <= 2**27])
    assert len(found) < len(words) == sum(block.num_values for block in blocks)


@pytest.mark.parametrize("name", ["int64 few", "doubles few", "texts few"])
def test_repeated_values_are_counted(name):
    blocks = list(streams.hashed_blocks(COLUMNS[name]))
    assert all(block.counts is not None for block in blocks)
    hashed = hash_column(COLUMNS[name])
    words, counts = np.unique(join_words(hashed.lanes)[hashed.valid], return_counts=True)
    (block,) = blocks
    np.testing.assert_array_equal(block.words(), words)
    np.testing.assert_array_equal(block.counts, counts)


def test_the_hash_of_texts_is_that_of_their_rows():
    column = COLUMNS["int64"].slice(0, 20_000)
    (block,) = streams.hashed_blocks(column, AUTHORS)
    np.testing.assert_array_equal(block.words(), join_words(hash_column(column, AUTHORS).lanes))


def test_texts_at_the_end_of_their_buffer_read_nothing_behind_it():
    data = np.arange(40, dtype=np.uint8)
    starts = np.array([0, 20, 30, 39, 40])
    rows = streams._gather(data, starts, 16).view(np.uint8)
    for row, start in zip(rows, starts, strict=True):
        expected = data[start : start + 16]
        np.testing.assert_array_equal(row[: len(expected)], expected)
    assert streams._gather(data[:3], np.array([0, 2]), 16).shape == (2, 2)


def test_texts_in_rows_of_words_must_be_whole_blocks():
    with pytest.raises(ValueError, match="even number of words"):
        hashing.murmur3_x64_128_texts(np.zeros((2, 3), np.uint64), np.zeros(2, np.int32), 0)


def test_a_type_without_canonical_form_is_refused():
    with pytest.raises(TypeError, match="has no canonical form"):
        list(streams.hashed_blocks(pa.array([[1]] * 40_000)))
