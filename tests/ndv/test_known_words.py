"""Counting known values: the counts of a sort, with collisions and misses."""

import numpy as np
import pytest

from jaxlab.ndv import known_words
from jaxlab.ndv.hashing import FAST, hash_words, join_words, split_words
from jaxlab.ndv.streams import block_of


def hashes_of(values):
    return join_words(hash_words(split_words(np.asarray(values, np.uint64)), FAST))


@pytest.mark.parametrize("rows", [300, 20_000])
def test_rows_are_counted_and_strangers_found(rows):
    rng = np.random.default_rng(0)
    words = np.sort(hashes_of(np.arange(100)))
    seen = hashes_of(rng.integers(0, 120, rows))
    known = known_words.know_words(words, np.ones(100, int), 128)
    assert not len(known.missing)
    counts, unknown = known_words.count_words(known, block_of(seen))
    np.testing.assert_array_equal(counts, [(seen == word).sum() for word in words])
    np.testing.assert_array_equal(unknown, np.flatnonzero(~np.isin(seen, words)))


def test_the_heavier_of_two_values_keeps_a_slot(monkeypatch):
    monkeypatch.setattr(known_words, "_MAX_SLOTS", 4)
    words = np.sort(hashes_of(np.arange(50)))
    known = known_words.know_words(words, np.arange(50), 64)
    held = known.entry[known.entry > 0] - 1
    assert len(held) == 4 and len(known.missing) == 46 and 49 in held
    counts, unknown = known_words.count_words(known, block_of(words))
    assert counts[held].tolist() == [1] * 4 and len(unknown) == 46


def test_a_hash_of_zero_is_no_empty_entry():
    known = known_words.know_words(np.array([7], np.uint64), np.ones(1, int), 4)
    counts, unknown = known_words.count_words(known, block_of(np.array([0, 7, 0], np.uint64)))
    assert counts.tolist() == [1] and unknown.tolist() == [0, 2]
