import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.ndv.estimators import estimate
from jaxlab.ndv.intervals import (
    _multinomial,
    bootstrap_interval,
    guaranteed_interval,
    worst_case_ratio,
)
from jaxlab.ndv.populations import expected_profile, poisson_population, zipf_population
from jaxlab.ndv.profile import (
    profile_from_counts,
    profile_from_frequencies,
    stack_profiles,
    to_dense,
    to_device,
)

NUM_COLUMNS = 100
DISTINCT = 2000
LENGTH = 8


def plain(scale, N):
    return profile_from_frequencies([1, 2, 3], np.array([60, 20, 5]) * scale, population=N * scale)


@pytest.fixture(scope="module")
def columns():
    """Bernoulli samples at 20 % of columns of 2,000 values with 5 rows each, then odd columns."""
    rng = np.random.default_rng(0)
    samples = [
        profile_from_counts(rng.binomial(5, 0.2, DISTINCT), population=5 * DISTINCT, rate=0.2)
        for _ in range(NUM_COLUMNS)
    ]
    odd = [
        profile_from_frequencies([], [], population=100),
        profile_from_frequencies([1, 2], [4, 3], population=10),
        profile_from_frequencies([2, 3], [20, 10], population=9000),
        profile_from_frequencies([1], [40], population=5000),
        plain(1, 1150),
        plain(10**8, 1150),
    ]
    return to_device(stack_profiles([to_dense(one, LENGTH) for one in samples + odd]))


@pytest.fixture(scope="module")
def exact(columns):
    return jax.tree.map(np.asarray, bootstrap_interval(jax.random.key(0), columns, "DUJ1"))


@pytest.fixture(scope="module")
def sketched(columns):
    """Sketches that retained 400 values, and for the last column more than there are."""
    sizes = np.full(columns.n.shape, 400.0, np.float32)
    sizes[-1] = 1e12
    interval = bootstrap_interval(
        jax.random.key(0), columns, "DUJ1", sketch_size=jnp.asarray(sizes)
    )
    return jax.tree.map(np.asarray, interval)


def test_intervals_hold_the_truth_as_often_as_they_say(exact):
    """DUJ1 has no bias on equal classes: of 100, fewer than 88 has a chance of 0.2 % at 95 %."""
    inside = (exact.low <= DISTINCT) & (exact.high >= DISTINCT)
    assert 88 <= inside[:NUM_COLUMNS].sum() <= 100


def test_intervals_are_as_wide_as_samples_vary(columns, exact):
    """Their mean width against that of the estimates of 100 samples, whose own error is 7 %."""
    values = np.asarray(estimate(columns, "DUJ1").value)[:NUM_COLUMNS]
    width = np.mean((exact.high - exact.low)[:NUM_COLUMNS])
    assert abs(width / (2 * 1.96 * values.std()) - 1) < 0.25


def test_bounds_enclose_the_estimate_and_respect_the_facts(columns, exact):
    value = np.asarray(estimate(columns, "DUJ1").value)
    d, N = np.asarray(columns.d), np.asarray(columns.N)
    assert np.all((d <= exact.low) & (exact.low <= value))
    assert np.all((value <= exact.high) & (exact.high <= N))
    empty, full, repeated, unique = (
        (float(exact.low[k]), float(exact.high[k])) for k in range(NUM_COLUMNS, NUM_COLUMNS + 4)
    )
    assert empty == (0, 0) and full == (7, 7) and repeated == (30, 30)
    assert unique[0] < unique[1] == 5000


def test_a_larger_column_has_a_narrower_interval(exact):
    """1e8 times the counts: 1e4 times narrower, within the error of two percentiles of 256."""
    widths = (exact.high - exact.low)[-2:] / np.array([1.0, 1e8])
    assert 0.7e4 < widths[0] / widths[1] < 1.4e4
    np.testing.assert_allclose(exact.coverage[-2:], 55 / 115, rtol=1e-6)


