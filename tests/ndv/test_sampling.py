"""Samplers: independence of the cut, exact distributions, COLLAPSE, clustering, mixed rates."""

import collections
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.ndv import blocks, bottom_k, mixed_rates, registers, sampling
from jaxlab.ndv.estimators import estimate
from jaxlab.ndv.formats import Record
from jaxlab.ndv.hashing import FAST, hash_words, join_words, split_words
from jaxlab.ndv.profile import profile_from_counts, profile_from_values


@given(
    seed=st.integers(0, 2**40),
    partition=st.integers(0, 2**40),
    start=st.integers(0, 2**50),
    cuts=st.lists(st.integers(0, 40), max_size=6),
    rate=st.sampled_from([1e-3, 0.3, 0.9, 1]),
)
@settings(max_examples=60, deadline=None)
def test_bernoulli_rows_do_not_depend_on_the_cut(seed, partition, start, cuts, rate):
    where = {"seed": seed, "partition": partition}
    whole = sampling.bernoulli_rows(rate, start=start, num_rows=sum(cuts), **where)
    parts, position = [], 0
    for size in cuts:
        part = sampling.bernoulli_rows(rate, start=start + position, num_rows=size, **where)
        parts += (part + position).tolist()
        position += size
    assert whole.tolist() == parts


def test_bernoulli_rows_have_the_rate_and_differ_by_seed_and_partition():
    drawn = {
        (seed, partition): sampling.bernoulli_rows(
            0.02, seed=seed, partition=partition, start=0, num_rows=200_000
        )
        for seed, partition in itertools.product((0, 1), (0, 1))
    }
    sizes = [len(rows) for rows in drawn.values()]
    assert np.allclose(sizes, 4000, atol=5 * math.sqrt(200_000 * 0.02 * 0.98)), sizes
    for a, b in itertools.combinations(drawn.values(), 2):
        # Independent samples share 80 rows, within 9.
        assert abs(len(np.intersect1d(a, b)) - 80) < 45


def test_sizes_without_replacement_have_the_hypergeometric_distribution():
    rows, number, trials = [3, 0, 2, 4], 4, 6000
    seen = collections.Counter(
        tuple(sampling.hypergeometric_sizes(rows, number, seed=seed).tolist())
        for seed in range(trials)
    )
    expected = {
        counts: math.prod(math.comb(n, k) for n, k in zip(rows, counts, strict=True))
        for counts in itertools.product(*(range(n + 1) for n in rows))
        if sum(counts) == number
    }
    assert set(seen) <= set(expected)
    total = sum(expected.values())
    assert total == math.comb(9, 4)
    shares = [(seen[c], trials * w / total) for c, w in expected.items()]
    chi_square = sum((got - want) ** 2 / want for got, want in shares)
    degrees = len(expected) - 1
    assert chi_square < degrees + 5 * math.sqrt(2 * degrees), chi_square


def test_sizes_of_partitions_beyond_the_reach_of_library_draws():
    rows = [10**12, 3 * 10**12]
    sizes = sampling.hypergeometric_sizes(rows, 10**6, seed=3)
    assert sizes.sum() == 10**6
    assert abs(sizes[0] - 250_000) < 5 * math.sqrt(10**6 * 0.25 * 0.75)
    assert sampling.hypergeometric_sizes([5, 7], 12, seed=0).tolist() == [5, 7]
    assert sampling.hypergeometric_sizes([5, 7], 0, seed=0).tolist() == [0, 0]


def test_rows_without_replacement_are_equally_likely():
    seen = collections.Counter()
    for seed in range(4000):
        rows = sampling.rows_without_replacement(5, 2, seed=seed, partition=0).tolist()
        assert rows[0] < rows[1]
        seen[tuple(rows)] += 1
    assert len(seen) == 10
    assert sum((n - 400) ** 2 / 400 for n in seen.values()) < 9 + 5 * math.sqrt(18)


def test_draws_with_replacement_repeat_rows_and_fill_partitions_by_size():
    rows = sampling.rows_with_replacement(50, 400, seed=1, partition=2)
    assert len(rows) == 400 and rows.min() >= 0 and rows.max() < 50
    assert len(np.unique(rows)) > 45
    sizes = sampling.multinomial_sizes([100, 0, 300], 4000, seed=1)
    assert sizes.sum() == 4000 and sizes[1] == 0
    assert abs(sizes[0] - 1000) < 5 * math.sqrt(750)


