"""Clusters of updates against the loops that they stand for."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.federated.clusters import clustered_means, cosine_similarity, nearest, same_group
from jaxlab.federated.strategy import ConfigError


@pytest.fixture(name="updates")
def updates_fixture():
    rng = np.random.default_rng(0)
    return {"a": rng.normal(size=(5, 3, 2)), "b": rng.normal(size=(5, 4))}


def rows_of(updates):
    return np.concatenate([leaf.reshape(5, -1) for leaf in updates.values()], axis=1)


def as_arrays(updates):
    return {name: jnp.asarray(leaf, jnp.float32) for name, leaf in updates.items()}


def test_cosines_are_of_the_whole_update(updates):
    rows = rows_of(updates)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    found = cosine_similarity(as_arrays(updates))
    np.testing.assert_allclose(found, unit @ unit.T, atol=1e-6)
    zero = {"a": jnp.zeros((2, 3))}
    np.testing.assert_array_equal(cosine_similarity(zero), np.zeros((2, 2)))


@pytest.mark.parametrize(("inside", "outside"), [(1.0, 0.0), (2.0, 0.5)])
def test_every_client_gets_the_mean_of_its_nearest_as_in_the_original(updates, inside, outside):
    rows, weights, counts = rows_of(updates), np.array([3.0, 1, 2, 5, 4]), np.array([1, 2, 3, 5, 2])
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    distances = 1 - unit @ unit.T
    together = nearest(as_arrays(updates), jnp.asarray(counts))
    found = clustered_means(
        as_arrays(updates), jnp.asarray(weights, jnp.float32), together,
        inside_weight=inside, outside_weight=outside,
    )  # fmt: skip
    for i in range(5):
        chosen = np.argsort(distances[i])[: counts[i]]
        share = np.array([w * (inside if j in chosen else outside) for j, w in enumerate(weights)])
        share /= share.sum()
        for name, leaf in updates.items():
            wanted = np.tensordot(share, leaf, 1)
            np.testing.assert_allclose(found[name][i], wanted, rtol=1e-5, atol=1e-6)


def test_groups_keep_to_themselves_and_equal_weights_give_one_mean(updates):
    weights = jnp.asarray([3.0, 1.0, 2.0, 5.0, 4.0])
    together = same_group(jnp.asarray([0, 1, 0, 1, 2]))
    found = clustered_means(as_arrays(updates), weights, together)
    wanted = (3 * updates["b"][0] + 2 * updates["b"][2]) / 5
    np.testing.assert_allclose(found["b"][0], wanted, rtol=1e-5)
    np.testing.assert_allclose(found["b"][4], updates["b"][4], rtol=1e-6)
    same = clustered_means(as_arrays(updates), weights, together, outside_weight=1.0)
    mean = np.average(updates["b"], axis=0, weights=weights)
    np.testing.assert_allclose(same["b"], np.tile(mean, (5, 1)), rtol=1e-5, atol=1e-6)


def test_an_update_is_nearest_to_itself_among_equal_ones():
    together = nearest({"a": jnp.ones((3, 2))}, jnp.ones(3, jnp.int32))
    np.testing.assert_array_equal(together, np.eye(3, dtype=bool))


@pytest.mark.parametrize(("inside", "outside"), [(0.0, 0.0), (1.0, -0.1)])
def test_weights_that_make_no_mean_are_refused(inside, outside):
    with pytest.raises(ConfigError, match="must be positive"):
        clustered_means(
            {"a": jnp.ones((2, 1))}, jnp.ones(2), jnp.eye(2, dtype=bool),
            inside_weight=inside, outside_weight=outside,
        )  # fmt: skip
