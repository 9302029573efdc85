import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.federated.aggregators import weighted_mean
from jaxlab.federated.dissimilarity import (
    local_dissimilarity,
    measured,
    stacked_mean,
    update_norms,
)


def test_dissimilarity_is_that_of_the_definition_tensor_by_tensor():
    rng = np.random.default_rng(0)
    updates = {"a": rng.normal(size=(4, 2, 3)), "b": {"c": rng.normal(size=(4, 5))}}
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    found = local_dissimilarity(updates, weights)
    for name, rows in (("a", updates["a"]), ("b/c", updates["b"]["c"])):
        above = sum(w / 10 * (row**2).sum() for w, row in zip(weights, rows, strict=True))
        mean = sum(w / 10 * row for w, row in zip(weights, rows, strict=True))
        assert found[name] == pytest.approx(np.sqrt(above / (mean**2).sum()), rel=1e-12)
    norms = [
        np.sqrt((a**2).sum() + (c**2).sum())
        for a, c in zip(updates["a"], updates["b"]["c"], strict=True)
    ]
    np.testing.assert_allclose(update_norms(updates), norms, rtol=1e-12)


def test_clients_that_agree_are_not_apart_and_those_that_cancel_are_without_end():
    equal, opposite = np.ones((3, 2)), np.array([[1.0], [-1.0]])
    assert local_dissimilarity({"w": equal}, np.ones(3)) == {"w": pytest.approx(1)}
    assert local_dissimilarity({"w": 0 * equal}, np.ones(3)) == {"w": 1}
    assert local_dissimilarity({"w": opposite}, np.ones(2)) == {"w": np.inf}


def test_a_measured_mean_is_the_mean_and_tells_what_it_saw():
    seen = []
    rule = measured(stacked_mean(0.5), lambda apart, norms: seen.append((apart, norms)))
    updates, weights = np.array([[1.0, 2.0], [-1.0, 1.0]]), np.array([0.25, 0.75])
    staleness = np.array([0, 3])
    found = rule.combine({"w": jnp.asarray(updates)}, jnp.asarray(weights), jnp.asarray(staleness))
    a, b = weighted_mean(staleness_exponent=0.5).coefficients(weights, staleness)
    np.testing.assert_allclose(found["w"], a @ updates / b.sum(), rtol=1e-6)
    ((apart, norms),) = seen
    assert apart["w"] == pytest.approx(1.2317635, abs=1e-6)
    np.testing.assert_allclose(norms, [5**0.5, 2**0.5], rtol=1e-6)