@given(
    cuts=st.lists(st.integers(0, 12), max_size=8),
    order=st.randoms(use_true_random=False),
    capacity=st.integers(1, 20),
)
@settings(max_examples=40, deadline=None)
def test_reservoirs_do_not_depend_on_order_cut_or_merging(cuts, order, capacity):
    values = np.arange(100, 100 + sum(cuts))
    starts = np.cumsum([0, *cuts])
    pieces = [(values[a:b], int(a)) for a, b in itertools.pairwise(starts)]
    start = sampling.empty_reservoir(capacity, np.int64)
    whole = sampling.update_reservoir(start, values, seed=4, partition=1, start=0)
    order.shuffle(pieces)
    parts = [start, start]
    for index, (piece, first) in enumerate(pieces):
        parts[index % 2] = sampling.update_reservoir(
            parts[index % 2], piece, seed=4, partition=1, start=first
        )
    merged = sampling.merge_reservoirs(*parts)
    assert merged.values.tolist() == whole.values.tolist()
    assert merged.num_rows == len(values) and len(whole.values) == min(capacity, len(values))
    again = sampling.merge_reservoirs(parts[1], parts[0])
    assert again.tags.tolist() == merged.tags.tolist() and (np.diff(merged.tags) > 0).all()


def test_a_reservoir_holds_every_row_equally_often():
    held = np.zeros(10)
    for seed in range(3000):
        reservoir = sampling.update_reservoir(
            sampling.empty_reservoir(3, np.int64), np.arange(10), seed=seed, partition=0, start=0
        )
        held[reservoir.values] += 1
    assert ((held - 900) ** 2 / 900).sum() < 9 + 5 * math.sqrt(18)


