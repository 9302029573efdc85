"""Clients alone, and all examples in one place, against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxlab.federated.algorithms.scaffold import scaffold
from jaxlab.federated.baselines import make_global_simulation, make_local_simulation, train_alone
from jaxlab.federated.client_data import Schedule, gather_clients
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.labelled import regression
from jaxlab.federated.simulation import run_course
from jaxlab.federated.stopping import EarlyStop
from jaxlab.federated.store import ClientStore
from jaxlab.federated.strategy import ConfigError
from jaxlab.parallel import make_mesh

SIZES, RATE = (4, 2, 6, 0), 0.1
SCHEDULE = Schedule(6, shuffle=False)


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(1, use_bias=False)(x)


def clients(seed, sizes=SIZES):
    rng = np.random.default_rng(seed)
    rows = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    x, y = rng.normal(size=(sum(sizes), 2)), rng.normal(size=sum(sizes))
    return gather_clients({"x": x.astype(np.float32), "y": y.astype(np.float32)}, rows)


def own(data, client):
    rows = slice(data.offsets[client], data.offsets[client] + data.sizes[client])
    return (data.examples[name][rows].astype(np.float64) for name in "xy")


def loss(data, client, w):
    x, y = own(data, client)
    return np.mean((x @ w - y) ** 2)


def descend(data, client, w, num_steps):
    x, y = own(data, client)
    for _ in range(num_steps):
        w = w - RATE * 2 * x.T @ (x @ w - y) / len(x)
    return w


@pytest.fixture(scope="module")
def task():
    return regression(Linear(), jax.ShapeDtypeStruct((2,), jnp.float32))


@pytest.fixture(scope="module")
def variables(task):
    return task.init(jax.random.key(0))


@pytest.fixture(scope="module")
def algorithm(task):
    return fed_avg(task, optax.sgd(RATE), SCHEDULE)


def weights(tree):
    return np.asarray(tree["params"]["Dense_0"]["kernel"], np.float64)[..., 0]


@pytest.mark.parametrize("delta, expected_rounds", [(0.0, [3, 9, 3]), (0.05, [3, 3, 3])])
def test_clients_alone_learn_from_their_own_examples_until_they_stop(
    algorithm, variables, delta, expected_rounds
):
    data, val, num_rounds = clients(0), clients(1, (3, 3, 3, 3)), 9
    stop = EarlyStop("val/loss", 2, delta)
    alone = train_alone(algorithm, stop)
    store = ClientStore(jax.device_get(alone.init_client(variables)), 4)
    simulation = make_local_simulation(
        algorithm, data, variables, SCHEDULE, num_rounds=num_rounds, mesh=make_mesh(),
        early_stop=stop, splits={"val": val}, store=store,
    )  # fmt: skip
    state = run_course(simulation.course, simulation.start())

    start, expected, rounds, num_stopped = weights(variables), [], [], 0
    for client in range(3):
        w, losses = start, []
        while not stop.is_over(losses) and len(losses) < num_rounds:
            w = descend(data, client, w, 1)
            losses.append(loss(val, client, w))
        expected.append(w)
        rounds.append(len(losses))
        num_stopped += stop.is_over(losses)
    assert rounds == expected_rounds
    got = weights(store.rows()["server"]["variables"])
    np.testing.assert_allclose(got, [*expected, start], atol=1e-5)
    assert state.server.round == max(rounds)
    stopped = [e.metrics["val/stopped_clients"] for e in state.server.evaluations]
    assert stopped[-1] == num_stopped and stopped == sorted(stopped)
    np.testing.assert_array_equal(weights(simulation.variables(state)), start)


def test_a_federation_of_one_may_run_any_algorithm(task, variables):
    data = clients(0, (4, 2, 1))
    algorithm = scaffold(task, RATE, SCHEDULE, 1)
    store = ClientStore(jax.device_get(train_alone(algorithm).init_client(variables)), 3)
    simulation = make_local_simulation(
        algorithm, data, variables, SCHEDULE, num_rounds=3, mesh=make_mesh(), store=store,
        eval_every_rounds=0,
    )  # fmt: skip
    run_course(simulation.course, simulation.start())
    got = weights(store.rows()["server"]["variables"])
    # With one client its variate is the server's, and they cancel.
    expected = [descend(data, client, weights(variables), 3) for client in range(3)]
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_client_that_diverges_alone_is_told_and_keeps_its_last_model(algorithm, variables):
    data = clients(0, (4, 2, 3))
    data.examples["y"][4:6] = np.nan
    store = ClientStore(jax.device_get(train_alone(algorithm).init_client(variables)), 3)
    simulation = make_local_simulation(
        algorithm, data, variables, SCHEDULE, num_rounds=2, mesh=make_mesh(), store=store,
        eval_every_rounds=0,
    )  # fmt: skip
    server = run_course(simulation.course, simulation.start()).server
    assert [a.rejected for a in server.aggregations] == [(2,), (2,)]
    got = weights(store.rows()["server"]["variables"])
    expected = [descend(data, k, weights(variables), n) for k, n in ((0, 2), (1, 0), (2, 2))]
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_all_examples_in_one_place_are_plain_descent(algorithm, variables):
    data, test = clients(0, (3, 2, 1)), clients(1)
    simulation = make_global_simulation(
        algorithm, data, variables, SCHEDULE, num_rounds=3, mesh=make_mesh(), splits={"test": test}
    )
    state = run_course(simulation.course, simulation.start())
    whole = gather_clients(data.examples, [np.arange(6)])
    expected = descend(whole, 0, weights(variables), 3)
    np.testing.assert_allclose(weights(simulation.variables(state)), expected, atol=1e-6)
    pooled = gather_clients(test.examples, [np.arange(12)])
    found = state.server.evaluations[-1].metrics["test/loss"]
    assert found == pytest.approx(loss(pooled, 0, expected), rel=1e-5)


def test_a_metric_that_clients_do_not_have_is_told(algorithm, variables):
    with pytest.raises(ConfigError, match="'val/correct' is not among .*: val/loss"):
        make_local_simulation(
            algorithm, clients(0), variables, SCHEDULE, num_rounds=1, mesh=make_mesh(),
            early_stop=EarlyStop("val/correct"), splits={"val": clients(1)},
        )  # fmt: skip


def test_alone_nothing_is_told_of_clients_that_never_train(task):
    data = clients(0)
    simulation = make_local_simulation(
        fed_avg(task, optax.sgd(RATE), SCHEDULE), data, task.init(jax.random.key(0)),
        num_rounds=1, num_unseen=2, splits={"test": data},
        mesh=make_mesh(devices=jax.devices()[:1]),
    )  # fmt: skip
    state = run_course(simulation.course, simulation.start())
    names = {name.split("/")[0] for name in state.server.evaluations[-1].metrics}
    assert names == {"test"}
