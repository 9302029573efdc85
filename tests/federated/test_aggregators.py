import numpy as np
import pytest

from jaxlab.federated.aggregators import combine_updates, weighted_mean
from jaxlab.federated.strategy import ConfigError


def test_late_updates_lose_weight_and_the_others_gain_none():
    rule = weighted_mean(staleness_exponent=0.5)
    a, b = rule.coefficients(np.array([10.0, 30.0]), np.array([0, 2]))
    deltas = np.array([[1.0, -1.0], [0.5, 0.5]])
    np.testing.assert_allclose(a @ deltas / b.sum(), [0.46650635, -0.03349365], atol=1e-8)


def test_without_staleness_it_is_the_mean_by_examples_or_the_plain_one():
    weights, staleness = np.array([1.0, 3.0, 0.0]), np.zeros(3, int)
    a, b = weighted_mean().coefficients(weights, staleness)
    np.testing.assert_allclose(a / b.sum(), [0.25, 0.75, 0])
    a, b = weighted_mean(ignore_weight=True).coefficients(weights, staleness)
    np.testing.assert_allclose(a / b.sum(), [0.5, 0.5, 0])


def test_an_exponent_that_favours_late_updates_is_refused():
    with pytest.raises(ConfigError, match="staleness_exponent=-1.0 .* use 0 or more"):
        weighted_mean(staleness_exponent=-1.0)


MEANS = {
    "weighted": weighted_mean(),
    "plain": weighted_mean(ignore_weight=True),
    "late": weighted_mean(staleness_exponent=0.5),
}


@pytest.mark.parametrize("name", MEANS)
def test_a_mean_of_equal_updates_is_one_of_them_and_their_order_does_not_matter(name):
    rng = np.random.default_rng(0)
    rows, weights = rng.normal(size=(7, 5)).astype(np.float32), rng.uniform(1, 9, 7)
    staleness, order = rng.integers(0, 4, 7), rng.permutation(7)

    def combine(rows, weights, staleness):
        return combine_updates(
            MEANS[name], weights, staleness, lambda place, factor, after: rows[place] * factor
        )

    equal = combine(np.tile(rows[0], (7, 1)), weights, 0 * staleness)
    np.testing.assert_allclose(equal, rows[0], rtol=1e-6)
    np.testing.assert_allclose(
        combine(rows, weights, staleness),
        combine(rows[order], weights[order], staleness[order]),
        atol=1e-6,
    )
