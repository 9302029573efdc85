from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.ndv.populations import (
    Population,
    equal_population,
    expected_profile,
    poisson_population,
    ranked_zipf_population,
    zipf_population,
)
from jaxlab.ndv.profile import (
    dense_profile,
    device_profile_from_counts,
    device_profile_from_hashes,
    profile_from_counts,
    profile_from_frequencies,
    profile_from_values,
    stack_profiles,
    to_dense,
    to_device,
    validate_profile,
)

LENGTH = 5


@pytest.fixture(scope="module")
def values():
    """A column with frequencies below and above LENGTH; 0 is one of the values."""
    return np.random.default_rng(0).zipf(1.5, 400).clip(max=300) - 1


def counted(values):
    """The profile by a dictionary: {i: f}, n, d."""
    counts = Counter(values.tolist())
    return dict(Counter(counts.values())), len(values), len(counts)


def check_dense(profile, values):
    table, n, d = counted(values)
    tail = {i: f for i, f in table.items() if i > LENGTH}
    assert tail and profile.f.shape == (LENGTH,)
    np.testing.assert_array_equal(profile.i, np.arange(1, LENGTH + 1))
    np.testing.assert_array_equal(profile.f, [table.get(i, 0) for i in range(1, LENGTH + 1)])
    assert (float(profile.n), float(profile.d)) == (n, d)
    assert float(profile.d_tail) == sum(tail.values())
    assert float(profile.n_tail) == sum(i * f for i, f in tail.items())
    np.testing.assert_allclose(
        profile.s2_tail, sum(i * (i - 1) * f for i, f in tail.items()), rtol=1e-6
    )


def test_values_are_counted_as_by_a_dictionary(values):
    profile = profile_from_values(values, population=4000)
    table, n, d = counted(values)
    assert dict(zip(profile.i.tolist(), profile.f.tolist(), strict=True)) == table
    assert (float(profile.n), float(profile.d), float(profile.q)) == (n, d, n / 4000)
    check_dense(to_dense(profile, LENGTH), values)


def test_float_values_keep_one_nan_and_one_zero():
    profile = profile_from_values(np.array([np.nan, 0.0, np.nan, -0.0, 1.0]), population=10)
    assert profile.i.tolist() == [1, 2] and profile.f.tolist() == [1.0, 2.0]


def test_device_counts_equal_the_host(values):
    counts = np.array(list(Counter(values.tolist()).values()))
    padded = np.concatenate([counts, np.zeros(7, np.int64)])
    build = jax.jit(device_profile_from_counts, static_argnames="length")
    profile = build(jnp.asarray(padded, jnp.int32), length=LENGTH, population=4000.0, rate=0.1)
    check_dense(profile, values)
    validate_profile(jax.tree.map(np.asarray, profile))


def test_device_hashes_equal_the_host(values):
    """Hashes that share one word must not be taken for the same; invalid rows do not count."""
    low, high = (values % 7).astype(np.uint32), (values // 7).astype(np.uint32)
    rng = np.random.default_rng(1)
    noise = np.zeros(50, np.uint32)
    order = rng.permutation(len(values) + 50)
    valid = np.concatenate([np.ones(len(values), bool), np.zeros(50, bool)])[order]
    words = [jnp.asarray(np.concatenate([word, noise])[order]) for word in (low, high)]
    build = jax.jit(device_profile_from_hashes, static_argnames="length")
    profile = build(*words, jnp.asarray(valid), length=LENGTH, population=4000.0, rate=0.1)
    check_dense(profile, values)


def test_stacking_pads_with_nothing(values):
    one = profile_from_counts([1, 1, 2], population=50)
    two = profile_from_values(values, population=4000, rate=0.1)
    both = stack_profiles([one, two])
    assert both.f.shape == (2, two.f.size) and both.n.tolist() == [4.0, 400.0]
    np.testing.assert_array_equal(both.f[0, :2], one.f)
    assert not both.f[0, 2:].any()
    validate_profile(both)
    device = to_device(both)
    assert device.f.dtype == jnp.float32 and device.i.dtype == jnp.int32


def test_dense_parts_make_a_profile_on_host_and_device():
    parts = {"n": 20.0, "d": 6.0, "n_tail": 14.0, "d_tail": 2.0, "s2_tail": 84.0}
    parts = {**parts, "population": 100.0, "rate": 0.2}
    for xp in (np, jnp):
        leaves = {name: xp.asarray([value]) for name, value in parts.items()}
        profile = dense_profile(xp.asarray([[2.0, 2.0]]), **leaves)
        assert profile.i.tolist() == [[1, 2]] and isinstance(profile.i, type(xp.zeros(1)))
        validate_profile(jax.tree.map(np.asarray, profile))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"f": [-1.0, 2.0]}, "f has the entry -1.0"),
        ({"f": [np.nan, 2.0]}, "f has the entry nan"),
        ({"i": [0, 2]}, "i=0 is out of range"),
        ({"i": [2, 2]}, "i lists a frequency twice"),
        ({"f": [1.0]}, r"i has shape \(2,\) and f has shape \(1,\)"),
        ({"population": 13.0}, "N=13.0 is out of range; wanted at least the n=14.0"),
        ({"population": np.inf}, "N has the entry inf"),
        ({"rate": 0.0}, "q=0.0 is out of range"),
        ({"rate": 1.5}, "q=1.5 is out of range"),
        ({"rate": np.nan}, "q has the entry nan"),
    ],
)
def test_errors_name_the_field(arguments, message):
    fine = {"i": [1, 2], "f": [4.0, 5.0], "population": 100.0, "rate": 0.1}
    profile_from_frequencies(**fine)
    with pytest.raises(ValueError, match=message):
        profile_from_frequencies(**{**fine, **arguments})


