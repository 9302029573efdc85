"""SCAFFOLD, FedNova, q-FedAvg, MimeLite and FedDyn, against slow forms and what they turn into."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab.federated.algorithms.feddyn import fed_dyn
from jaxlab.federated.algorithms.fednova import count_gradients, fed_nova
from jaxlab.federated.algorithms.mime import mime, mime_lite
from jaxlab.federated.algorithms.qfedavg import q_fed_avg
from jaxlab.federated.algorithms.scaffold import scaffold
from jaxlab.federated.client_data import Schedule
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.learning import make_simulation
from jaxlab.federated.server_state import CourseConfig
from jaxlab.federated.simulation import run_course
from jaxlab.federated.store import ClientStore
from jaxlab.federated.strategy import ConfigError, Strategy
from jaxlab.parallel import make_mesh

RATE = 0.1


def batches(problem, client):
    """Batches of two."""
    return [slice(first, first + 2) for first in range(0, problem.sizes[client], 2)]


def descend(problem, client, start, change=lambda gradient, w: gradient):
    """One epoch of plain steps."""
    w = start.copy()
    for rows in batches(problem, client):
        w -= RATE * change(problem.gradient(client, w, rows), w)
    return w


def test_scaffold_is_its_algorithm_with_some_clients_in_a_round(uneven, in_twos):
    cohorts = [(0, 1), (1, 2), (0, 2)]
    algorithm = scaffold(uneven.task, RATE, in_twos, 3, server_rate=0.7)
    server, states = uneven.play(algorithm, cohorts=cohorts)
    w, c, c_i = uneven.start, np.zeros(2), np.zeros((3, 2))
    for cohort in cohorts:
        deltas, changes = [], []
        for k in cohort:
            y = descend(uneven, k, w, lambda g, _, k=k, c=c: g - c_i[k] + c)
            new = c_i[k] - c + (w - y) / (len(batches(uneven, k)) * RATE)
            deltas.append(y - w)
            changes.append(new - c_i[k])
            c_i[k] = new
        w, c = w + 0.7 * np.mean(deltas, axis=0), c + 2 / 3 * np.mean(changes, axis=0)
    got = [np.asarray(s["control"]["Dense_0"]["kernel"])[:, 0] for s in states]
    np.testing.assert_allclose(algorithm_weights(algorithm, server), w, atol=1e-6)
    np.testing.assert_allclose(got, c_i, atol=1e-5)
    np.testing.assert_allclose(np.mean(got, axis=0), c, atol=1e-5)
    np.testing.assert_allclose(np.asarray(server["control"]["Dense_0"]["kernel"])[:, 0], c, 1e-5)


def test_the_variate_of_the_server_stays_the_mean_over_all_clients_in_a_course(uneven, in_twos):
    algorithm = scaffold(uneven.task, RATE, in_twos, 3)
    store = ClientStore(jax.device_get(algorithm.init_client(uneven.variables)), 3)
    config = CourseConfig(3, 3, Strategy(cohort_size=2), eval_every_rounds=0)
    simulation = make_simulation(
        config, algorithm, jax.device_get(uneven.data), uneven.variables, in_twos, store=store,
        mesh=make_mesh(devices=jax.devices()[:1]),
    )  # fmt: skip
    server = run_course(simulation.course, simulation.start()).server
    kept = store.rows()["control"]["Dense_0"]["kernel"]
    assert np.abs(kept).min() > 1e-3  # everybody took part
    got = server.model["control"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(got, kept.mean(axis=0), atol=1e-6)


def algorithm_weights(algorithm, server):
    return np.asarray(algorithm.variables(server)["params"]["Dense_0"]["kernel"])[:, 0]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fednova_takes_means_of_steps(uneven, in_twos, momentum):
    got = uneven.learned(fed_nova(uneven.task, RATE, in_twos, momentum=momentum), 2)
    w, p = uneven.start, np.array(uneven.sizes) / sum(uneven.sizes)
    for _ in range(2):
        deltas, counts = [], []
        for k in range(3):
            y, velocity, counter, count = w.copy(), np.zeros(2), 0.0, 0.0
            for rows in batches(uneven, k):
                velocity = momentum * velocity + uneven.gradient(k, y, rows)
                y -= RATE * velocity
                counter = momentum * counter + 1  # the recursion of the authors' code
                count += counter
            deltas.append(y - w)
            counts.append(count)
        steps = np.array(counts)
        w = w + (p @ steps) * (p / steps) @ np.array(deltas)
    np.testing.assert_allclose(got, w, atol=1e-6)


def test_what_gradients_count_for_is_the_number_of_steps_without_momentum():
    assert [float(count_gradients(jnp.int32(n), 0.0)) for n in (0, 1, 5)] == [0, 1, 5]


@pytest.mark.parametrize("q", [0.5, 2.0])
def test_q_fedavg_is_its_algorithm(uneven, in_twos, q):
    got = uneven.learned(q_fed_avg(uneven.task, RATE, in_twos, q), 2)
    w = uneven.start
    for _ in range(2):
        above, below = np.zeros(2), 0.0
        for k in range(3):
            loss, step = uneven.loss(k, w), (descend(uneven, k, w) - w) / RATE
            above += loss**q * step
            below += q * loss ** (q - 1) * step @ step + loss**q / RATE
        w = w + above / below
    np.testing.assert_allclose(got, w, atol=1e-6)


def test_mime_lite_moves_the_state_of_the_optimizer_by_whole_gradients(uneven, in_twos):
    tx = optax.sgd(RATE, momentum=0.9)
    got = uneven.learned(mime_lite(uneven.task, tx, in_twos, server_rate=0.8), 3)
    w, m, p = uneven.start, np.zeros(2), np.array(uneven.sizes) / sum(uneven.sizes)
    for _ in range(3):
        ends = [descend(uneven, k, w, lambda g, _, m=m: g + 0.9 * m) for k in range(3)]
        m = p @ [uneven.gradient(k, w) for k in range(3)] + 0.9 * m
        w = w + 0.8 * (p @ np.array(ends) - w)
    np.testing.assert_allclose(got, w, atol=1e-6)


def test_mime_corrects_gradients_by_those_at_the_received_model(uneven, in_twos):
    tx = optax.sgd(RATE, momentum=0.9)
    cohorts = [(0, 1), (1, 2), (0, 2), (0, 1)]  # gradients, training, gradients, training
    got = uneven.learned(mime(uneven.task, tx, in_twos, server_rate=0.8), 4, cohorts)
    w, m, sizes = uneven.start, np.zeros(2), np.array(uneven.sizes)
    for asked, trained in (cohorts[:2], cohorts[2:]):
        c = np.average([uneven.gradient(k, w) for k in asked], 0, sizes[list(asked)])
        ends = []
        for k in trained:
            y = w.copy()
            for rows in batches(uneven, k):
                g = uneven.gradient(k, y, rows) - uneven.gradient(k, w, rows) + c
                y -= RATE * (g + 0.9 * m)
            ends.append(y)
        m = c + 0.9 * m
        w = w + 0.8 * (np.average(ends, 0, sizes[list(trained)]) - w)
    np.testing.assert_allclose(got, w, atol=1e-6)


def test_feddyn_is_its_algorithm_with_some_clients_in_a_round(uneven, in_twos):
    alpha, cohorts = 0.5, [(0, 1), (1, 2), (0, 2)]
    algorithm = fed_dyn(uneven.task, optax.sgd(RATE), in_twos, 3, alpha=alpha)
    got = uneven.learned(algorithm, cohorts=cohorts)
    w, h, kept = uneven.start, np.zeros(2), np.zeros((3, 2))
    for cohort in cohorts:
        ends = []
        for k in cohort:

            def tilted(g, v, k=k, w=w):
                return g - kept[k] + alpha * (v - w)

            ends.append(descend(uneven, k, w, tilted))
            kept[k] -= alpha * (ends[-1] - w)
        h = h - alpha * np.sum(np.array(ends) - w, axis=0) / 3
        w = np.mean(ends, axis=0) - h / alpha
    np.testing.assert_allclose(got, w, atol=1e-5)


def test_feddyn_ends_where_the_mean_loss_is_least_and_fedavg_does_not(even):
    schedule = Schedule(4, 6, "step", shuffle=False)
    algorithm = fed_dyn(even.task, optax.sgd(RATE), schedule, 3, alpha=1.0)
    x, y = np.concatenate(even.x), np.concatenate(even.y)
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose(even.learned(algorithm, 40), best, atol=1e-3)
    plain = even.learned(fed_avg(even.task, optax.sgd(RATE), schedule), 40)
    assert np.abs(plain - best).max() > 1e-2


@pytest.mark.parametrize(
    "make",
    [
        lambda task, schedule: scaffold(task, RATE, schedule, 3),
        lambda task, schedule: fed_nova(task, RATE, schedule),
        lambda task, schedule: q_fed_avg(task, RATE, schedule, 0.0),
        lambda task, schedule: mime_lite(task, optax.sgd(RATE), schedule, weighting="clients"),
    ],
    ids=["scaffold", "fednova", "q", "mime"],
)
def test_the_neutral_form_is_the_plain_mean(even, uneven, full_batch, request, make):
    nova = "fednova" in request.node.name  # weighted, so that clients must have as many examples
    problem = even if nova else uneven
    plain = fed_avg(problem.task, optax.sgd(RATE), full_batch, weighting="clients")
    # One round: the variates of SCAFFOLD are zero in the first only.
    got = problem.learned(make(problem.task, full_batch), 1)
    np.testing.assert_allclose(got, problem.learned(plain, 1), atol=1e-6)


def test_feddyn_with_a_vanishing_penalty_moves_like_the_sum_of_clients(uneven, full_batch):
    """Its server adds the missing mean of what it keeps: with everybody there, twice the mean."""
    algorithm = fed_dyn(uneven.task, optax.sgd(RATE), full_batch, 3, alpha=1e-3)
    plain = fed_avg(uneven.task, optax.sgd(RATE), full_batch, weighting="clients")
    moved = [uneven.learned(a, 1) - uneven.start for a in (algorithm, plain)]
    np.testing.assert_allclose(moved[0], 2 * moved[1], atol=1e-6)


@pytest.mark.parametrize(
    "make, wrong",
    [
        (lambda t, s: scaffold(t, 0.0, s, 3), "learning_rate=0.0"),
        (lambda t, s: fed_nova(t, 0.1, s, momentum=1.0), "momentum=1.0"),
        (lambda t, s: q_fed_avg(t, 0.1, s, -1.0), "q=-1.0"),
        (lambda t, s: fed_dyn(t, optax.sgd(0.1), s, 3, alpha=0.0), "alpha=0.0"),
        (lambda t, s: fed_avg(t, optax.sgd(0.1), s, weighting="all"), "weighting='all'"),
    ],
)
def test_numbers_out_of_range_are_told(even, full_batch, make, wrong):
    with pytest.raises(ConfigError, match=wrong):
        make(even.task, full_batch)
