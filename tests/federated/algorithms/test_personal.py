"""Models of clients' own: against slow forms, and what they turn into."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxlab.federated.algorithm import EvaluationInput
from jaxlab.federated.algorithms.ditto import ditto
from jaxlab.federated.algorithms.entries import entry_names, is_normalization, named, train_only
from jaxlab.federated.algorithms.fedrep import fed_rep
from jaxlab.federated.algorithms.personal import fine_tuned, keep_local, reinitialise
from jaxlab.federated.algorithms.pfedme import pfedme
from jaxlab.federated.algorithms.scaffold import scaffold
from jaxlab.federated.client_data import Schedule
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.labelled import regression
from jaxlab.federated.learning import make_simulation
from jaxlab.federated.local import Limits
from jaxlab.federated.server_state import CourseConfig
from jaxlab.federated.simulation import run_course
from jaxlab.federated.store import ClientStore
from jaxlab.federated.strategy import ConfigError, Strategy
from jaxlab.parallel import make_mesh

RATE = 0.1
IS_HEAD = named("Dense_1")


class TwoLayers(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        hidden = nn.Dense(2, use_bias=False)(x)
        return nn.Dense(1, use_bias=False)(hidden)


@pytest.fixture(scope="module")
def layered(uneven):
    """The clients of `uneven` with a body and a head."""
    task = regression(TwoLayers(), jax.ShapeDtypeStruct((2,), jnp.float32))
    return uneven._replace(task=task, variables=task.init(jax.random.key(2)))


def layers(variables):
    body, head = (variables["params"][f"Dense_{n}"]["kernel"] for n in range(2))
    return np.asarray(body, np.float64), np.asarray(head, np.float64)[:, 0]


def layer_gradients(problem, client, body, head, rows):
    x, y = problem.x[client][rows], problem.y[client][rows]
    slope = 2 * x.T @ (x @ body @ head - y) / len(x)
    return np.outer(slope, head), body.T @ slope


def batches(problem, client):
    return [slice(first, first + 2) for first in range(0, problem.sizes[client], 2)]


def evaluated(problem, algorithm, server, state, client):
    """Mean of every metric of a client over its own examples."""
    view = problem.view(client)
    given = EvaluationInput(view, view, Limits(max(problem.sizes), 6), jax.random.key(9))
    sums = jax.jit(lambda *args: algorithm.evaluate(*args, given))(
        algorithm.evaluation(server), state
    )
    return {name: float(total / count) for name, (total, count) in sums.items()}


def test_local_entries_are_never_sent_and_the_others_are_averaged(layered, in_twos):
    algorithm = keep_local(fed_avg(layered.task, optax.sgd(RATE), in_twos), IS_HEAD)
    server, states = layered.play(algorithm, 2)
    body, head = layers(layered.variables)
    heads, shares = [head.copy() for _ in range(3)], np.array([2, 6, 4]) / 12
    for _ in range(2):
        bodies = []
        for k in range(3):
            own = body.copy()
            for rows in batches(layered, k):
                g_body, g_head = layer_gradients(layered, k, own, heads[k], rows)
                own, heads[k] = own - RATE * g_body, heads[k] - RATE * g_head
            bodies.append(own)
        body = np.tensordot(shares, bodies, 1)
    got_body, got_head = layers(algorithm.variables(server))
    np.testing.assert_allclose(got_body, body, atol=1e-6)
    np.testing.assert_array_equal(got_head, np.asarray(head, np.float32))
    for k, state in enumerate(states):
        own = state["local"]["params"]["Dense_1"]["kernel"]
        np.testing.assert_allclose(own[:, 0], heads[k], atol=1e-6)
        loss = np.mean((layered.x[k] @ body @ heads[k] - layered.y[k]) ** 2)
        assert evaluated(layered, algorithm, server, state, k)["loss"] == pytest.approx(loss, 1e-5)
    assert entry_names(algorithm.broadcast(server)) == ["params/Dense_0/kernel"]


def test_a_course_keeps_local_entries_apart_in_the_store(layered, in_twos):
    algorithm = keep_local(fed_avg(layered.task, optax.sgd(RATE), in_twos), IS_HEAD)
    one_by_one, states = layered.play(algorithm, 2)
    store = ClientStore(jax.device_get(algorithm.init_client(layered.variables)), 3)
    config = CourseConfig(3, 2, Strategy(cohort_size=3), eval_every_rounds=0)
    simulation = make_simulation(
        config, algorithm, jax.device_get(layered.data), layered.variables, in_twos, store=store,
        mesh=make_mesh(devices=jax.devices()[:1]),
    )  # fmt: skip
    state = run_course(simulation.course, simulation.start())
    expected = layers(algorithm.variables(one_by_one))
    np.testing.assert_allclose(layers(simulation.variables(state))[0], expected[0], atol=1e-6)
    heads = [s["local"]["params"]["Dense_1"]["kernel"] for s in states]
    np.testing.assert_allclose(
        store.rows()["local"]["params"]["Dense_1"]["kernel"], heads, atol=1e-6
    )


def test_a_course_evaluates_what_clients_keep_before_they_train_on(layered, in_twos):
    algorithm = keep_local(fed_avg(layered.task, optax.sgd(RATE), in_twos), IS_HEAD)
    data = jax.device_get(layered.data)
    simulation = make_simulation(
        CourseConfig(3, 2, Strategy(cohort_size=3)), algorithm, data, layered.variables, in_twos,
        splits={"test": data}, mesh=make_mesh(devices=jax.devices()[:1]),
    )  # fmt: skip
    found = run_course(simulation.course, simulation.start()).server.evaluations
    for number, evaluation in enumerate(found, 1):
        server, states = layered.play(algorithm, number)
        losses = [
            evaluated(layered, algorithm, server, state, k)["loss"]
            for k, state in enumerate(states)
        ]
        mean = np.average(losses, weights=layered.sizes)
        assert evaluation.metrics["test/loss"] == pytest.approx(mean, rel=1e-5)
    assert len(found) == 2


def test_fedrep_trains_the_head_and_then_the_body(layered, in_twos):
    twice = Schedule(2, 2, shuffle=False)
    algorithm = fed_rep(layered.task, IS_HEAD, optax.sgd(0.2), twice, optax.sgd(RATE), in_twos)
    server, states = layered.play(algorithm, 1)
    body, start = layers(layered.variables)
    bodies = []
    for k in range(3):
        own, head = body.copy(), start.copy()
        for rows in 2 * batches(layered, k):
            head = head - 0.2 * layer_gradients(layered, k, own, head, rows)[1]
        np.testing.assert_allclose(
            states[k]["local"]["params"]["Dense_1"]["kernel"][:, 0], head, atol=1e-6
        )
        for rows in batches(layered, k):
            own = own - RATE * layer_gradients(layered, k, own, head, rows)[0]
        bodies.append(own)
    expected = np.tensordot(np.array([2, 6, 4]) / 12, bodies, 1)
    np.testing.assert_allclose(layers(algorithm.variables(server))[0], expected, atol=1e-6)


@pytest.mark.parametrize("strength", [0.0, 0.8])
def test_dittos_personal_model_is_held_near_the_received_one(uneven, in_twos, strength):
    """And at 0 it is trained alone, round after round."""
    algorithm = ditto(uneven.task, optax.sgd(RATE), in_twos, regularisation=strength)
    server, states = uneven.play(algorithm, 2)
    shares, w, own = np.array([2, 6, 4]) / 12, uneven.start, [uneven.start] * 3
    for _ in range(2):
        ends = []
        for k in range(3):
            y = w
            for rows in batches(uneven, k):
                step = uneven.gradient(k, own[k], rows) + strength * (own[k] - w)
                own[k] = own[k] - RATE * step
            for rows in batches(uneven, k):
                y = y - RATE * uneven.gradient(k, y, rows)
            ends.append(y)
        w = shares @ ends
    got = [s["personal"]["params"]["Dense_0"]["kernel"][:, 0] for s in states]
    np.testing.assert_allclose(got, own, atol=1e-6)
    metrics = evaluated(uneven, algorithm, server, states[1], 1)
    assert metrics["loss"] == pytest.approx(uneven.loss(1, own[1]), rel=1e-5)
    assert metrics["global/loss"] == pytest.approx(uneven.loss(1, w), rel=1e-5)


def test_ditto_sends_what_fedavg_sends(uneven, in_twos):
    tx = optax.sgd(RATE)
    own = ditto(uneven.task, tx, in_twos, personal_tx=optax.sgd(1.0))
    got, plain = (uneven.learned(a, 1) for a in (own, fed_avg(uneven.task, tx, in_twos)))
    np.testing.assert_allclose(got, plain, atol=1e-6)


def pfedme_round(problem, w, outer, num_inner, strength, own_rate, rate, num_epochs):
    """A round of every client, the epoch form with the loops of the original."""
    ends = []
    for k in range(3):
        shared, theta, own = w, w, batches(problem, k)
        if outer == "batch":
            for rows in num_epochs * own:
                theta = shared
                for _ in range(num_inner):
                    step = problem.gradient(k, theta, rows) + strength * (theta - shared)
                    theta = theta - own_rate * step
                shared = shared - strength * rate * (shared - theta)
        else:
            uses = 0
            for _ in range(num_epochs * num_inner):
                loader = iter(own)
                for _ in own:
                    if uses == 0:
                        rows = next(loader)
                    uses = (uses + 1) % num_inner
                    step = problem.gradient(k, theta, rows) + strength * (theta - shared)
                    theta = theta - own_rate * step
                shared = shared - strength * rate * (shared - theta)
        ends.append(shared)
    return np.array(ends)


@pytest.mark.parametrize("outer", ["batch", "epoch"])
def test_pfedme_is_its_algorithm_and_the_loops_of_the_original(uneven, outer):
    schedule = Schedule(2, 2, shuffle=False)
    algorithm = pfedme(
        uneven.task, optax.sgd(0.05), 0.5, schedule, num_inner_steps=2, regularisation=0.8,
        beta=0.7, outer=outer,
    )  # fmt: skip
    w, shares = uneven.start, np.array([2, 6, 4]) / 12
    ends = pfedme_round(uneven, w, outer, 2, 0.8, 0.05, 0.5, 2)
    expected = 0.3 * w + 0.7 * shares @ ends
    np.testing.assert_allclose(uneven.learned(algorithm, 1), expected, atol=1e-6)


def test_pfedme_with_one_inner_step_is_fedavg(uneven, in_twos):
    algorithm = pfedme(
        uneven.task, optax.sgd(RATE), 2.0, in_twos, num_inner_steps=1, regularisation=0.5
    )
    plain = fed_avg(uneven.task, optax.sgd(RATE), in_twos)
    got = uneven.learned(algorithm, 2)
    np.testing.assert_allclose(got, uneven.learned(plain, 2), atol=1e-6)


def test_pfedme_evaluates_theta_and_the_shared_model(even, full_batch):
    algorithm = pfedme(
        even.task, optax.sgd(0.05), 0.5, full_batch, num_inner_steps=3, regularisation=0.8
    )
    w = theta = even.start
    for _ in range(3):
        theta = theta - 0.05 * (even.gradient(0, theta) + 0.8 * (theta - w))
    metrics = evaluated(even, algorithm, algorithm.init_server(even.variables), {}, 0)
    assert metrics["loss"] == pytest.approx(even.loss(0, theta), rel=1e-5)
    assert metrics["global/loss"] == pytest.approx(even.loss(0, w), rel=1e-5)


def test_tuning_is_of_the_trained_entries_and_is_forgotten(layered, in_twos):
    plain = fed_avg(layered.task, optax.sgd(RATE), in_twos)
    steps = Schedule(6, 7, "step", shuffle=False)
    tuner = fed_avg(layered.task, train_only(optax.sgd(0.2), IS_HEAD), steps)
    algorithm = fine_tuned(plain, tuner, steps)
    server = algorithm.init_server(layered.variables)
    body, start = layers(layered.variables)
    head = start
    for _ in range(7):
        head = head - 0.2 * layer_gradients(layered, 1, body, head, slice(None))[1]
    losses = [np.mean((layered.x[1] @ body @ h - layered.y[1]) ** 2) for h in (head, start)]
    assert evaluated(layered, algorithm, server, {}, 1) == {
        "loss": pytest.approx(losses[0], rel=1e-5),
        "untuned/loss": pytest.approx(losses[1], rel=1e-5),
    }


def test_entries_are_drawn_anew_within_the_range_of_their_fan_in():
    tree = {"a": {"kernel": jnp.zeros((3, 3, 4, 50)), "bias": jnp.zeros(50)}, "b": jnp.zeros(2)}
    drawn = reinitialise(tree, named("a"), jax.random.key(0))
    kernel, bias = np.asarray(drawn["a"]["kernel"]), np.asarray(drawn["a"]["bias"])
    assert 0.16 < np.abs(kernel).max() <= 1 / 6 and 0.12 < np.abs(bias).max() <= 1 / 6
    assert not (drawn["b"] != 0).any()
    with pytest.raises(ConfigError, match="b has no kernel beside it"):
        reinitialise(tree, named("b"), jax.random.key(0))


@pytest.mark.parametrize(
    "form, pattern, meant",
    [
        ("part", "Dense_1", ["params/Dense_1/bias"]),
        ("substring", "Dense_1", ["params/Dense_1/bias", "params/Dense_10/bias"]),
        ("prefix", "params/Dense_1", ["params/Dense_1/bias"]),
        ("prefix", "Dense_1", []),
        ("regex", r"Dense_1\d/", ["params/Dense_10/bias"]),
    ],
)
def test_a_name_means_entries_by_its_form(form, pattern, meant):
    names = ["params/Dense_1/bias", "params/Dense_10/bias", "params/Conv_0/bias"]
    assert list(filter(named(pattern, form=form), names)) == meant


def test_normalisation_layers_are_known_by_their_names():
    names = ["batch_stats/BatchNorm_0/mean", "params/bn1/scale", "params/Block_0/LayerNorm_2/bias"]
    assert all(map(is_normalization, names))
    others = ["params/Dense_0/kernel", "params/subnet1/kernel", "params/BatchNormalizer/kernel"]
    assert not any(map(is_normalization, others))


def test_what_cannot_be_combined_is_told(uneven, in_twos):
    plain = fed_avg(uneven.task, optax.sgd(RATE), in_twos)
    for pattern in ("head", "Dense_0"):
        with pytest.raises(ConfigError, match="of 1 entries match.*params/Dense_0/kernel"):
            keep_local(plain, named(pattern)).init_client(uneven.variables)
    other = keep_local(scaffold(uneven.task, RATE, in_twos, 3), named("control"))
    with pytest.raises(ConfigError, match="only one whose update is the difference"):
        other.init_client(uneven.variables)
    with pytest.raises(ConfigError, match="form='glob'"):
        named("a*", form="glob")
    with pytest.raises(ConfigError, match="outer='round'"):
        pfedme(uneven.task, optax.sgd(0.1), 0.1, in_twos, outer="round")
    with pytest.raises(ConfigError, match="num_inner_steps=0"):
        pfedme(uneven.task, optax.sgd(0.1), 0.1, in_twos, num_inner_steps=0)
    with pytest.raises(ConfigError, match="regularisation=-1.0"):
        ditto(uneven.task, optax.sgd(0.1), in_twos, regularisation=-1.0)
