"""Bottom-k with counts: a sorted dictionary, order-free merges, unbiased frequencies, theta."""

import collections

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.ndv import bottom_k
from jaxlab.ndv.hashing import (
    FAST,
    INTERCHANGE,
    Hasher,
    Lanes,
    hash_words,
    join_words,
    split_words,
)

CAPACITY, ROWS = 16, 64
START = bottom_k.empty(CAPACITY)
update = jax.jit(bottom_k.update, static_argnames="block")
merge = jax.jit(bottom_k.merge)


def hashes_of(values):
    return hash_words(split_words(np.asarray(values, np.uint64)), FAST)


def sketch_of(values, block=8):
    sketch = START
    for start in range(0, len(values), ROWS):
        part = np.zeros(ROWS, np.uint64)
        rows = values[start : start + ROWS]
        part[: len(rows)] = rows
        sketch = update(sketch, hashes_of(part), np.arange(ROWS) < len(rows), block=block)
    return sketch


def on_host(sketch):
    return jax.tree.map(np.asarray, sketch)


def retained(sketch):
    """Hash -> count of every used slot, and a check that the empty ones come last."""
    words, counts = join_words(Lanes(sketch.hi, sketch.lo)), np.asarray(sketch.count)
    used = int((counts > 0).sum())
    assert (counts[:used] > 0).all() and (np.diff(words[:used].astype(object)) > 0).all()
    assert (words[used:] == 2**64 - 1).all()
    return dict(zip(words[:used].tolist(), counts[:used].tolist(), strict=True))


def dictionary(values):
    """The K + 1 smallest hashes of all values and how often each value occurs."""
    counts = collections.Counter(join_words(hashes_of(values)).tolist())
    return {word: counts[word] for word in sorted(counts)[: CAPACITY + 1]}


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("distinct", [5, 16, 17, 300])
def test_retained_counts_equal_a_dictionary(distinct):
    values = np.random.default_rng(distinct).zipf(1.2, 1000) % distinct
    assert retained(sketch_of(values)) == dictionary(values)


parts = st.lists(st.integers(0, 40), max_size=ROWS)


@settings(max_examples=15, deadline=None)
@given(parts, parts, parts, st.randoms())
def test_merge_is_associative_commutative_and_order_free(a, b, c, random):
    x, y, z = (sketch_of(part) for part in (a, b, c))
    left = merge(merge(x, y), z)
    assert_equal(left, merge(z, merge(y, x)))
    rows = a + b + c
    random.shuffle(rows)
    assert_equal(left, sketch_of(rows))
    assert_equal(merge(left, START), left)


def test_the_block_that_is_sorted_at_a_time_does_not_matter():
    values = np.random.default_rng(1).integers(0, 60, 64)
    assert_equal(sketch_of(values), sketch_of(values, block=64))
    assert_equal(sketch_of(values), bottom_k.update(START, hashes_of(values)))


def test_no_rows_change_nothing():
    assert bottom_k.update(START, hashes_of([])) is START


def test_the_largest_hash_is_a_value_and_not_an_empty_slot():
    hashes = Lanes(np.full(ROWS, 2**32 - 1, np.uint32), np.full(ROWS, 2**32 - 1, np.uint32))
    sketch = update(START, hashes, np.arange(ROWS) < 3, block=8)
    assert retained_counts(sketch) == [3]


def retained_counts(sketch):
    counts = np.asarray(sketch.count)
    return counts[counts > 0].tolist()


def test_up_to_capacity_the_profile_is_exact():
    values = np.repeat(np.arange(16), [1] * 8 + [2] * 4 + [3, 9, 10, 10])
    for sketch in (sketch_of(values), on_host(sketch_of(values))):
        profile = bottom_k.profile(sketch, 3)
        np.testing.assert_array_equal(profile.f, [8, 4, 1])
        totals = [profile.d, profile.n, profile.d_tail, profile.n_tail, profile.s2_tail]
        assert [float(total) for total in totals] == [16, 48, 3, 29, 72 + 90 + 90]
        assert float(bottom_k.theta(sketch)) == 1 and float(bottom_k.distinct(sketch)) == 16


def test_counts_stop_at_the_maximum():
    almost = np.array(START.count)
    almost[0] = 2**32 - 2
    words = np.array(START.hi)
    words[0] = 5
    near = bottom_k.BottomK(words, words, almost, FAST)
    twice = merge(near, near)
    assert int(twice.count[0]) == 2**32 - 1 and int(twice.hi[0]) == 5
    assert bool(bottom_k.profile(twice, 3).saturated)
    assert not bool(bottom_k.profile(near, 3).saturated)