@pytest.mark.parametrize(("field", "value"), [("n", 15.0), ("d", 8.0)])
def test_sums_that_do_not_match_are_named(field, value):
    profile = profile_from_frequencies([1, 2], [4.0, 5.0], population=100)
    with pytest.raises(ValueError, match=f"{field}={value} is out of range; wanted the sum"):
        validate_profile(profile._replace(**{field: np.asarray(value)}))


def test_other_arguments_are_refused():
    with pytest.raises(ValueError, match="counts has the negative entry -3"):
        profile_from_counts([1, -3], population=10)
    with pytest.raises(ValueError, match=r"values has shape \(1, 2\)"):
        profile_from_values(np.ones((1, 2)), population=10)
    with pytest.raises(ValueError, match="length=0"):
        to_dense(profile_from_counts([1], population=10), 0)
    with pytest.raises(ValueError, match="profiles is empty"):
        stack_profiles([])
    with pytest.raises(ValueError, match="does not fit int32"):
        to_device(profile_from_counts([2**33], population=2.0**40))
    with pytest.raises(ValueError, match="rate=0 is not in"):
        expected_profile(equal_population(2, 10), 0)
    with pytest.raises(ValueError, match="population has no row"):
        expected_profile(equal_population(2, 0), 0.1)
    with pytest.raises(ValueError, match="exponent=1.0 has no zeta"):
        zipf_population(1.0)
    with pytest.raises(ValueError, match="mean=-1 is not positive"):
        poisson_population(-1)


def test_an_empty_sample_is_a_profile():
    profile = profile_from_counts([], population=100)
    assert (float(profile.n), float(profile.d), profile.f.size) == (0.0, 0.0, 0)


# N, D, n, d, f1, f2 at q = 0.01 of the published sets of 1e11 rows (arXiv:2206.05476: the exact
# counts of its stored runs agree to the digits that sampling leaves).
PUBLISHED = {
    "poi-50": (9.999998e10, 2.041704e9, 1.00000e9, 7.90570e8, 6.12657e8, 1.50070e8),
    "poi-100": (9.999994e10, 1.010206e9, 9.99999e8, 6.34779e8, 3.71595e8, 1.83921e8),
    "poi-200": (9.999984e10, 5.025246e8, 9.99998e8, 4.33825e8, 1.36702e8, 1.36012e8),
    "zipf-1.2": (8.655496e10, 2.665670e10, 8.65550e8, 6.58025e8, 5.92373e8, 3.84564e7),
    "zipf-1.5": (9.897083e10, 5.135117e10, 9.89708e8, 9.16630e8, 8.78360e8, 2.72418e7),
    "zipf-2": (9.995927e10, 7.307628e10, 9.99593e8, 9.86282e8, 9.75523e8, 9.35487e6),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_expected_profiles_reproduce_the_published_sets(name):
    kind, parameter = name.split("-")
    population = (poisson_population if kind == "poi" else zipf_population)(float(parameter))
    profile = expected_profile(population, 0.01)
    ours = (population.num_rows, population.num_distinct, profile.n, profile.d, *profile.f[:2])
    np.testing.assert_allclose([float(value) for value in ours], PUBLISHED[name], rtol=5e-6)


def test_expectation_equals_the_mean_of_samples():
    """Bernoulli samples of 400 rows: means of 4,000 within five standard errors."""
    population = Population(np.array([1, 3, 20]), np.array([40.0, 60.0, 9.0]))
    sizes = np.repeat(population.sizes, population.num_values.astype(int))
    draws = np.random.default_rng(0).binomial(sizes, 0.2, (4000, len(sizes)))
    profile = expected_profile(population, 0.2, length=4)
    for i in range(1, 5):
        f = np.sum(draws == i, axis=1)
        assert abs(f.mean() - profile.f[i - 1]) < 5 * f.std() / np.sqrt(4000)
    high = np.where(draws > 4, draws, 0)
    for tail, power in ((profile.d_tail, high > 0), (profile.n_tail, high)):
        drawn = np.sum(power, axis=1)
        assert abs(drawn.mean() - tail) < 5 * drawn.std() / np.sqrt(4000)
    drawn = np.sum(high * (high - 1), axis=1)
    assert abs(drawn.mean() - profile.s2_tail) < 5 * drawn.std() / np.sqrt(4000)
    assert abs(profile.n - 0.2 * population.num_rows) < 1e-9


def test_a_ranked_zipf_has_its_rows_and_values():
    population = ranked_zipf_population(1.0, 1000, 2e5)
    assert population.num_distinct == 1000
    assert abs(population.num_rows / 2e5 - 1) < 0.01
    largest = population.sizes[-1] / population.num_rows
    assert abs(largest * np.sum(1 / np.arange(1, 1001)) - 1) < 0.01
