"""A line fitted by three clients: small enough to be done again in NumPy, step by step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxlab.federated.client_data import Schedule, gather_clients, view_client
from jaxlab.federated.labelled import regression
from jaxlab.federated.local import Limits

RATE = 0.1


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(1, use_bias=False)(x)


class Problem(NamedTuple):
    """Clients with a line each, and what it takes to train on them."""

    task: object
    variables: dict
    data: object
    sizes: tuple
    x: list
    y: list

    def view(self, client):
        return view_client(self.data, jnp.int32(client))

    def gradient(self, client, w, rows=slice(None)):
        """Of the mean squared error over some rows of a client, in float64."""
        x, y = self.x[client][rows], self.y[client][rows]
        return 2 * x.T @ (x @ w - y) / len(x)

    def loss(self, client, w):
        return np.mean((self.x[client] @ w - self.y[client]) ** 2)

    @property
    def start(self):
        return weights(self.variables)

    def play(self, algorithm, num_rounds=3, cohorts=None, seed=0):
        """The server and the clients' states after some rounds, one client after another."""
        limits = Limits(max(self.sizes), 6)
        local = jax.jit(algorithm.local, static_argnums=3)
        server = algorithm.init_server(self.variables)
        states = [algorithm.init_client(self.variables) for _ in self.sizes]
        for number in range(num_rounds):
            cohort = range(len(self.sizes)) if cohorts is None else cohorts[number]
            sent, results = algorithm.broadcast(server), []
            for client in cohort:
                key = jax.random.fold_in(jax.random.key(seed + number), client)
                results.append(local(sent, states[client], self.view(client), limits, key))
                states[client] = results[-1].client_state
            shares = np.array([float(result.weight) for result in results])
            shares = shares / shares.sum()

            def mean(*leaves, shares=shares):
                return sum(
                    w * np.asarray(leaf, np.float64) for w, leaf in zip(shares, leaves, strict=True)
                )

            mean = jax.tree.map(mean, *(result.update for result in results))
            mean = jax.tree.map(np.float32, mean)
            server = algorithm.update_server(server, mean, jnp.float32(len(cohort)))
        return server, states

    def learned(self, algorithm, *args, **options):
        """The weights after some rounds."""
        return weights(algorithm.variables(self.play(algorithm, *args, **options)[0]))


def weights(tree):
    """The numbers of a tree that holds one model, or only its parameters."""
    return np.asarray(tree.get("params", tree)["Dense_0"]["kernel"], np.float64)[:, 0]


def make_problem(sizes):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(sum(sizes), 2)), rng.normal(size=sum(sizes))
    rows = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    examples = {"x": x.astype(np.float32), "y": y.astype(np.float32)}
    data = jax.tree.map(jnp.asarray, gather_clients(examples, rows))
    task = regression(Linear(), jax.ShapeDtypeStruct((2,), jnp.float32))
    variables = task.init(jax.random.key(1))
    return Problem(task, variables, data, sizes, [x[r] for r in rows], [y[r] for r in rows])


@pytest.fixture(scope="session")
def even():
    """Three clients with four examples each."""
    return make_problem((4, 4, 4))


@pytest.fixture(scope="session")
def uneven():
    """Clients of 2, 6 and 4 examples: 1, 3 and 2 batches of two."""
    return make_problem((2, 6, 4))


@pytest.fixture(scope="session")
def full_batch():
    """One step over everything."""
    return Schedule(6, 1, "step", shuffle=False)


@pytest.fixture(scope="session")
def in_twos():
    """One epoch in batches of two, in the order of the data."""
    return Schedule(2, 1, shuffle=False)