def test_frequencies_have_no_bias_and_the_published_error():
    """100 seeds of hashes of some 15,500 values with Poisson counts, K = 4,096.

    The deviation of a mean of 100 is at most 0.4 %: a bias of 1 % is 2.5 of them.
    """
    rng = np.random.default_rng(2)
    counts = rng.poisson(1.5, 20_000)
    counts = counts[counts > 0].astype(np.uint32)
    capacity, errors = 4096, []
    values = split_words(np.arange(len(counts), dtype=np.uint64))
    true = [int((counts == i).sum()) for i in (1, 2, 3)]
    for seed in range(100):
        words = join_words(hash_words(values, Hasher(0, seed)))
        smallest = np.argsort(words)[: capacity + 1]
        lanes = split_words(words[smallest])
        sketch = bottom_k.BottomK(lanes.hi, lanes.lo, counts[smallest], FAST)
        profile = bottom_k.profile(sketch, 3)
        errors.append([*(profile.f / true - 1), profile.d / len(counts) - 1])
    published = np.sqrt(len(counts) / (capacity * np.array([*true, len(counts)])))
    assert (np.abs(np.mean(errors, axis=0)) < 0.01).all()
    assert (np.sqrt(np.mean(np.square(errors), axis=0)) < 1.15 * published).all()


def test_device_agrees_with_host():
    sketch = sketch_of(np.random.default_rng(3).integers(0, 500, 640))
    assert 0 < float(bottom_k.theta(sketch)) < 0.2
    host = bottom_k.profile(on_host(sketch), 4)
    assert host.f.dtype == np.float64
    for ours, expected in zip(bottom_k.profile(sketch, 4), host, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_columns_are_vmapped():
    rows = Lanes(*(half.reshape(2, ROWS) for half in hashes_of(np.arange(2 * ROWS) % 50)))
    both = jax.jit(jax.vmap(lambda hashes: bottom_k.update(START, hashes, block=8)))(rows)
    for column in range(2):
        alone = sketch_of(np.arange(ROWS * column, ROWS * (column + 1)) % 50)
        assert_equal(jax.tree.map(lambda leaf: leaf[column], both), alone)  # noqa: B023


def test_sketches_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="cannot merge: capacities 16 and 17"):
        bottom_k.merge(START, bottom_k.empty(17))
    for other in (Hasher(0, 1), INTERCHANGE):
        with pytest.raises(ValueError, match="build both sketches with the same Hasher"):
            bottom_k.merge(START, bottom_k.empty(CAPACITY, hasher=other))
    with pytest.raises(ValueError, match="capacity=1 is not from 2 to 16777216"):
        bottom_k.empty(1)


def test_counted_values_make_the_sketch_of_their_rows():
    words, counts = np.unique(join_words(hashes_of(np.arange(900) % 300)), return_counts=True)
    made = bottom_k.from_counts(words, counts, 64)
    expected = bottom_k.update(bottom_k.empty(64), hashes_of(np.arange(900) % 300))
    for name in ("hi", "lo", "count"):
        np.testing.assert_array_equal(getattr(made, name), getattr(expected, name))


def test_the_union_of_small_sketches_is_exact_below_the_smallest_theta():
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 5000, 3000) for _ in range(8)]
    made = []
    for part in parts:
        words, counts = np.unique(join_words(hashes_of(part)), return_counts=True)
        made.append(bottom_k.from_counts(words, counts, 50))
    least = min(int(join_words(Lanes(sketch.hi, sketch.lo))[-1]) for sketch in made)
    words, counts = np.unique(join_words(hashes_of(np.concatenate(parts))), return_counts=True)
    below = counts[words < least]
    found = bottom_k.union_profile(made, 12)
    scale = 2.0**64 / least
    assert float(found.d) == pytest.approx(len(below) * scale)
    np.testing.assert_allclose(found.f, np.bincount(below, minlength=40)[1:13] * scale)


def test_the_union_of_sketches_that_are_not_full_is_exact():
    words, counts = np.unique(join_words(hashes_of(np.arange(90) % 30)), return_counts=True)
    made = bottom_k.from_counts(words, counts, 64)
    assert bottom_k.union_profile([made, made], 8).f.tolist() == [0, 0, 0, 0, 0, 30, 0, 0]
    with pytest.raises(ValueError, match="sketches is empty"):
        bottom_k.union_profile([], 8)
