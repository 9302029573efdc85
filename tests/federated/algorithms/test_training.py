"""Sharpness-aware steps, local entropy and averaged models, against slow forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab.federated.algorithms.local_entropy import local_entropy
from jaxlab.federated.algorithms.sam import sharpness_aware
from jaxlab.federated.algorithms.swa import stochastic_averaging
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.local import Limits
from jaxlab.federated.strategy import ConfigError

RATE, LIMITS = 0.1, Limits(4, 6)


@pytest.mark.parametrize("adaptive", [False, True])
def test_steps_take_the_gradient_where_the_loss_is_worst(even, full_batch, adaptive):
    gradient = sharpness_aware(0.3, adaptive=adaptive, eta=0.01)
    algorithm = fed_avg(even.task, optax.sgd(RATE), full_batch, gradient=gradient)
    w = even.start
    for _ in range(2):
        ends = []
        for k in range(3):
            g = even.gradient(k, w)
            size = np.abs(w) + 0.01 if adaptive else 1.0
            e = 0.3 * size**2 * g / np.linalg.norm(size * g)
            ends.append(w - RATE * even.gradient(k, w + e))
        w = np.mean(ends, axis=0)
    np.testing.assert_allclose(even.learned(algorithm, 2), w, atol=1e-6)


def test_biases_are_measured_as_they_are():
    params = {"kernel": jnp.array([2.0, 0.0]), "bias": jnp.array([5.0])}

    def objective(params):
        return jnp.square(params["kernel"]).sum() + jnp.square(params["bias"]).sum(), ()

    grads, _ = sharpness_aware(1.0, adaptive=True)(objective, params)
    size, g = np.array([2.0, 0.0, 1.0]), np.array([4.0, 0.0, 10.0])
    worst = np.array([2.0, 0.0, 5.0]) + size**2 * g / np.linalg.norm(size * g)
    got = np.concatenate([grads["kernel"], grads["bias"]])
    np.testing.assert_allclose(got, 2 * worst, rtol=1e-6)


@pytest.mark.parametrize("compat", [False, True])
def test_local_entropy_sends_the_mean_of_its_walk(uneven, in_twos, compat):
    algorithm = local_entropy(
        uneven.task, RATE, in_twos, gamma=0.5, growth=1.3, noise=0.0, alpha=0.6, compat=compat
    )
    w, gammas = uneven.start, [0.5] * 3
    for _ in range(2):
        ends = []
        for k in range(3):
            y = mean = w
            for first in range(0, uneven.sizes[k], 2):
                g = uneven.gradient(k, y, slice(first, first + 2))
                y = y - RATE * (g + gammas[k] * (y - w))
                mean = 0.4 * mean + 0.6 * y
                gammas[k] *= 1.3 if compat else 1.0
            gammas[k] *= 1.0 if compat else 1.3
            ends.append(mean)
        w = np.array([2, 6, 4]) / 12 @ ends
    np.testing.assert_allclose(uneven.learned(algorithm, 2), w, atol=1e-6)


def test_the_noise_of_a_step_has_its_deviation(even, full_batch):
    """Of 300 numbers: a correct program is off by a fifth about once in a million keys."""
    algorithm = local_entropy(even.task, RATE, full_batch, gamma=0.0, noise=2.0, alpha=1.0)
    sent = algorithm.broadcast(algorithm.init_server(even.variables))
    view = even.view(0)

    def moved(key):
        update = algorithm.local(sent, {}, view, LIMITS, key).update
        return update["params"]["Dense_0"]["kernel"][:, 0]

    moves = jax.jit(jax.vmap(moved))(jax.random.split(jax.random.key(0), 150))
    noise = np.asarray(moves) + RATE * even.gradient(0, even.start)
    assert noise.std() == pytest.approx(2.0 * RATE**0.5, rel=0.2)
    assert np.corrcoef(noise.T)[0, 1] == pytest.approx(0, abs=0.4)


@pytest.mark.parametrize("compat", [False, True])
def test_the_mean_is_of_the_models_of_its_rounds(even, full_batch, compat):
    plain = fed_avg(even.task, optax.sgd(RATE), full_batch)
    algorithm = stochastic_averaging(plain, 9, start_round=2, every_rounds=3, compat=compat)
    ones = jax.tree.map(jnp.ones_like, even.variables)
    server, seen = algorithm.init_server(even.variables), []
    for _ in range(9):
        server = algorithm.update_server(server, ones, jnp.float32(1))
        moved = algorithm.variables(server)["params"]["Dense_0"]["kernel"][:, 0] - even.start
        assert (algorithm.evaluation(server)["params"]["Dense_0"]["kernel"][0] != 0).all()
        seen.append(round(float(moved[0]), 4))
    # The model has moved by the number of rounds; its mean takes those of rounds 2, 5 and 8.
    expected = [1, 2, 3, 4, 5, 5, 5, 6, 6] if compat else [1, 2, 2, 2, 3.5, 3.5, 3.5, 5, 5]
    assert seen == expected
    sent = algorithm.broadcast(server)["params"]["Dense_0"]["kernel"][:, 0]
    np.testing.assert_allclose(sent - even.start, 9, rtol=1e-6)


def test_what_is_out_of_range_is_told(even, full_batch):
    plain = fed_avg(even.task, optax.sgd(RATE), full_batch)
    with pytest.raises(ConfigError, match="start_round=30 must be between 1 and num_rounds - 1=19"):
        stochastic_averaging(plain, 20)
    with pytest.raises(ConfigError, match="rho=-1.0"):
        sharpness_aware(-1.0)
    with pytest.raises(ConfigError, match="alpha=0.0"):
        local_entropy(even.task, RATE, full_batch, alpha=0.0)
