"""Mask sketch: a worked example, a slow set form, order-free merges, unbiased frequencies."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.ndv import mask_sketch
from jaxlab.ndv.hashing import FAST, Hasher, Lanes, hash_words, join_words, split_words

CAPACITY, ROWS = 2, 16
START = mask_sketch.empty(CAPACITY)
update = jax.jit(mask_sketch.update, static_argnames="block")
merge = jax.jit(mask_sketch.merge)


def sketch_of(words, start=START):
    """Sketch of hashes that are given themselves."""
    padded = np.zeros(ROWS, np.uint64)
    padded[: len(words)] = words
    return update(start, split_words(padded), np.arange(ROWS) < len(words), block=4)


def retained(sketch):
    words, counts = join_words(Lanes(sketch.hi, sketch.lo)), np.asarray(sketch.count)
    assert (words[counts == 0] == 2**64 - 1).all()
    return dict(zip(words[counts > 0].tolist(), counts[counts > 0].tolist(), strict=True))


def slow_sketch(words, capacity):
    """The lowest level at which the distinct hashes fit, and those hashes."""
    counts = collections.Counter(int(word) for word in words)
    level = 0
    while True:
        kept = {word: count for word, count in counts.items() if word % 2**level == 0}
        if len(kept) <= capacity:
            return level, kept
        level += 1


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_worked_example():
    """Three regions with the hashes a=4 b=3 c=8 d=6 e=5 f=9; c is in all, b in two of them."""
    first, second, third = (sketch_of(words) for words in ([4, 3, 8], [3, 8, 6], [8, 5, 9]))
    assert int(first.level) == 1 and retained(first) == {4: 1, 8: 1}
    assert int(second.level) == 1 and retained(second) == {8: 1, 6: 1}
    two = merge(first, second)
    assert int(two.level) == 2 and retained(two) == {4: 1, 8: 2}
    three = merge(two, third)
    assert int(three.level) == 2 and retained(three) == {4: 1, 8: 3}
    profile = mask_sketch.profile(three, 1)
    assert float(profile.f[0]) == 4 and float(profile.d) == 8
    assert float(mask_sketch.distinct(three)) == 8


hashes = st.lists(
    st.one_of(st.integers(0, 20), st.integers(0, 2**64 - 1), st.just(2**64 - 1), st.just(2**63)),
    max_size=ROWS,
)


@settings(max_examples=30, deadline=None)
@given(hashes, hashes, hashes, st.randoms())
def test_merge_equals_sets_and_is_associative_commutative_and_order_free(a, b, c, random):
    x, y, z = (sketch_of(part) for part in (a, b, c))
    left = merge(merge(x, y), z)
    assert_equal(left, merge(z, merge(y, x)))
    level, kept = slow_sketch(a + b + c, CAPACITY)
    assert int(left.level) == level and retained(left) == kept
    order = [a, b, c]
    random.shuffle(order)
    streamed = START
    for part in order:
        streamed = sketch_of(part, streamed)
    assert_equal(left, streamed)


def test_frequencies_have_no_bias_and_the_published_error():
    """100 seeds of hashes of some 15,500 values with Poisson counts; capacity 5,000.

    The deviation of a mean of 100 is at most 0.4 %: a bias of 1 % is 2.5 of them.
    """
    rng = np.random.default_rng(2)
    counts = rng.poisson(1.5, 20_000)
    counts = counts[counts > 0].astype(np.uint32)
    true = [int((counts == i).sum()) for i in (1, 2, 3)]
    values = split_words(np.arange(len(counts), dtype=np.uint64))
    errors = []
    for seed in range(100):
        words = join_words(hash_words(values, Hasher(0, seed)))
        level = next(k for k in range(64) if (words % np.uint64(2**k) == 0).sum() <= 5000)
        kept = words % np.uint64(2**level) == 0
        lanes = split_words(words[kept])
        sketch = mask_sketch.MaskSketch(
            lanes.hi, lanes.lo, counts[kept], np.asarray(level, np.int32), FAST
        )
        profile = mask_sketch.profile(sketch, 3)
        errors.append([*(profile.f / true - 1), profile.d / len(counts) - 1])
    # 15,500 values at level 2: each is kept with probability 1 / 4.
    published = np.sqrt(4 / np.array([*true, len(counts)]))
    assert (np.abs(np.mean(errors, axis=0)) < 0.01).all()
    assert (np.sqrt(np.mean(np.square(errors), axis=0)) < 1.15 * published).all()


def test_device_agrees_with_host_and_columns_are_vmapped():
    rng = np.random.default_rng(3)
    words = split_words(rng.integers(0, 2**64, (2, ROWS), np.uint64))
    start = mask_sketch.empty(8)
    rows = Lanes(*map(jnp.asarray, words))
    both = jax.jit(jax.vmap(lambda hashes: mask_sketch.update(start, hashes)))(rows)
    profiles = jax.jit(jax.vmap(lambda sketch: mask_sketch.profile(sketch, 2)))(both)
    for column in range(2):
        own = jax.tree.map(lambda leaf: np.asarray(leaf[column]), both)  # noqa: B023
        assert 0 < len(retained(own)) <= 8
        host = mask_sketch.profile(own, 2)
        assert host.f.dtype == np.float64 and float(host.d) >= 8
        np.testing.assert_allclose(profiles.f[column], host.f, rtol=1e-6)
        np.testing.assert_allclose(profiles.d[column], host.d, rtol=1e-6)


def test_no_rows_change_nothing():
    assert mask_sketch.update(START, split_words(np.zeros(0, np.uint64))) is START


def test_sketches_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="cannot merge: capacities 2 and 3"):
        mask_sketch.merge(START, mask_sketch.empty(3))
    with pytest.raises(ValueError, match="build both sketches with the same Hasher"):
        mask_sketch.merge(START, mask_sketch.empty(CAPACITY, hasher=Hasher(0, 1)))
    with pytest.raises(ValueError, match="capacity=0 is not from 2 to 16777216"):
        mask_sketch.empty(0)
