"""HyperLogLog: registers by a slow loop, estimators against exact forms, merges, forms, errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.ndv import hll
from jaxlab.ndv.columns import hash_column
from jaxlab.ndv.hashing import AUTHORS, FAST, INTERCHANGE, Lanes, hash_words, split_words

PRECISION = 6
update = jax.jit(hll.update, static_argnames="method")


def hashes_of(values):
    return hash_words(split_words(np.asarray(values, np.uint64)), FAST)


def sketch_of(values, rows=128):
    """Sketch of at most `rows` values, padded and masked so that one program serves all."""
    padded = np.zeros(rows, np.uint64)
    padded[: len(values)] = values
    return update(hll.empty(PRECISION), hashes_of(padded), np.arange(rows) < len(values))


def slow_registers(hashes, precision):
    registers = [0] * 2**precision
    for word in hashes:
        rest = format((word << precision) % 2**64, "064b")[: 64 - precision]
        rank = rest.find("1") + 1 if "1" in rest else 64 - precision + 1
        index = word >> (64 - precision)
        registers[index] = max(registers[index], rank)
    return registers


def slow_ertl(registers, last):
    """The estimator as its author writes it, over the histogram of the registers."""
    m, q = len(registers), last - 1
    counts = [int((registers == r).sum()) for r in range(last + 1)]

    def sigma(x):
        if x == 1:
            return math.inf
        y, z, before = 1.0, x, None
        while z != before:
            x, before = x * x, z
            z, y = z + x * y, 2 * y
        return z

    def tau(x):
        if x in (0, 1):
            return 0.0
        y, z, before = 1.0, 1 - x, None
        while z != before:
            x, before, y = math.sqrt(x), z, y / 2
            z -= (1 - x) ** 2 * y
        return z / 3

    z = m * tau(1 - counts[q + 1] / m)
    for r in range(q, 0, -1):
        z = (z + counts[r]) / 2
    return m * m / (2 * math.log(2) * (z + m * sigma(counts[0] / m)))


def random_registers(rng, size, last):
    """Registers of every range: nearly empty, usual, and nearly full."""
    ranks = rng.geometric(0.5, (6, size)) + np.array([0, 0, 3, 20, 44, 50])[:, None]
    ranks = np.minimum(ranks, last)
    ranks[0][rng.random(size) < 0.95] = 0
    ranks[1][rng.random(size) < 0.3] = 0
    return ranks.astype(np.uint8)


@pytest.mark.parametrize("method", ["scatter", "tiles"])
def test_registers_equal_a_slow_loop(method):
    words = np.random.default_rng(0).integers(0, 2**64, 300, np.uint64)
    words[:4] = [0, 2**64 - 1, 1, 2**57]  # the largest rank and its neighbours
    valid = np.arange(300) % 5 != 1
    ours = update(hll.empty(PRECISION), split_words(words), valid, method=method)
    expected = slow_registers([int(word) for word in words[valid]], PRECISION)
    assert ours.registers.dtype == jnp.uint8
    np.testing.assert_array_equal(ours.registers, expected)
    host = hll.update_on_host(hll.empty(PRECISION), split_words(words), valid)
    assert isinstance(host.registers, np.ndarray) and host.registers.dtype == np.uint8
    np.testing.assert_array_equal(host.registers, expected)


def test_coupon_positions_take_low_bits_and_the_second_word():
    first = split_words(np.array([0x0123456789ABCDEF, 0xFFFFFFFFFFFFFFFF], np.uint64))
    second = split_words(np.array([0x0000000100000000, 0], np.uint64))
    register, rank = hll.coupon_positions(first, second, 12)
    assert register.tolist() == [0xDEF, 0xFFF] and rank.tolist() == [32, 63]


def test_both_estimators_equal_their_slow_forms_on_the_host():
    registers = random_registers(np.random.default_rng(1), 64, 59)
    ertl = hll.distinct(hll.Hll(registers, FAST))
    assert ertl.dtype == np.float64
    np.testing.assert_allclose(ertl, [slow_ertl(r, 59) for r in registers], rtol=1e-12)
    raw = hll.distinct(hll.Hll(registers, FAST), "raw")
    for ours, ranks in zip(raw, registers, strict=True):
        estimate = 0.709 * 64 * 64 / sum(2.0 ** -int(rank) for rank in ranks)
        num_empty = (ranks == 0).sum()
        linear = 64 * math.log(64 / num_empty) if num_empty else None
        expected = linear if linear is not None and estimate <= 160 else estimate
        assert ours == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("estimator", ["ertl", "raw"])
def test_the_device_agrees_with_the_host(estimator):
    registers = random_registers(np.random.default_rng(2), 4096, 53)
    host = hll.distinct(hll.Hll(registers, FAST), estimator)
    device = hll.distinct(hll.Hll(jnp.asarray(registers), FAST), estimator)
    assert device.dtype == jnp.float32
    np.testing.assert_allclose(device, host, rtol=2e-6)


def test_an_empty_sketch_has_no_values_and_one_value_counts_as_one():
    for estimator in hll.ESTIMATORS:
        assert float(hll.distinct(hll.empty(10), estimator)) == 0.0
        one = np.zeros(1024, np.uint8)
        one[5] = 3
        assert float(hll.distinct(hll.Hll(one, FAST), estimator)) == pytest.approx(1, abs=2e-3)


def test_the_error_is_that_of_the_literature():
    """200 sketches of 2^10 registers of 300 to 30,000 values: mean and deviation as published."""
    for number in (300, 3_000, 30_000):
        register, rank = hll.positions(hashes_of(np.arange(200 * number)), 10)
        registers = np.zeros((200, 1024), np.uint8)
        trial = np.repeat(np.arange(200), number)
        np.maximum.at(registers, (trial, np.asarray(register)), np.asarray(rank, np.uint8))
        error = hll.distinct(hll.Hll(registers, FAST)) / number - 1
        # 1.04 / sqrt(m) is the deviation of one; small counts are more exact. The mean of 200 is
        # within four of its own, and the root of the mean square within 20 %, four of its own.
        bound = 1.04 / 32
        assert abs(error.mean()) < 4 * bound / np.sqrt(200)
        assert np.sqrt((error**2).mean()) < 1.2 * bound


values = st.lists(st.integers(0, 2**64 - 1), max_size=128)


@settings(max_examples=15, deadline=None)
@given(values, values, values)
def test_merge_is_associative_commutative_idempotent_and_equals_one_sketch(a, b, c):
    x, y, z = (sketch_of(part) for part in (a, b, c))
    left = hll.merge(hll.merge(x, y), z).registers
    np.testing.assert_array_equal(left, hll.merge(x, hll.merge(z, y)).registers)
    np.testing.assert_array_equal(left, hll.merge(hll.merge(z, x), hll.merge(y, x)).registers)
    whole = slow_registers([int(h) for h in _words(a + b + c)], PRECISION)
    np.testing.assert_array_equal(left, whole)


def _words(values):
    hashes = hashes_of(values)
    return (hashes.hi.astype(np.uint64) << np.uint64(32)) | hashes.lo


def test_columns_are_vmapped_and_merged_together():
    hashes = Lanes(*(half.reshape(2, 64) for half in hashes_of(np.arange(128))))
    one = hll.empty(PRECISION)
    both = jax.jit(jax.vmap(lambda rows: hll.update(one, rows)))(hashes)
    assert both.registers.shape == (2, 64) and both.hasher == FAST
    for column in range(2):
        alone = sketch_of(np.arange(64 * column, 64 * column + 64))
        np.testing.assert_array_equal(both.registers[column], alone.registers)
    np.testing.assert_array_equal(hll.merge(both, both).registers, both.registers)
    assert hll.distinct(jax.tree.map(np.asarray, both)).shape == (2,)


def test_sketches_of_another_kind_are_refused():
    a = hll.empty(6)
    with pytest.raises(ValueError, match="cannot merge: numbers of registers 64 and 128"):
        hll.merge(a, hll.empty(7))
    for other in (AUTHORS, INTERCHANGE):
        with pytest.raises(ValueError, match="cannot merge: hashes of dual-lane fmix32"):
            jax.jit(hll.merge)(a, hll.empty(6, hasher=other))
    with pytest.raises(ValueError, match="precision=3 is not from 4 to 21"):
        hll.empty(3)
    with pytest.raises(ValueError, match="estimator='best' is not one of"):
        hll.distinct(a, "best")
    rows = hashes_of(np.arange(3))
    with pytest.raises(ValueError, match="second is missing and the sketch has hash_id=1"):
        hll.update(hll.empty(6, hasher=INTERCHANGE), rows)
    with pytest.raises(ValueError, match="second is given and the sketch has hash_id=0"):
        hll.update_on_host(a, rows, second=rows)
    with pytest.raises(ValueError, match="wanted \\(rows,\\) for all"):
        hll.update(a, rows, np.ones(4, bool))


@pytest.mark.parametrize("kind", ["int64", "text"])
def test_a_column_gives_the_registers_of_its_hashes(kind):
    rng = np.random.default_rng(3)
    column = pa.array(rng.integers(0, 50_000, 40_000))
    column = column if kind == "int64" else column.cast(pa.string())
    found = hll.update_from_column(hll.empty(10), pa.chunked_array([column, column.slice(0, 9)]))
    expected = hll.update(hll.empty(10), hash_column(column).lanes)
    np.testing.assert_array_equal(found.registers, expected.registers)


def test_a_column_needs_a_sketch_of_the_fast_hash():
    with pytest.raises(ValueError, match="hash_id=1; wanted 0"):
        hll.update_from_column(hll.empty(10, hasher=INTERCHANGE), np.arange(3))
