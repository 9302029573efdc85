"""FedEM, against a slow form, and together with what may be combined with it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxlab.federated.algorithm import EvaluationInput
from jaxlab.federated.algorithms.entries import named
from jaxlab.federated.algorithms.fedem import fed_em, init_models
from jaxlab.federated.algorithms.personal import fine_tuned, keep_local
from jaxlab.federated.client_data import Schedule, gather_clients
from jaxlab.federated.learning import make_simulation
from jaxlab.federated.local import Limits
from jaxlab.federated.server_state import CourseConfig
from jaxlab.federated.simulation import run_course
from jaxlab.federated.store import ClientStore
from jaxlab.federated.strategy import ConfigError, Strategy
from jaxlab.federated.tasks import classification, regression
from jaxlab.parallel import make_mesh

RATE = 0.1


@pytest.fixture(scope="module")
def models(uneven):
    """The clients of `uneven` with two models that begin apart."""
    return uneven._replace(variables=init_models(uneven.task, jax.random.key(3), 2))


def kernels(variables):
    return np.asarray(variables["params"]["Dense_0"]["kernel"], np.float64)[..., 0]


def softmax(logits):
    grown = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return grown / grown.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("compat", [False, True])
def test_fedem_is_its_algorithm(models, in_twos, compat):
    """Per example; and per batch with equal weights, as the original does."""
    algorithm = fed_em(models.task, optax.sgd(RATE), in_twos, compat=compat)
    server, states = models.play(algorithm, 2)
    shares = np.array(models.sizes) / sum(models.sizes)
    w, pi = kernels(models.variables), np.full((3, 2), 0.5)
    for _ in range(2):
        ends = []
        for k, (x, y) in enumerate(zip(models.x, models.y, strict=True)):
            losses = (x @ w.T - y[:, None]) ** 2
            if compat:
                losses = losses.reshape(-1, 2, 2).mean(axis=1)
            q = softmax(np.log(pi[k]) - losses)
            pi[k] = q.mean(axis=0)
            own = w.copy()
            for first in range(0, len(y), 2):
                rows = slice(first, first + 2)
                weights = np.ones((2, 2)) if compat else q[rows]
                errors = weights * (x[rows] @ own.T - y[rows, None])
                own = own - RATE * 2 * errors.T @ x[rows] / 2
            ends.append(own)
        w = np.tensordot(shares, ends, 1)
    np.testing.assert_allclose(kernels(algorithm.variables(server)), w, atol=1e-6)
    np.testing.assert_allclose([s["mixture"] for s in states], pi, atol=1e-6)
    view = models.view(1)
    given = EvaluationInput(view, view, Limits(6, 6), jax.random.key(0))
    total, count = algorithm.evaluate(algorithm.evaluation(server), states[1], given)["loss"]
    mixed = np.mean((models.x[1] @ w.T @ pi[1] - models.y[1]) ** 2)
    assert count == 6 and float(total / count) == pytest.approx(mixed, rel=1e-5)


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        hidden = nn.relu(nn.Dense(4)(x))
        return nn.Dense(3)(hidden)


@pytest.fixture(scope="module")
def classified():
    return classification(Classifier(), jax.ShapeDtypeStruct((2,), jnp.float32))


def test_a_mixture_of_classifiers_is_that_of_their_probabilities(classified):
    models = init_models(classified, jax.random.key(0), 3)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 2)).astype(np.float32), np.array([0, 1, 2, 1, 0])
    batch, shares = {"x": x, "y": y}, np.array([0.2, 0.0, 0.8], np.float32)
    output = jax.jit(classified.mix)(models, shares, batch)
    mixed = 0.0
    for m, share in enumerate(shares):
        own = jax.tree.map(lambda leaf, m=m: np.asarray(leaf[m], np.float64), models["params"])
        hidden = np.maximum(x @ own["Dense_0"]["kernel"] + own["Dense_0"]["bias"], 0)
        mixed = mixed + share * softmax(hidden @ own["Dense_1"]["kernel"] + own["Dense_1"]["bias"])
    np.testing.assert_allclose(output.per_example, -np.log(mixed[np.arange(5), y]), rtol=1e-5)
    np.testing.assert_array_equal(output.scores["correct"], mixed.argmax(axis=1) == y)


class TwoLayers(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        hidden = nn.Dense(2, use_bias=False)(x)
        return nn.Dense(1, use_bias=False)(hidden)


def test_mixtures_with_local_heads_a_server_optimizer_and_tuning_are_one_course():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 2)).astype(np.float32)
    y = (x[:, 0] * np.repeat([1, -1], 20)).astype(np.float32)  # two kinds of clients
    data = gather_clients({"x": x, "y": y}, np.split(np.arange(40), 4))
    task = regression(TwoLayers(), jax.ShapeDtypeStruct((2,), jnp.float32))
    schedule = Schedule(5, 2, shuffle=False)
    mixture = fed_em(task, optax.sgd(0.1), schedule, server_tx=optax.adam(0.05))
    tuner = fed_em(task, optax.sgd(0.1), schedule)
    algorithm = keep_local(fine_tuned(mixture, tuner, schedule), named("Dense_1"))
    variables = init_models(task, jax.random.key(0), 2)
    store = ClientStore(jax.device_get(algorithm.init_client(variables)), 4)
    config = CourseConfig(4, 10, Strategy(cohort_size=4))
    simulation = make_simulation(
        config, algorithm, data, variables, schedule, splits={"train": data},
        mesh=make_mesh(devices=jax.devices()[:1]),
        store=store,
    )  # fmt: skip
    state = run_course(simulation.course, simulation.start())
    first, last = (state.server.evaluations[n].metrics for n in (0, -1))
    assert last["train/loss"] < 0.1 * first["train/loss"]
    assert last["train/loss"] < last["train/untuned/loss"]
    learned, start = simulation.variables(state)["params"], variables["params"]
    np.testing.assert_array_equal(learned["Dense_1"]["kernel"], start["Dense_1"]["kernel"])
    assert (learned["Dense_0"]["kernel"] != start["Dense_0"]["kernel"]).any()
    heads = store.rows()["local"]["params"]["Dense_1"]["kernel"]
    assert len({head.tobytes() for head in heads}) == 4
    np.testing.assert_allclose(store.rows()["state"]["mixture"].sum(axis=1), 1, rtol=1e-5)


def test_a_task_that_mixes_nothing_is_refused(uneven, in_twos):
    with pytest.raises(ConfigError, match="the task has no mix"):
        fed_em(uneven.task._replace(mix=None), optax.sgd(RATE), in_twos)
