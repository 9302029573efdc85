"""FedAvg and what it turns into, one client and one server step at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxlab.federated.client_data import Schedule, gather_clients, view_client
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.labelled import regression
from jaxlab.federated.local import Limits

SCHEDULE, LIMITS = Schedule(4, 3, "step", shuffle=False), Limits(4, 3)
ONE = jnp.float32(1)  # number of updates, which FedAvg does not look at


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(1, use_bias=False)(x)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 2)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    data = jax.tree.map(jnp.asarray, gather_clients({"x": x, "y": y}, [np.arange(4)]))
    task = regression(Linear(), jax.ShapeDtypeStruct((2,), jnp.float32))
    return task, task.init(jax.random.key(0)), view_client(data, jnp.int32(0)), x, y


def kernel(tree):
    return np.asarray(tree["params"]["Dense_0"]["kernel"])[:, 0]


def update_of(algorithm, variables, view):
    sent = algorithm.broadcast(algorithm.init_server(variables))
    return algorithm.local(sent, {}, view, LIMITS, jax.random.key(0))


@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_the_update_is_what_descent_with_the_proximal_term_moves(problem, mu):
    task, variables, view, x, y = problem
    result = update_of(fed_avg(task, optax.sgd(0.1), SCHEDULE, prox_mu=mu), variables, view)
    start = kernel(variables).astype(np.float64)
    w = start.copy()
    for _ in range(3):
        w -= 0.1 * (2 * x.T @ (x @ w - y) / 4 + mu * (w - start))
    np.testing.assert_allclose(kernel(result.update), w - start, atol=1e-6)
    assert result.weight == 12 and result.client_state == {}


def test_the_server_moves_by_the_mean_update(problem):
    task, variables, _, _, _ = problem
    algorithm = fed_avg(task, optax.sgd(0.1), SCHEDULE)
    mean = jax.tree.map(lambda leaf: leaf + 1, variables)
    moved = algorithm.update_server(algorithm.init_server(variables), mean, ONE)
    np.testing.assert_allclose(
        kernel(algorithm.variables(moved)), 2 * kernel(variables) + 1, rtol=1e-6
    )


def test_a_server_that_descends_with_rate_one_is_the_mean(problem):
    task, variables, _, _, _ = problem
    mean = jax.tree.map(lambda leaf: 0.3 * leaf + 1, variables)
    ends = []
    for server_tx in (None, optax.sgd(1.0)):
        algorithm = fed_avg(task, optax.sgd(0.1), SCHEDULE, server_tx=server_tx)
        state = algorithm.update_server(algorithm.init_server(variables), mean, ONE)
        ends.append(kernel(algorithm.variables(state)))
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-6)


def test_the_optimizer_of_the_server_keeps_its_momentum(problem):
    task, variables, _, _, _ = problem
    algorithm = fed_avg(task, optax.sgd(0.1), SCHEDULE, server_tx=optax.sgd(0.5, momentum=0.9))
    state = algorithm.init_server(variables)
    ones = jax.tree.map(jnp.ones_like, variables)
    for _ in range(2):
        state = algorithm.update_server(state, ones, ONE)
    # Velocity 1, then 1.9: 0.5 * 2.9 in all.
    np.testing.assert_allclose(
        kernel(algorithm.variables(state)) - kernel(variables), 1.45, rtol=1e-5
    )


def test_what_is_no_parameter_is_averaged_and_types_stay(problem):
    task, variables, _, _, _ = problem
    algorithm = fed_avg(task, optax.sgd(0.1), SCHEDULE, server_tx=optax.sgd(0.0))
    half = {
        "params": jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables["params"]),
        "batch_stats": {"mean": jnp.ones(2)},
    }
    mean = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5, jnp.float32), half)
    moved = algorithm.update_server(algorithm.init_server(half), mean, ONE)["variables"]
    np.testing.assert_allclose(moved["batch_stats"]["mean"], 1.5)
    assert jax.tree.map(lambda leaf: leaf.dtype, moved) == jax.tree.map(
        lambda leaf: leaf.dtype, half
    )