def test_a_sketch_widens_the_interval_by_its_size(exact, sketched):
    """d varies by 1 / sqrt(400) = 5 % more; a sketch that kept everything changes nothing."""
    assert sketched.low[-1] == exact.low[-1] and sketched.high[-1] == exact.high[-1]
    width = np.mean((sketched.high - sketched.low)[:NUM_COLUMNS]) / DISTINCT
    plain_width = np.mean((exact.high - exact.low)[:NUM_COLUMNS]) / DISTINCT
    assert plain_width < 0.15
    assert 2 * 1.96 * 0.05 < np.hypot(width, plain_width) and width < 0.6


def test_multinomial_draws_have_their_means_and_covariances():
    """8,000 draws each; rare cells beside a heavy one, where float32 counts have no units left.

    Means within five standard errors, deviations within 4 % (five errors), and no draw lost.
    """
    weights = np.array(
        [
            [5.0, 90.0, 5.0, 0.0],
            [100.0, 3.0, 1e9, 0.5],
            [4e4, 3e4, 3e4, 100.0],
            [0.0, 1.0, 0.0, 0.0],
        ]
    )
    trials = np.array([50.0, 1e9, 1e5, 7.0])
    count = 8_000
    draw = jax.jit(_multinomial)(
        jax.random.key(1),
        jnp.broadcast_to(jnp.asarray(trials, jnp.float32), (count, 4)),
        jnp.broadcast_to(jnp.asarray(weights, jnp.float32), (count, 4, 4)),
    )
    draw = np.asarray(draw, np.float64)
    shares = weights / weights.sum(axis=1, keepdims=True)
    mean = trials[:, None] * shares
    deviation = np.sqrt(mean * (1 - shares))
    rare = mean < 1e6
    assert np.all(np.abs(draw.mean(axis=0) - mean)[rare] <= 5 * deviation[rare] / np.sqrt(count))
    kept = rare & (deviation > 0)
    assert np.all(np.abs(draw.std(axis=0)[kept] / deviation[kept] - 1) < 0.04)
    np.testing.assert_allclose(draw.sum(axis=-1), np.broadcast_to(trials, (count, 4)), rtol=1e-7)
    correlation = np.corrcoef(draw[:, 2, 0], draw[:, 2, 1])[0, 1]
    assert abs(correlation + np.sqrt(0.4 / 0.601 * 0.3 / 0.701)) < 0.04


@pytest.mark.parametrize("make", [poisson_population, zipf_population])
@pytest.mark.parametrize("rate", [0.01, 0.2])
def test_the_guaranteed_interval_holds_the_truth(make, rate):
    population = make(2.0)
    interval = guaranteed_interval(expected_profile(population, rate))
    assert interval.low < population.num_distinct <= interval.high * (1 + 1e-9)
    assert interval.high <= population.num_rows and 0 < interval.coverage < 1


def test_the_worst_case_is_the_published_bound():
    """Reading a hundredth, any estimator may miss by 15 with probability e^-4.545."""
    assert abs(worst_case_ratio(1e4, 1e6, np.exp(-225 / 49.5)) - 15) < 1e-9
    assert worst_case_ratio(10, 10) == 1.0


def test_arguments_are_checked(columns):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="name='GOODMAN' is no device estimator"):
        bootstrap_interval(key, columns, "GOODMAN")
    one = plain(1, 1150)
    lower, upper = (
        bootstrap_interval(jax.random.key(0), one, name, num_draws=4) for name in ("duj1", "DUJ1")
    )
    assert (lower.low, lower.high) == (upper.low, upper.high)
    with pytest.raises(ValueError, match="level=95"):
        bootstrap_interval(key, columns, "DUJ1", level=95)
    with pytest.raises(ValueError, match="num_draws=1"):
        bootstrap_interval(key, columns, "DUJ1", num_draws=1)
    with pytest.raises(ValueError, match="num_sampled=20 is not in"):
        worst_case_ratio(20, 10)
    with pytest.raises(ValueError, match="probability=1.5"):
        worst_case_ratio(5, 10, 1.5)
