"""CountSketch: a slow table, an unbiased second moment with the published error, merges."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.ndv import count_sketch
from jaxlab.ndv.hashing import FAST, Hasher, Lanes, hash_words, split_words

DEPTH, WIDTH, ROWS = 4, 64, 32
START = count_sketch.empty(DEPTH, WIDTH)
update = jax.jit(count_sketch.update)
merge = jax.jit(count_sketch.merge)


def hashes_of(values):
    return hash_words(split_words(np.asarray(values, np.uint64)), FAST)


def sketch_of(counts):
    """Table of a dictionary of at most 32 values."""
    values, amounts = np.zeros(ROWS, np.uint64), np.zeros(ROWS, np.int32)
    values[: len(counts)], amounts[: len(counts)] = list(counts), list(counts.values())
    return update(START, hashes_of(values), amounts, np.arange(ROWS) < len(counts))


def test_default_dimensions():
    assert count_sketch.dimensions() == (4, 10_000)
    assert count_sketch.dimensions(0.1, 1.0) == (2, 100)
    assert count_sketch.dimensions(0.07, 0.5) == (3, 205)
    with pytest.raises(ValueError, match=r"epsilon=0.0 is not in \(0, 1\]"):
        count_sketch.dimensions(0.0)


def test_one_value_fills_one_signed_cell_a_row():
    table = np.asarray(sketch_of({5: 7}).table)
    assert (np.sort(np.abs(table), axis=1)[:, -2:] == [0, 7]).all()
    sketch = count_sketch.CountSketch(table, FAST)
    assert float(count_sketch.second_moment(sketch)) == 49
    assert float(count_sketch.excess_moment(sketch, 7.0)) == 42
    assert float(count_sketch.excess_moment(sketch, 70.0)) == 0


def test_both_methods_give_the_same_table():
    hashes, counts = hashes_of(np.arange(ROWS) % 9), np.arange(ROWS, dtype=np.int32)
    tiles = jax.jit(lambda h, n: count_sketch.update(START, h, n, method="tiles"))(hashes, counts)
    expected = update(START, hashes, counts, np.ones(ROWS, bool)).table
    np.testing.assert_array_equal(tiles.table, expected)


def test_rows_of_one_value_are_its_count():
    many = update(START, hashes_of([9] * ROWS), np.ones(ROWS, np.int32), np.arange(ROWS) < 20)
    np.testing.assert_array_equal(many.table, sketch_of({9: 20}).table)


counts = st.dictionaries(st.integers(0, 50), st.integers(1, 1000), max_size=ROWS)


@settings(max_examples=15, deadline=None)
@given(counts, counts, counts)
def test_merge_is_associative_and_commutative_and_adds_counts(a, b, c):
    x, y, z = (sketch_of(part) for part in (a, b, c))
    left = merge(merge(x, y), z).table
    np.testing.assert_array_equal(left, merge(z, merge(y, x)).table)
    apart = [sketch_of({value: count}).table for part in (a, b, c) for value, count in part.items()]
    np.testing.assert_array_equal(left, np.sum([np.zeros((DEPTH, WIDTH)), *apart], axis=0))


def test_the_second_moment_has_no_bias_and_the_published_error():
    """500 columns of 32 values; the rows of a table are independent estimates."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**64, (500, ROWS), np.uint64)
    amounts = np.tile(rng.poisson(20, ROWS).astype(np.int32), (500, 1))
    lanes = hash_words(split_words(values), FAST)
    run = jax.jit(jax.vmap(lambda hi, lo, n: count_sketch.update(START, Lanes(hi, lo), n)))
    tables = np.asarray(run(lanes.hi, lanes.lo, amounts).table, np.float64)
    true, fourth = (float((amounts[0].astype(float) ** power).sum()) for power in (2, 4))
    rows = (tables**2).sum(axis=-1) / true - 1
    # The variance of a row is 2 (F2^2 - F4) / width; four deviations of the mean and of itself.
    deviation = np.sqrt(2 * (1 - fourth / true**2) / WIDTH)
    assert abs(rows.mean()) < 4 * deviation / np.sqrt(rows.size)
    assert rows.std() == pytest.approx(deviation, rel=0.12)
    assert np.abs(np.corrcoef(rows.T) - np.eye(DEPTH)).max() < 4 / np.sqrt(500)
    own = count_sketch.second_moment(count_sketch.CountSketch(tables.astype(np.int32), FAST))
    np.testing.assert_allclose(own, np.median(rows + 1, axis=1) * true, rtol=1e-12)


def test_device_agrees_with_host_beyond_32_bits():
    table = np.random.default_rng(1).integers(-(2**30), 2**30, (DEPTH, WIDTH)).astype(np.int32)
    host = count_sketch.second_moment(count_sketch.CountSketch(table, FAST))
    exact = np.median([sum(int(cell) ** 2 for cell in row) for row in table.tolist()])
    assert float(host) == pytest.approx(float(exact), rel=1e-14)
    device = count_sketch.second_moment(count_sketch.CountSketch(jax.numpy.asarray(table), FAST))
    assert float(device) == pytest.approx(float(exact), rel=1e-6)


def test_sketches_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="cannot merge: depths 4 and 5"):
        count_sketch.merge(START, count_sketch.empty(5, WIDTH))
    with pytest.raises(ValueError, match="cannot merge: widths 64 and 65"):
        count_sketch.merge(START, count_sketch.empty(DEPTH, 65))
    with pytest.raises(ValueError, match="build both sketches with the same Hasher"):
        count_sketch.merge(START, count_sketch.empty(DEPTH, WIDTH, hasher=Hasher(0, 1)))
    with pytest.raises(ValueError, match="depth=0 and width=3"):
        count_sketch.empty(0, 3)
