"""k-partition registers: a slow dictionary, published errors, merges, saturation, batches."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.ndv import registers
from jaxlab.ndv.hashing import FAST, Hasher, Lanes, hash_words, join_words, split_words
from jaxlab.ndv.streams import block_of

PRECISION, ROWS = 5, 64
update = jax.jit(registers.update, static_argnames="method")
merge = jax.jit(registers.merge)
START = registers.empty(PRECISION, count_bits=8)


def hashes_of(values):
    return hash_words(split_words(np.asarray(values, np.uint64)), FAST)


def sketch_of(values, **options):
    """Sketch of values, in calls of 64 padded rows."""
    sketch = START
    for start in range(0, len(values), ROWS):
        part = np.zeros(ROWS, np.uint64)
        rows = values[start : start + ROWS]
        part[: len(rows)] = rows
        sketch = update(sketch, hashes_of(part), np.arange(ROWS) < len(rows), **options)
    return sketch


def slow_sketch(values, maximum=255):
    """Minimum and count of every register from a dictionary of the values."""
    counts = collections.Counter(int(value) for value in values)
    distinct = list(counts)
    lanes = hashes_of(distinct)
    best = [(2**32 - 1, 0)] * 2**PRECISION
    for value, hi, lo in zip(distinct, lanes.hi.tolist(), lanes.lo.tolist(), strict=True):
        word = (hi << 32) | lo
        register = word >> (64 - PRECISION)
        rest = ((word << PRECISION) % 2**64) >> 32
        if rest < best[register][0]:
            best[register] = (rest, min(counts[value], maximum))
    return [list(part) for part in zip(*best, strict=True)]


def assert_equal(a, b):
    np.testing.assert_array_equal(a.minimum, b.minimum)
    np.testing.assert_array_equal(a.count, b.count)


def many_sketches(counts, trials, precision):
    """Sketches of as many sets of new numbers with given counts, by NumPy."""
    lanes = hashes_of(np.arange(trials * len(counts)))
    bucket = lanes.hi >> np.uint32(32 - precision)
    rest = (lanes.hi << np.uint32(precision)) | (lanes.lo >> np.uint32(32 - precision))
    trial = np.repeat(np.arange(trials), len(counts))
    minimum = np.full((trials, 2**precision), 2**32 - 1, np.uint32)
    np.minimum.at(minimum, (trial, bucket), rest)
    count = np.zeros(minimum.shape, np.uint16)
    held = np.where(rest == minimum[trial, bucket], np.tile(counts, trials), 0)
    np.add.at(count, (trial, bucket), held.astype(np.uint16))
    return registers.Registers(minimum, count, FAST)


@pytest.mark.parametrize("method", ["scatter", "tiles"])
def test_registers_equal_a_dictionary(method):
    values = np.random.default_rng(0).zipf(1.3, 1000) % 40
    values = np.concatenate([values, np.repeat(np.arange(8), 256)])
    ours = sketch_of(values, method=method)
    minimum, count = slow_sketch(values)
    np.testing.assert_array_equal(ours.minimum, minimum)
    np.testing.assert_array_equal(ours.count, count)
    assert max(count) == 255 and ours.count.dtype == jnp.uint8  # one value saturates


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


def test_counts_stop_at_the_maximum_and_the_profile_says_so():
    full = sketch_of([7] * 192)
    twice = merge(full, full)
    assert int(twice.count.max()) == 255
    profile = registers.profile(twice, 10)
    assert bool(profile.saturated) and not bool(registers.profile(full, 10).saturated)
    assert float(profile.f.sum()) == 0 and float(profile.d_tail) == pytest.approx(float(profile.d))
    with pytest.raises(ValueError, match="length=255 is not from 1 to 254"):
        registers.profile(full, 255)


@pytest.mark.parametrize("number", [10, 100, 1_024, 20_000])
def test_one_formula_counts_every_range(number):
    """400 (or 100) sketches of 256 registers: no bias, at most the deviation of full ones."""
    trials, size = 400 if number < 10_000 else 100, 256
    estimates = registers.distinct(many_sketches(np.ones(number, np.int64), trials, 8))
    error = estimates / number - 1
    deviation = 1 / np.sqrt(size)
    # Four standard deviations of the mean, and of a root mean square (1 / sqrt(2 trials)).
    assert abs(error.mean()) < 4 * deviation / np.sqrt(trials)
    assert np.sqrt((error**2).mean()) < deviation * (1 + 4 / np.sqrt(2 * trials))


def test_frequencies_have_no_bias_and_the_published_error():
    """f_1 to f_3 of Poisson counts over 100 sketches of 4,096 registers.

    The deviation of a mean of 100 is at most 0.4 %: a bias of 1 % is 2.5 of them.
    """
    rng = np.random.default_rng(5)
    counts = rng.poisson(1.5, 20_000)
    counts = counts[counts > 0]
    trials, size = 100, 4096
    sketch = many_sketches(counts, trials, 12)
    profiles = [
        registers.profile(registers.Registers(minimum, count, FAST), 4)
        for minimum, count in zip(sketch.minimum, sketch.count, strict=True)
    ]
    for i in (1, 2, 3):
        true = int((counts == i).sum())
        error = np.array([profile.f[i - 1] for profile in profiles]) / true - 1
        published = np.sqrt(len(counts) / (size * true))
        assert abs(error.mean()) < 0.01
        assert np.sqrt((error**2).mean()) < 1.15 * published


def test_profile_adds_up_and_device_agrees_with_host():
    sketch = sketch_of(np.random.default_rng(1).zipf(1.5, 600) % 997)
    host = registers.Registers(np.asarray(sketch.minimum), np.asarray(sketch.count), FAST)
    exact = registers.profile(host, 3)
    counts = host.count[host.count > 0].astype(float)
    scale = exact.d / len(counts)
    np.testing.assert_allclose(exact.f, [scale * (counts == i).sum() for i in (1, 2, 3)])
    assert exact.n == pytest.approx(scale * counts.sum())
    assert exact.d_tail == pytest.approx(exact.d - exact.f.sum())
    assert exact.n_tail == pytest.approx(exact.n - exact.f @ [1, 2, 3])
    assert exact.s2_tail == pytest.approx(scale * (counts * (counts - 1))[counts > 3].sum())
    for ours, expected in zip(registers.profile(sketch, 3), exact, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_nothing_is_an_empty_profile():
    profile = registers.profile(registers.empty(PRECISION), 4)
    assert float(profile.d) == float(profile.n) == float(profile.f.sum()) == 0


def test_columns_are_vmapped():
    hashes = Lanes(*(half.reshape(2, ROWS) for half in hashes_of(np.arange(2 * ROWS) % 50)))
    both = jax.jit(jax.vmap(lambda rows: registers.update(START, rows)))(hashes)
    profiles = jax.jit(jax.vmap(lambda sketch: registers.profile(sketch, 4)))(both)
    assert profiles.f.shape == (2, 4)
    for column in range(2):
        alone = sketch_of(np.arange(ROWS * column, ROWS * (column + 1)) % 50)
        assert_equal(jax.tree.map(lambda leaf: leaf[column], both), alone)  # noqa: B023
        own = registers.profile(jax.tree.map(np.asarray, alone), 4)
        np.testing.assert_allclose(profiles.f[column], own.f, rtol=1e-6)


def test_sketches_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="cannot merge: numbers of registers 32 and 64"):
        registers.merge(START, registers.empty(6, count_bits=8))
    with pytest.raises(ValueError, match="cannot merge: bytes of counts 1 and 2"):
        registers.merge(START, registers.empty(PRECISION))
    with pytest.raises(ValueError, match="seed 0 and of dual-lane fmix32 with seed 3"):
        registers.merge(START, registers.empty(PRECISION, count_bits=8, hasher=Hasher(0, 3)))
    with pytest.raises(ValueError, match="count_bits=32 is not one of"):
        registers.empty(PRECISION, count_bits=32)


@pytest.mark.parametrize("rows", [500, 20_000])
@pytest.mark.parametrize("count_bits", [8, 16])
def test_the_host_searches_to_the_bits_of_the_device(rows, count_bits):
    rng = np.random.default_rng(rows)
    device = registers.empty(8, count_bits=count_bits)
    host = registers.Registers(np.asarray(device.minimum), np.asarray(device.count), FAST)
    for values in (10**9, 400, 3):  # few, about as many, and far more rows than registers a value
        words = split_words(rng.integers(0, values, rows).astype(np.uint64))
        hashes = hash_words(words, FAST)
        device = registers.update(device, hashes)
        host = registers.update_on_host(host, block_of(join_words(hashes)))
        np.testing.assert_array_equal(host.minimum, device.minimum)
        np.testing.assert_array_equal(host.count, device.count)
