"""What the server makes of what comes over the wire."""

import inspect

import jax
import numpy as np
import optax
import pytest

from jaxlab import federated
from jaxlab.federated.aggregators import weighted_mean
from jaxlab.federated.deployment.agreement import Agreement, find_forms, own_data
from jaxlab.federated.deployment.learner import (
    check_answer,
    combine,
    make_learner,
    merge_sums,
    name_on_host,
)
from jaxlab.federated.learning import mean_metrics
from jaxlab.federated.messages import INFO, METRICS, MODEL, SERVER, Message
from jaxlab.federated.strategy import ConfigError
from jaxlab.federated.wire import pack, restore_leaves, unpack


def row(*numbers):
    return {"w": np.asarray(numbers, np.float32)}


def test_the_mean_of_late_updates_is_that_of_the_simulation():
    """n = (10, 30), staleness (0, 2), exponent 0.5: the example of the original's aggregator."""
    mean = weighted_mean(staleness_exponent=0.5)
    trees, staleness = [row(1, -1), row(0.5, 0.5)], np.array([0, 2])
    got = combine(trees, np.array([10.0, 30.0]), staleness, mean)
    np.testing.assert_allclose(got["w"], [0.46650635, -0.03349365], rtol=1e-6)


def test_updates_without_weight_do_not_count():
    mean = weighted_mean()
    got = combine([row(1), None, row(3)], np.array([1.0, 0.0, 1.0]), np.zeros(3, int), mean)
    np.testing.assert_allclose(got["w"], [2.0])
    assert combine([None], np.zeros(1), np.zeros(1, int), mean) is None


def test_a_rule_sees_all_updates_that_count():
    trees = [row(1), row(2), row(300), None]
    weights, staleness = np.array([1.0, 1.0, 1.0, 0.0]), np.zeros(4, int)
    assert combine(trees, weights, staleness, federated.median())["w"] == 2.0
    assert combine(trees, weights, staleness, federated.krum(2)) is None


def test_sums_of_clients_become_metrics():
    def sums(loss, count):
        return {"loss": np.array([loss, count], np.float32)}

    answers = {
        1: {"sums": {"test": sums(2.0, 4), "val": sums(1.0, 1)}},
        2: {"sums": {"test": sums(6.0, 4)}},
        3: {"sums": {"test": sums(5.0, 1)}},
    }
    merged = merge_sums(answers, 2, mean_metrics)
    assert merged == {"test/loss": 1.0, "test_unseen/loss": 5.0, "val/loss": 1.0}
    assert merge_sums({}, 2, mean_metrics) == {}


@pytest.mark.parametrize(
    ("kind", "content", "problem"),
    [
        (MODEL, None, "an update holds NoneType"),
        (MODEL, {"update": {}, "weight": 1.0}, "is missing"),
        (MODEL, {"update": 5, "weight": 1.0}, "the update: got a int"),
        (METRICS, {"sums": {"test": 3}}, "the sums over 'test' are a int"),
        (METRICS, {"sums": {"test": {"loss": np.zeros(3)}}}, "test/loss is no pair"),
        (METRICS, {}, "an answer to an evaluation holds"),
        (INFO, [1], "what a client tells when it joins holds list"),
        (INFO, {"num_sample": "many"}, "wanted numbers"),
    ],
)
def test_answers_of_another_form_are_refused(world, kind, content, problem):
    algorithm = federated.fed_avg(world.task, optax.sgd(0.1), world.schedule)
    forms = find_forms(world.agreement(algorithm))
    with pytest.raises(ValueError, match=problem):
        check_answer(Message(kind, 1, (SERVER,), content), forms, ("num_sample",))


MAKERS = {
    "fed_avg": lambda w: federated.fed_avg(w.task, optax.sgd(0.1), w.schedule),
    "fed_adam": lambda w: federated.fed_avg(
        w.task, optax.sgd(0.1), w.schedule, server_tx=federated.fed_adam(0.1)
    ),
    "scaffold": lambda w: federated.scaffold(w.task, 0.1, w.schedule, 3),
    "fed_nova": lambda w: federated.fed_nova(w.task, 0.1, w.schedule),
    "fed_dyn": lambda w: federated.fed_dyn(w.task, optax.sgd(0.1), w.schedule, 3, alpha=0.1),
    "mime": lambda w: federated.mime(w.task, optax.sgd(0.1, 0.9), w.schedule),
    "q_fed_avg": lambda w: federated.q_fed_avg(w.task, 0.1, w.schedule, 1.0),
    "ditto": lambda w: federated.ditto(w.task, optax.sgd(0.1), w.schedule),
    "pfedme": lambda w: federated.pfedme(w.task, optax.sgd(0.1), 0.1, w.schedule),
    "fed_em": lambda w: federated.fed_em(w.task, optax.sgd(0.1), w.schedule),
    "swa": lambda w: federated.stochastic_averaging(
        federated.fed_avg(w.task, optax.sgd(0.1), w.schedule), 10, start_round=1
    ),
}


@pytest.mark.parametrize("name", MAKERS)
def test_what_every_algorithm_exchanges_crosses_the_wire(world, name):
    """Server, broadcast and client state as they are have the forms that were foreseen."""
    agreement = world.agreement(MAKERS[name](world))
    if name == "fed_em":
        models = federated.init_models(world.task, jax.random.key(0), 2)
        agreement = agreement._replace(variables=models)
    algorithm, forms = agreement.algorithm, find_forms(agreement)
    server = algorithm.init_server(agreement.variables)
    for tree, form in (
        (server, forms.server),
        (algorithm.broadcast(server), forms.broadcast),
        (algorithm.evaluation(server), forms.evaluation),
        (algorithm.init_client(agreement.variables), forms.client),
    ):
        restored = restore_leaves(unpack(pack(name_on_host(tree))), form)
        assert jax.tree.structure(restored) == jax.tree.structure(tree)
        for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(tree), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_examples_of_another_form_are_refused(world):
    agreement = world.agreement(federated.fed_avg(world.task, optax.sgd(0.1), world.schedule))
    with pytest.raises(ConfigError, match=r"train examples .*'y' is missing; 'x' holds float32\[2"):
        own_data({"x": np.zeros((4, 2), np.float32)}, agreement, "train")
    with pytest.raises(ConfigError, match="'z' is unknown"):
        own_data({**world.train[0], "z": np.zeros(8)}, agreement, "train")


def test_a_node_without_examples_has_none(world):
    agreement = world.agreement(federated.fed_avg(world.task, optax.sgd(0.1), world.schedule))
    empty = {name: values[:0] for name, values in world.train[0].items()}
    assert own_data(empty, agreement, "train").sizes.tolist() == [0]


@pytest.mark.parametrize(
    ("rule", "told"),
    [(federated.median, r"must be called"), (federated.krum(3), "nothing would ever be learned")],
    ids=["not called", "too few"],
)
def test_a_rule_that_cannot_work_is_told_before_anybody_joins(rule, told):
    algorithm = federated.fed_avg(
        federated.Task(lambda key: {"params": row(0)}, None), optax.sgd(0.1), federated.Schedule(1)
    )
    agreement = Agreement(
        federated.CourseConfig(2, 1, answer_timeout_s=1.0), algorithm, {"params": row(0)},
        federated.Schedule(1), {"x": jax.ShapeDtypeStruct((1,), np.float32)},
    )  # fmt: skip
    learner = inspect.unwrap(make_learner)  # whose types only tests look at
    with pytest.raises(ConfigError, match=told):
        learner(agreement, aggregator=rule)
