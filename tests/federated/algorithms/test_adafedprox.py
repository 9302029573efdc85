"""FedProx whose penalty follows the loss, against its rule and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab.federated.algorithms.adafedprox import ada_fed_prox
from jaxlab.federated.client_data import Schedule
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.strategy import ConfigError

RATE = 0.1


def test_without_change_it_is_fedprox(uneven, in_twos):
    tx = optax.sgd(RATE)
    adaptive = ada_fed_prox(uneven.task, tx, in_twos, mu=0.3, change=0.0)
    plain = fed_avg(uneven.task, tx, in_twos, prox_mu=0.3)
    np.testing.assert_allclose(uneven.learned(adaptive), uneven.learned(plain), atol=1e-6)


def test_mu_follows_the_losses(even):
    algorithm = ada_fed_prox(
        even.task, optax.sgd(RATE), Schedule(2), mu=0.2, change=0.1, patience=2
    )
    server = algorithm.init_server(even.variables)
    still = jax.tree.map(jnp.zeros_like, even.variables)
    found = []
    for loss in (5.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.9, 0.9, 1.0):
        mean = {"variables": still, "loss": jnp.float32(loss)}
        server = algorithm.update_server(server, mean, jnp.float32(3))
        found.append(float(server["mu"]))
    # Up at 6; down at 4 and at 2, and no lower than 0; down after 1 and 0.9; up at the last.
    wanted = [0.2, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1, 0.0, 0.0, 0.1]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_clients_send_the_loss_of_what_they_received_and_train_with_the_mu_of_the_round(
    even, full_batch
):
    algorithm = ada_fed_prox(even.task, optax.sgd(RATE), full_batch, mu=0.0, change=0.5)
    server, _ = even.play(algorithm, num_rounds=1)
    losses = [even.loss(client, even.start) for client in range(3)]
    assert float(server["loss"]) == pytest.approx(np.mean(losses), rel=1e-5)
    # Two full-batch steps, so that the penalty is felt in the second one.
    two = Schedule(6, 2, "step", shuffle=False)
    algorithm = ada_fed_prox(even.task, optax.sgd(RATE), two, mu=0.7)
    found = even.learned(algorithm, num_rounds=1)
    ends = []
    for client in range(3):
        w = even.start.copy()
        for _ in range(2):
            w = w - RATE * (even.gradient(client, w) + 0.7 * (w - even.start))
        ends.append(w)
    np.testing.assert_allclose(found, np.mean(ends, axis=0), atol=1e-6)


@pytest.mark.parametrize("wrong", [{"mu": -1.0}, {"change": -0.1}, {"patience": 0}])
def test_numbers_out_of_range_are_refused(even, wrong):
    with pytest.raises(ConfigError, match="must be a number, 0 or more|must be a positive number"):
        ada_fed_prox(even.task, optax.sgd(RATE), Schedule(2), **wrong)
