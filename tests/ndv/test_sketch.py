"""Parts that sketches share, and every sketch on a mesh: eight devices against one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.ndv import bottom_k, count_sketch, hll, mask_sketch, registers
from jaxlab.ndv.hashing import FAST, Lanes, hash_words, split_words
from jaxlab.ndv.sketch import bucket_reduce, combine_counts, count_profile, on_mesh
from jaxlab.parallel import DATA_AXIS, make_mesh

ROWS = 512


def hashes_of(values):
    return hash_words(split_words(np.asarray(values, np.uint64)), FAST)


def all_sketches(hashes, valid, method=None):
    return (
        hll.update(hll.empty(5), hashes, valid, method=method),
        registers.update(registers.empty(5, count_bits=8), hashes, valid, method=method),
        bottom_k.update(bottom_k.empty(16), hashes, valid, block=16),
        mask_sketch.update(mask_sketch.empty(16), hashes, valid, block=16),
        count_sketch.update(count_sketch.empty(2, 32), hashes, None, valid, method=method),
    )


def merged_over_axis(sketches):
    rooms = (hll, registers, bottom_k, mask_sketch, count_sketch)
    return tuple(
        room.merge_over_axis(part, DATA_AXIS) for room, part in zip(rooms, sketches, strict=True)
    )


@pytest.fixture(scope="module")
def build_on_mesh():
    def on_device(hi, lo, valid):
        return merged_over_axis(all_sketches(Lanes(hi, lo), valid))

    return jax.jit(on_mesh(on_device, make_mesh()))


build_alone = jax.jit(all_sketches)


@pytest.mark.parametrize("distinct", [12, 400])
def test_a_mesh_of_eight_gives_the_bits_of_one_device(distinct, build_on_mesh):
    rng = np.random.default_rng(distinct)
    hashes = hashes_of(rng.zipf(1.2, ROWS) % distinct)
    valid = rng.random(ROWS) < 0.9
    alone = build_alone(hashes, valid)
    meshed = build_on_mesh(hashes.hi, hashes.lo, valid)
    assert jax.tree.structure(meshed) == jax.tree.structure(alone)
    for ours, expected in zip(jax.tree.leaves(meshed), jax.tree.leaves(alone), strict=True):
        assert ours.dtype == expected.dtype and ours.sharding.is_fully_replicated
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(("platform", "method"), [("cuda", "scatter"), ("tpu", "tiles")])
def test_every_sketch_lowers_for_accelerators(platform, method):
    hashes, valid = hashes_of(np.arange(ROWS)), np.ones(ROWS, bool)
    traced = jax.jit(lambda h, v: all_sketches(h, v, method)).trace(hashes, valid)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    # A sketch that is built by tiles scatters only into its few sorted slots.
    assert ("stablehlo.scatter" in text) and "stablehlo.sort" in text


@pytest.mark.parametrize("method", ["scatter", "tiles"])
@pytest.mark.parametrize(("op", "empty"), [("min", 2**32 - 1), ("max", 0), ("add", 0)])
def test_reduction_by_bucket_equals_a_loop(method, op, empty):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1000, 300, np.uint32)
    bucket = rng.integers(-3, 153, 300).astype(np.int32)  # some are outside, some stay empty
    expected = np.full(150, empty, np.uint32)
    reduce = {"min": min, "max": max, "add": sum}[op]
    for name in range(150):
        if (bucket == name).any():
            expected[name] = reduce(values[bucket == name].tolist())
    assert (expected == empty).any()
    ours = bucket_reduce(jnp.asarray(values), jnp.asarray(bucket), 150, op, method=method)
    assert ours.dtype == jnp.uint32
    np.testing.assert_array_equal(ours, expected)


def test_sums_of_counts_stop_at_the_maximum():
    keys = jnp.array([3, 1, 3, 1, 2, 3, 2**32 - 1], jnp.uint32)
    counts = jnp.array([2**31, 1, 2**31 - 1, 65_535, 70_000, 1, 0], jnp.uint32)
    (merged,), sums = combine_counts((keys,), counts)
    assert merged.tolist() == [1, 2, 3, *[2**32 - 1] * 4]
    assert sums.tolist() == [65_536, 70_000, 2**32 - 1, 0, 0, 0, 0]
    _, exact = combine_counts((keys[:5],), counts[:5])
    assert exact.tolist()[:3] == [65_536, 70_000, 2**32 - 1]


def test_a_profile_needs_a_length_below_the_maximum():
    counts = np.array([1, 2, 2, 0, 9], np.int32)
    profile = count_profile(counts, np.float64(3), 2, 255)
    assert profile.f.tolist() == [3, 6]
    assert [profile.d, profile.n, profile.d_tail, profile.n_tail] == [12, 42, 3, 27]
    assert profile.s2_tail == 3 * 9 * 8 and not profile.saturated
    for length in (0, 255):
        with pytest.raises(ValueError, match=f"length={length} is not from 1 to 254"):
            count_profile(counts, np.float64(3), length, 255)


def test_unknown_reductions_are_refused():
    ones, where = jnp.ones(3, jnp.int32), jnp.zeros(3, jnp.int32)
    with pytest.raises(ValueError, match="op='mean' is not one of"):
        bucket_reduce(ones, where, 2, "mean")
    with pytest.raises(ValueError, match="method='sort' is not one of"):
        bucket_reduce(ones, where, 2, "add", method="sort")


def test_a_sketch_survives_a_tree_of_anything():
    sketch = hll.empty(4)
    shapes = jax.eval_shape(lambda s: s, sketch)
    assert shapes.registers.shape == (16,) and shapes.hasher == FAST
    assert jax.tree.map(lambda leaf: "x", sketch).registers == "x"
    assert [name for name, _ in jax.tree.leaves_with_path(sketch)][0][0].name == "registers"
