import numpy as np
import pytest

from jaxlab.federated.aggregators import weighted_mean
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
