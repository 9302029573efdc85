"""Rankings against counting pairs, and through evaluations that cut examples up in other ways."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.federated.algorithm import EvaluationInput
from jaxlab.federated.algorithms.fedem import fed_em, init_models
from jaxlab.federated.client_data import Schedule, gather_clients, view_client
from jaxlab.federated.evaluation import make_server_evaluation
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.labelled import classification, multi_label
from jaxlab.federated.learning import make_simulation
from jaxlab.federated.local import Limits, evaluate_client
from jaxlab.federated.monitoring import Report, mean_metrics, metric_values
from jaxlab.federated.rankings import rank, rank_classes, rank_columns
from jaxlab.federated.server_state import CourseConfig
from jaxlab.federated.strategy import ConfigError, Strategy
from jaxlab.metrics import roc_auc
from jaxlab.parallel import make_mesh

RANKED = ("roc_auc", "average_precision")
SIZES = (7, 0, 12, 1, 5)
rank_jit, rank_classes_jit = jax.jit(rank), jax.jit(rank_classes)
FORM = jax.ShapeDtypeStruct((4,), jnp.float32)


class Linear(nn.Module):
    outputs: int = 3

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(self.outputs, use_bias=False)(x)


def count_pairs(scores, positive):
    """Chance that a positive example is above a negative one, ties being one half."""
    better = [(p > n) + 0.5 * (p == n) for p in scores[positive] for n in scores[~positive]]
    return np.mean(better)


def precision_of_every_hit(scores, positive):
    """Mean over positive examples of the precision of the threshold that just lets them in."""
    return np.mean([positive[scores >= s].mean() for s in scores[positive]])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([-2.0, -0.5, 0.0, 0.5, 3.0, np.inf, -np.inf]), st.booleans()),
        min_size=12, max_size=12,
    ),
    st.integers(0, 12),
)  # fmt: skip
def test_rankings_count_pairs_and_share_places(rows, num_kept):
    scores, positive = (np.array(column) for column in zip(*rows, strict=True))
    mask = np.arange(12) < num_kept
    found = rank_jit(scores.astype(np.float32), positive, mask)
    scores, positive = scores[mask], positive[mask]
    assert found.is_known == (0 < positive.sum() < len(positive))
    if found.is_known:
        np.testing.assert_allclose(found.roc_auc, count_pairs(scores, positive), rtol=1e-6)
        precision = precision_of_every_hit(scores, positive)
        np.testing.assert_allclose(found.average_precision, precision, rtol=1e-6)


def test_a_ranking_is_that_of_the_metrics_of_the_house_and_of_scikit_learn():
    scores, labels = np.array([0.1, 0.4, 0.35, 0.8], np.float32), np.array([0, 0, 1, 1])
    found = rank_jit(np.pad(scores, (0, 8)), np.pad(labels == 1, (0, 8)), np.arange(12) < 4)
    assert found.roc_auc == roc_auc(scores, labels) == 0.75
    np.testing.assert_allclose(found.average_precision, 0.8333333, rtol=1e-6)


def test_a_score_that_is_not_finite_is_told_if_it_counts():
    scores, positive = np.zeros(12, np.float32), np.arange(12) % 2 == 0
    scores[2] = np.nan
    assert rank_jit(scores, positive, np.arange(12) < 2).roc_auc == 0.5
    assert np.isnan(rank_jit(scores, positive, np.arange(12) < 3).roc_auc)


def test_classes_are_ranked_by_their_softmax_and_absent_ones_left_out():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(30, 4)), rng.integers(0, 3, 30)  # nothing of class 3
    found = rank_classes_jit(logits.astype(np.float32), labels, np.ones(30, bool))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for name, slow in (("roc_auc", count_pairs), ("average_precision", precision_of_every_hit)):
        expected = np.mean([slow(shares[:, k], labels == k) for k in range(3)])
        np.testing.assert_allclose(found[name], [expected, 1], rtol=1e-6)
    nothing = rank_classes_jit(logits.astype(np.float32), 0 * labels, np.ones(30, bool))
    np.testing.assert_array_equal(nothing["roc_auc"], [0, 0])


def test_of_two_classes_the_second_is_ranked_though_its_softmax_rounds_to_one():
    logits = np.array([[0, 40], [0, 50], [0, 60], [0, 30]], np.float32)
    found = rank_classes_jit(logits, np.array([1, 0, 1, 0]), np.ones(4, bool))
    np.testing.assert_allclose(found["average_precision"], [(1 + 2 / 3) / 2, 1], rtol=1e-6)
    np.testing.assert_allclose(found["roc_auc"], [3 / 4, 1], rtol=1e-6)


def test_a_label_that_is_not_known_is_left_out_of_its_column():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(20, 3)), rng.integers(0, 2, (20, 3)).astype(np.float32)
    labels[rng.random((20, 3)) < 0.3] = np.nan
    labels[:, 2] = np.where(np.isnan(labels[:, 2]), np.nan, 1)  # all yes: no ranking
    found = jax.jit(rank_columns)(logits.astype(np.float32), labels, np.ones(20, bool))
    for name, slow in (("roc_auc", count_pairs), ("average_precision", precision_of_every_hit)):
        known = [~np.isnan(labels[:, k]) for k in range(2)]
        each = [slow(logits[known[k], k], labels[known[k], k] == 1) for k in range(2)]
        np.testing.assert_allclose(found[name], [np.mean(each), 1], rtol=1e-6)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    ends = np.cumsum(SIZES)
    x = rng.normal(size=(ends[-1], 4)).round().astype(np.float32)  # with ties
    y = rng.integers(0, 3, ends[-1]).astype(np.int32)
    return gather_clients({"x": x, "y": y}, np.split(np.arange(ends[-1]), ends[:-1]))


@pytest.fixture(scope="module")
def task():
    return classification(Linear(), FORM, scores=("correct", *RANKED))


@pytest.fixture(scope="module")
def variables(task):
    return task.init(jax.random.key(0))


def slow_form(data, variables, rows):
    """AUC and average precision of some rows, in float64; None without a ranking."""
    kernel = np.asarray(variables["params"]["Dense_0"]["kernel"], np.float64)
    logits, labels = data.examples["x"][rows] @ kernel, data.examples["y"][rows]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    shares = shares.round(9)  # ties are ties
    classes = [k for k in range(3) if 0 < (labels == k).sum() < len(labels)]
    slow = (count_pairs, precision_of_every_hit)
    return [np.mean([f(shares[:, k], labels == k) for k in classes]) for f in slow]


def test_numbers_of_a_client_do_not_depend_on_batches(data, task, variables):
    view = view_client(jax.tree.map(jnp.asarray, data), jnp.int32(2), max(SIZES))
    sums = jax.jit(lambda v: evaluate_client(task, variables, v, 5))(view)
    for name, expected in zip(RANKED, slow_form(data, variables, np.arange(7, 19)), strict=True):
        np.testing.assert_allclose(sums[f"{name}@client"], [12 * expected, 12], rtol=1e-6)


def test_reports_do_not_depend_on_devices_and_width(data, task, variables):
    mesh = make_mesh(devices=jax.devices()[:4])
    schedule = Schedule(4)
    simulation = make_simulation(
        CourseConfig(5, 1, Strategy(cohort_size=2)), fed_avg(task, optax.sgd(0.1), schedule),
        data, variables, schedule, mesh=mesh, splits={"test": data}, width=2,
    )  # fmt: skip
    report = Report(("weighted_avg", "avg"))
    metrics = report("test", simulation.evaluate(simulation.start())["test"])
    rows = np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])
    ranked = [i for i, size in enumerate(SIZES) if size > 1]
    each = np.array([slow_form(data, variables, rows[i]) for i in ranked])
    weights = np.array([SIZES[i] for i in ranked])
    for place, name in enumerate(RANKED):
        mean = np.average(each[:, place], weights=weights)
        np.testing.assert_allclose(metrics[f"test/{name}"], mean, rtol=1e-6)
        np.testing.assert_allclose(metrics[f"test/avg/{name}"], each[:, place].mean(), rtol=1e-6)


def test_a_mixture_of_models_is_ranked(data, task):
    variables = init_models(task, jax.random.key(1), 2)
    algorithm = fed_em(task, optax.sgd(0.1), Schedule(4))
    view = view_client(jax.tree.map(jnp.asarray, data), jnp.int32(2), max(SIZES))
    given = EvaluationInput(view, view, Limits(12, 1), jax.random.key(0))
    state = {"mixture": jnp.array([1.0, 0.0])}
    first = jax.tree.map(lambda leaf: leaf[0], variables)
    sums = jax.jit(algorithm.evaluate)(variables, state, given)
    expected = slow_form(data, first, np.arange(7, 19))[0]
    np.testing.assert_allclose(sums["roc_auc@client"], [12 * expected, 12], rtol=1e-6)


def test_questions_are_scored_over_the_answers_that_are_known():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(11, 4)).astype(np.float32), rng.integers(0, 2, (11, 3)) * 1.0
    y[rng.random((11, 3)) < 0.3] = np.nan
    y = y.astype(np.float32)
    y[4] = np.nan
    data = gather_clients({"x": x, "y": y}, [np.arange(11)])
    task = multi_label(Linear(), FORM, scores=("correct", "f1", *RANKED))
    variables = task.init(jax.random.key(0))
    view = view_client(jax.tree.map(jnp.asarray, data), jnp.int32(0))
    sums = jax.device_get(jax.jit(lambda v: evaluate_client(task, variables, v, 4))(view))
    found = {name: float(metric.values) for name, metric in metric_values(sums).items()}
    logits = x.astype(np.float64) @ np.asarray(variables["params"]["Dense_0"]["kernel"])
    known, said = ~np.isnan(y), logits > 0
    entropy = np.log1p(np.exp(np.where(y == 1, -logits, logits)))
    losses = [entropy[i][known[i]].mean() if known[i].any() else 0 for i in range(11)]
    columns = [(logits[known[:, k], k], said[known[:, k], k], y[known[:, k], k]) for k in range(3)]
    f1 = [2 * (s & (so == 1)).sum() / (s.sum() + (so == 1).sum()) for _, s, so in columns]
    expected = {
        "loss": np.mean(losses),
        "correct": np.mean([(s == (so == 1)).mean() for _, s, so in columns]),
        "f1": np.mean(f1),
        "roc_auc": np.mean([count_pairs(z, so == 1) for z, _, so in columns]),
        "average_precision": np.mean([precision_of_every_hit(z, so == 1) for z, _, so in columns]),
    }
    assert found == pytest.approx(expected, rel=1e-5)
    metrics = mean_metrics("test", {name: pair[None] for name, pair in sums.items()})
    assert metrics["test/correct"] == pytest.approx(expected["correct"])
    batch = {"x": jnp.asarray(x), "y": jnp.asarray(y)}
    grads = jax.grad(lambda v: task.loss(v, batch, jax.random.key(0), False).per_example.sum())(
        variables
    )
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    with pytest.raises(ConfigError, match="'hits@1' is not one of correct, f1, roc_auc, average_"):
        multi_label(Linear(), FORM, scores=("hits@1",))


def test_a_mixture_of_answers_is_that_of_their_probabilities():
    task = multi_label(Linear(2), FORM)
    variables = init_models(task, jax.random.key(1), 2)
    batch = {"x": jnp.ones((1, 4)), "y": jnp.array([[1.0, 1.0]])}
    shares = jnp.array([0.3, 0.7])
    mixed = jax.jit(task.mix)(variables, shares, batch)
    kernels = np.asarray(variables["params"]["Dense_0"]["kernel"], np.float64)
    yes = (np.array(shares)[:, None] / (1 + np.exp(-kernels.sum(axis=1)))).sum(axis=0)
    np.testing.assert_allclose(mixed.per_example, [-np.log(yes).mean()], rtol=1e-5)


def test_the_server_ranks_with_any_number_of_devices(data, task, variables):
    algorithm = fed_avg(task, optax.sgd(0.1), Schedule(4))
    expected = slow_form(data, variables, np.arange(sum(SIZES)))[0]
    mesh = make_mesh(devices=jax.devices()[:3])
    evaluate = make_server_evaluation(algorithm, variables, {"all": data}, mesh, batch_size=4)
    sums = evaluate(variables, jax.random.key(0))["all"]
    np.testing.assert_allclose(sums["roc_auc@client"], [[25 * expected, 25]], rtol=1e-6)