def test_the_population_without_nulls_follows_the_sample():
    assert sampling.non_null_population(1000, 50, 5) == 900
    assert sampling.non_null_population(1000, 0, 0) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sampling.check_rate(0), r"rate=0 is not in \(0, 1\]"),
        (lambda: sampling.check_rate(math.nan), "rate=nan is not in"),
        (
            lambda: sampling.bernoulli_rows(0.1, seed=-1, partition=0, start=0, num_rows=1),
            "seed=-1 is not from 0",
        ),
        (lambda: sampling.hypergeometric_sizes([2, 3], 6, seed=0), "num_samples=6 is not from 0"),
        (lambda: sampling.hypergeometric_sizes([2, -3], 1, seed=0), "has the entry -3"),
        (
            lambda: sampling.rows_without_replacement(3, 4, seed=0, partition=0),
            "num_samples=4 of num_rows=3",
        ),
        (
            lambda: sampling.rows_with_replacement(0, 1, seed=0, partition=0),
            "num_samples=1 of num_rows=0",
        ),
        (lambda: sampling.multinomial_sizes([0], 1, seed=0), "num_samples=1 of no rows"),
        (lambda: sampling.empty_reservoir(0), "capacity=0"),
        (
            lambda: sampling.merge_reservoirs(
                sampling.empty_reservoir(1), sampling.empty_reservoir(2)
            ),
            "cannot merge: capacities 1 and 2",
        ),
        (lambda: sampling.non_null_population(10, 11, 0), "num_sampled=11"),
        (lambda: blocks.collapse(np.arange(3), np.arange(2)), "3 values and 2 blocks"),
        (lambda: blocks.clustering(np.arange(3), np.zeros(3, int)), "one block only"),
        (
            lambda: mixed_rates.gee_mixed_from_counts(np.ones((2, 1), int), np.ones(1)),
            "2 partitions have counts and 1",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_collapse_keeps_each_value_of_each_block_once():
    values, where = blocks.collapse(np.array([7, 7, 3, 7, 3]), np.array([0, 0, 0, 1, 0]))
    assert list(zip(values.tolist(), where.tolist(), strict=True)) == [(3, 0), (7, 0), (7, 1)]
    profile = blocks.collapsed_profile(np.array([7, 7, 3, 7, 3]), np.array([0, 0, 0, 1, 0]), 0.5)
    assert profile.f.tolist() == [1, 1] and float(profile.N) == 6 and float(profile.n) == 3


def block_sample(column, *, size=1000, rate=0.05):
    chosen = blocks.sample_blocks(len(column) // size, rate, seed=7)
    rows = (chosen[:, None] * size + np.arange(size)).reshape(-1)
    return column[rows], np.repeat(chosen, size)


def test_collapse_repairs_a_sorted_key_that_fools_a_naive_block_sample():
    column = np.repeat(np.arange(50_000), 4)
    values, where = block_sample(column)
    naive = profile_from_values(values, population=len(column), rate=0.05)
    assert float(estimate(naive, "DUJ1").value) / 50_000 < 0.06
    repaired = blocks.collapsed_profile(values, where, 0.05)
    assert float(estimate(repaired, "DUJ1").value) / 50_000 == pytest.approx(1, abs=0.02)
    found = blocks.clustering(values, where)
    assert found.is_clustered and found.in_blocks == pytest.approx(0.75)


def test_a_column_of_few_values_repeats_in_blocks_and_is_not_clustered():
    column = np.random.default_rng(0).integers(0, 140, 200_000)
    values, where = block_sample(column)
    found = blocks.clustering(values, where)
    assert found.in_blocks > 0.8 and abs(found.difference) < 0.01 and not found.is_clustered
    compared = blocks.clustering(values, where, row_sample=column[: len(values)])
    assert compared.at_random == pytest.approx(found.at_random, abs=0.01)


def test_blocks_are_at_least_one_and_at_most_all():
    assert len(blocks.sample_blocks(40, 0.001, seed=0)) == 1
    assert blocks.sample_blocks(4, 1, seed=0).tolist() == [0, 1, 2, 3]
    assert blocks.sample_blocks(0, 0.5, seed=0).tolist() == []


def weighted_record(values, rate, kind):
    """Record of one partition's values, built by NumPy."""
    unique, counts = np.unique(np.asarray(values, np.uint64), return_counts=True)
    lanes = hash_words(split_words(unique), FAST)
    words = join_words(lanes)
    order = np.argsort(words)
    weights = mixed_rates.singleton_weights(counts, rate)
    if kind == "bottom_k":
        hi, lo = (np.full(401, 2**32 - 1, np.uint32) for _ in range(2))
        count = np.zeros(401, np.uint32)
        kept = order[:401]
        hi[: len(kept)], lo[: len(kept)] = lanes.hi[kept], lanes.lo[kept]
        count[: len(kept)] = counts[kept]
        sketch = bottom_k.BottomK(hi, lo, count, FAST)
        return Record(sketch, len(values), rate=rate, weights=weights[kept])
    minimum, count = np.full(512, 2**32 - 1, np.uint32), np.zeros(512, np.uint16)
    held = np.ones(512, np.float32)
    for place in order[::-1]:  # the smallest hash of a register comes last
        bucket = int(lanes.hi[place]) >> 23
        minimum[bucket] = (int(words[place]) << 9 >> 32) & 0xFFFFFFFF
        count[bucket], held[bucket] = counts[place], weights[place]
    return Record(registers.Registers(minimum, count, FAST), len(values), rate=rate, weights=held)


@pytest.mark.parametrize("kind", ["bottom_k", "registers"])
def test_mixed_rates_weigh_singletons_by_their_partition(kind):
    rng = np.random.default_rng(5)
    small, large = rng.integers(0, 3000, 3000), rng.integers(0, 20_000, 6000)
    values = np.arange(20_000)
    counts = np.stack([np.bincount(part, minlength=len(values)) for part in (small, large)])
    exact = mixed_rates.gee_mixed_from_counts(counts, np.array([1.0, 0.04]))
    # Weights by hand: a value is alone if the other partition does not have it.
    alone = (counts.sum(0) == 1) & (counts[1] == 1)
    assert exact == pytest.approx((counts.sum(0) > 0).sum() + 4 * alone.sum())

    from jaxlab.ndv.formats import merge_records

    merged = merge_records(weighted_record(small, 1.0, kind), weighted_record(large, 0.04, kind))
    # 400 or 512 retained values of weight 1 or 5: a relative deviation of about 6 %.
    assert mixed_rates.gee_mixed(merged) == pytest.approx(exact, rel=0.2)


def test_the_noise_of_mixed_rates_is_that_of_the_choices_a_sketch_may_make():
    """Of 2,000 values 200 are kept, by 600 random orders: deviations within 10 %, a mean of 3."""
    rng = np.random.default_rng(1)
    weights = np.where(rng.random(2000) < 0.2, np.float32(5), np.float32(1))
    found = []
    for _ in range(600):
        words = rng.integers(0, 2**64, 2000, np.uint64)
        order = np.argsort(words)[:201]
        lanes, count = split_words(words[order]), np.ones(201, np.uint32)
        sketch = bottom_k.BottomK(np.asarray(lanes.hi), np.asarray(lanes.lo), count, FAST)
        found.append(mixed_rates.estimate_mixed(Record(sketch, 2000, weights=weights[order])))
    highs, deviations = (np.array([one[place] for one in found]) for place in (1, 2))
    truth = float((weights**2).sum())
    assert abs(highs.mean() - truth) < 3 * highs.std() / np.sqrt(600)
    assert np.median(deviations) == pytest.approx(highs.std(), rel=0.1)
    few = weighted_record(np.arange(300), 0.25, "bottom_k")
    assert mixed_rates.estimate_mixed(few) == (600, 1200, 0)


def test_equal_rates_give_gee():
    counts = np.random.default_rng(2).poisson(0.7, (3, 500))
    profile = profile_from_counts(counts.sum(0), population=counts.sum() * 25)
    mixed = mixed_rates.gee_mixed_from_counts(counts, np.full(3, 0.04))
    assert mixed == pytest.approx(float(estimate(profile, "GEE").value))
    record = weighted_record(np.arange(10), 1.0, "registers")
    with pytest.raises(ValueError, match="has no weights"):
        mixed_rates.gee_mixed(Record(record.sketch, 10))
