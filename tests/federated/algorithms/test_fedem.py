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
from jaxlab.federated.labelled import classification, regression
from jaxlab.federated.local import Limits
from jaxlab.federated.strategy import ConfigError

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
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(classified.init, jax.random.key(0))
    models = jax.tree.map(lambda leaf: rng.normal(size=(3, *leaf.shape)).astype("f"), shapes)
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


def test_mixtures_local_heads_a_server_optimizer_and_tuning_go_together(uneven, in_twos):
    task = regression(TwoLayers(), jax.ShapeDtypeStruct((2,), jnp.float32))
    variables = init_models(task, jax.random.key(0), 2)
    problem = uneven._replace(task=task, variables=variables)
    mixture = fed_em(task, optax.sgd(RATE), in_twos, server_tx=optax.adam(0.05))
    tuner = fed_em(task, optax.sgd(RATE), in_twos)
    algorithm = keep_local(fine_tuned(mixture, tuner, in_twos), named("Dense_1"))
    server, states = problem.play(algorithm, 4)
    given = EvaluationInput(problem.view(1), problem.view(1), Limits(6, 6), jax.random.key(0))
    evaluate = jax.jit(lambda *args: algorithm.evaluate(*args, given))
    sums = evaluate(algorithm.evaluation(server), states[1])
    assert sums["loss"][1] == sums["untuned/loss"][1] == 6
    assert sums["loss"][0] < sums["untuned/loss"][0]
    learned, start = algorithm.variables(server)["params"], variables["params"]
    np.testing.assert_array_equal(learned["Dense_1"]["kernel"], start["Dense_1"]["kernel"])
    # Adam has moved all numbers of the bodies, by about its rate a round.
    moved = np.abs(learned["Dense_0"]["kernel"] - start["Dense_0"]["kernel"])
    assert (moved > 0).all() and moved.max() < 4 * 0.06
    heads = [np.asarray(state["local"]["params"]["Dense_1"]["kernel"]) for state in states]
    assert len({head.tobytes() for head in heads}) == 3
    np.testing.assert_allclose([s["state"]["mixture"].sum() for s in states], 1, rtol=1e-5)


def test_a_task_that_mixes_nothing_is_refused(uneven, in_twos):
    with pytest.raises(ConfigError, match="the task has no mix"):
        fed_em(uneven.task._replace(mix=None), optax.sgd(RATE), in_twos)
