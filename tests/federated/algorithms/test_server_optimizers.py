import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.federated.algorithms.server_optimizers import fed_adagrad, fed_adam, fed_yogi
from jaxlab.federated.fedavg import make_server_update
from jaxlab.federated.strategy import ConfigError


@pytest.mark.parametrize("name", ["adagrad", "yogi", "adam"])
def test_the_server_steps_as_the_algorithm_says(name):
    make = {"adagrad": fed_adagrad, "yogi": fed_yogi, "adam": fed_adam}[name]
    b1, b2, tau, rate = 0.8, 0.95, 0.01, 0.3
    options = {"b1": b1, "tau": tau} | ({} if name == "adagrad" else {"b2": b2})
    init, update = make_server_update(make(rate, **options))
    start = np.array([1.0, -2.0, 0.5])
    server = init({"params": {"w": jnp.asarray(start, jnp.float32)}})
    x, m, v = start, np.zeros(3), np.full(3, tau**2)
    update, deltas = jax.jit(update), np.random.default_rng(0).normal(size=(4, 3)) * [1, 0.1, 0.01]
    for d in deltas:
        server = update(server, {"params": {"w": d.astype(np.float32)}}, jnp.float32(1))
        m = b1 * m + (1 - b1) * d
        v = {
            "adagrad": v + d**2,
            "yogi": v - (1 - b2) * d**2 * np.sign(v - d**2),
            "adam": b2 * v + (1 - b2) * d**2,
        }[name]
        x = x + rate * m / (np.sqrt(v) + tau)
    np.testing.assert_allclose(server["variables"]["params"]["w"], x, rtol=1e-5)


def test_a_division_by_zero_is_refused():
    with pytest.raises(ConfigError, match="tau=0.0"):
        fed_adam(0.1, tau=0.0)
