"""Whole courses that learn: to the right model, whatever clients do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxlab.federated.aggregators import LinearAggregator
from jaxlab.federated.algorithms.mime import mime
from jaxlab.federated.client_data import Schedule, gather_clients
from jaxlab.federated.datasets import make_quadratics
from jaxlab.federated.devices import Device
from jaxlab.federated.evaluation import merge_clients
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.labelled import regression
from jaxlab.federated.learning import make_simulation
from jaxlab.federated.messages import MODEL
from jaxlab.federated.monitoring import Report
from jaxlab.federated.robust import bulyan, krum, median
from jaxlab.federated.server_state import CourseConfig, TooManyFailuresError
from jaxlab.federated.simulation import run_course
from jaxlab.federated.stopping import EarlyStop, best_evaluation
from jaxlab.federated.strategy import ConfigError, Strategy
from jaxlab.federated.tasks import LossOutput, Task
from jaxlab.parallel import make_mesh

NUM_CLIENTS, DIM = 20, 3
SIZES = [8] * 18 + [0, 0]  # of most tests, which then share a compiled program
TRUTH = np.array([1.0, -2.0, 0.5])
SCHEDULE = Schedule(8, 1)
SYNCHRONOUS = Strategy(cohort_size=6)
FEDBUFF = Strategy(
    kind="goal_achieved", cohort_size=6, min_updates=3, max_staleness=10, staleness_exponent=0.5,
    broadcast="after_receiving",
)  # fmt: skip
DEVICES = [Device(float(n)) for n in range(1, NUM_CLIENTS + 1)]


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(1, use_bias=False)(x)


def clients(sizes, broken=()):
    """Clients whose examples all follow one line, but for broken ones, whose are not finite."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(sum(sizes), DIM)).astype(np.float32)
    y = (x @ TRUTH).astype(np.float32)
    rows = np.split(np.arange(len(x)), np.cumsum(sizes)[:-1])
    for client in broken:
        y[rows[client - 1]] = np.nan
    return gather_clients({"x": x, "y": y}, rows)


@pytest.fixture(scope="module")
def task():
    return regression(Linear(), jax.ShapeDtypeStruct((DIM,), jnp.float32))


@pytest.fixture(scope="module")
def algorithm(task):
    return fed_avg(task, optax.sgd(0.1), SCHEDULE)


@pytest.fixture(scope="module")
def variables(task):
    return task.init(jax.random.key(0))


@pytest.fixture
def learn(algorithm, variables):
    """Runs a course; gives the learned weights, the server's state and the report."""

    def learn(strategy, data, num_rounds=40, change_client=lambda role: role, **options):
        names = ("num_unseen", "eval_every_rounds", "max_rejected_share")
        config = CourseConfig(
            NUM_CLIENTS, num_rounds, strategy,
            **{name: options.pop(name) for name in names if name in options},
        )  # fmt: skip
        options.setdefault("devices", DEVICES)
        mesh = make_mesh()  # cohorts of all sizes are one program
        simulation = make_simulation(
            config, algorithm, data, variables, SCHEDULE, mesh=mesh, **options
        )
        course = simulation.course._replace(client=change_client(simulation.course.client))
        state = run_course(course, simulation.start())
        weights = simulation.variables(state)["params"]["Dense_0"]["kernel"][:, 0]
        return np.asarray(weights), state.server, simulation.report(state)

    return learn


def repeated(role):
    """Every message arrives twice, and once more much later."""
    once = role.rules[MODEL]

    def thrice(state, message):
        state, sent = once.handler(state, message)
        late = [dataclasses.replace(m, time_us=m.time_us + 77_777) for m in sent]
        return state, [*sent, *sent, *late]

    return role.on(MODEL, thrice, once.may_send)


@pytest.mark.parametrize("strategy", [SYNCHRONOUS, FEDBUFF], ids=lambda s: s.kind)
def test_a_course_of_broken_clients_ends_with_the_right_model_and_says_what_it_saw(learn, strategy):
    """10 % send NaN, 30 % of all answers are lost, others come thrice, two clients have nothing."""
    rng = np.random.default_rng(5)
    weights, server, report = learn(
        strategy, clients(SIZES, broken=(3, 11)), num_rounds=60, change_client=repeated,
        fails=lambda client, number: rng.uniform() < 0.3,
    )  # fmt: skip
    np.testing.assert_allclose(weights, TRUTH, atol=1e-3)
    assert server.finished and report["rounds"] == 60
    asked = {client for a in server.aggregations for client in a.fresh}
    assert not asked & {19, 20} and report["excluded_clients"] == 2
    assert {client for a in server.aggregations for client in a.rejected} == {3, 11}
    for seen in ("rejected_updates", "failed_clients", "duplicate_updates"):
        assert report[seen] > 0, seen
    received = sum(len(a.fresh) + len(a.stale) for a in server.aggregations)
    assert report["local_steps"] >= received and 0 <= report["padding_waste"] < 1


def test_clients_that_are_of_no_use_might_as_well_not_be_there(learn):
    """10 % send NaN, 30 % drop out, all messages come thrice: the model is that of the others."""
    data, num_rounds = clients([8] * NUM_CLIENTS, broken=(3, 11)), 5
    data.examples["y"] += np.repeat(np.arange(NUM_CLIENTS), 8).astype(np.float32)  # all differ
    gone = {2, 5, 8, 14, 17, 20}
    everybody = Strategy(cohort_size=NUM_CLIENTS)
    weights, server, report = learn(
        everybody, data, num_rounds, change_client=repeated, eval_every_rounds=0,
        fails=lambda client, number: client in gone,
    )  # fmt: skip
    useless = np.isin(np.arange(1, NUM_CLIENTS + 1), [3, 11, *gone])
    others = data.replace(sizes=np.where(useless, 0, data.sizes))
    alone, plain, quiet = learn(Strategy(cohort_size=12), others, num_rounds, eval_every_rounds=0)
    np.testing.assert_allclose(weights, alone, rtol=1e-6)
    assert np.abs(weights - TRUTH).max() > 0.01  # far from where any course would end
    assert {a.rejected for a in server.aggregations} == {(3, 11)}
    assert report["rejected_updates"] == 2 * num_rounds
    assert report["failed_clients"] == 6 * num_rounds
    # Twice at once and once later, which after the last round nobody waits for.
    assert 20 * num_rounds <= report["duplicate_updates"] <= 2 * 20 * num_rounds
    assert plain.counts == {} and quiet["excluded_clients"] == 8


def test_a_median_learns_the_truth_from_a_majority_of_honest_clients(learn):
    data = clients(SIZES)
    for client in (2, 5):  # two say the opposite, loudly: a third of a cohort at most
        data.examples["y"][data.offsets[client] : data.offsets[client] + 8] *= -1000
    weights, server, _ = learn(SYNCHRONOUS, data, num_rounds=60, aggregator=median())
    np.testing.assert_allclose(weights, TRUTH, atol=1e-2)
    assert {3, 6} & {client for a in server.aggregations for client in a.fresh}


@pytest.mark.parametrize(
    "rule, strategy, wrong",
    [
        (krum(4), SYNCHRONOUS, "Krum.* needs 7 updates and a round of this course has 6"),
        (bulyan(1), SYNCHRONOUS, "Bulyan.* needs 7 updates"),
        (krum(1), FEDBUFF, "Krum.* needs 4 updates and a round of this course has 3"),
    ],
)
def test_a_rule_that_can_never_have_enough_updates_is_told(learn, rule, strategy, wrong):
    with pytest.raises(ConfigError, match=wrong):
        learn(strategy, clients(SIZES), aggregator=rule)


def test_a_model_stays_if_no_update_counts(learn, variables, caplog):
    """Every coefficient is 0: a mean would be a division by it."""
    nothing = LinearAggregator(lambda weights, staleness: (0 * weights, 0 * weights), False)
    weights, server, _ = learn(SYNCHRONOUS, clients(SIZES), num_rounds=2, aggregator=nothing)
    np.testing.assert_array_equal(weights, variables["params"]["Dense_0"]["kernel"][:, 0])
    assert server.round == 2 and not server.counts["rejected_updates"]
    assert "round 1: no update counts, the model stays as it is" in caplog.text


def test_clients_without_a_full_batch_are_left_out_if_the_last_one_is_dropped(task, variables):
    schedule = Schedule(8, drop_last=True)
    simulation = make_simulation(
        CourseConfig(NUM_CLIENTS, 1, SYNCHRONOUS), fed_avg(task, optax.sgd(0.1), schedule),
        clients([8] * 6 + [7] * 10 + [0] * 4), variables, schedule, mesh=make_mesh(),
    )  # fmt: skip
    assert simulation.start().server.excluded == set(range(7, 21))


def test_a_course_on_quadratics_goes_as_its_closed_form():
    """`f_i(x) = a_i x^2 / 2`: S steps shrink x by (1 - rate a_i)^S, in the mean over clients."""
    data = make_quadratics(NUM_CLIENTS)

    def loss(variables, batch, key, train):
        x = variables["params"]["x"]
        return LossOutput(0.5 * batch["x"][:, 0, 0] * x**2, {}, {})

    task, schedule = Task(lambda key: {"params": {"x": jnp.float32(2)}}, loss), Schedule(1, 3)
    simulation = make_simulation(
        CourseConfig(NUM_CLIENTS, 12, Strategy(cohort_size=NUM_CLIENTS)),
        fed_avg(task, optax.sgd(0.05), schedule), data.train, task.init(jax.random.key(0)),
        schedule, mesh=make_mesh(devices=jax.devices()[:1]), splits={"test": data.test},
    )  # fmt: skip
    state = run_course(simulation.course, simulation.start())
    curvatures = data.train.examples["x"][:, 0, 0].astype(np.float64)
    shrink = np.mean((1 - 0.05 * curvatures) ** 3)
    x = 2 * shrink ** np.arange(1, 13)
    losses = [evaluation.metrics["test/loss"] for evaluation in state.server.evaluations]
    np.testing.assert_allclose(losses, curvatures.mean() * x**2 / 2, rtol=1e-4)
    found = simulation.variables(state)["params"]["x"]
    np.testing.assert_allclose(found, x[-1], rtol=1e-5)
    assert 0 < found < 0.15


def test_a_course_that_goes_nowhere_is_given_up(learn):
    with pytest.raises(TooManyFailuresError, match="of the last 6 updates were refused"):
        learn(SYNCHRONOUS, clients(SIZES, broken=range(1, 16)))


def test_a_round_of_whole_batches_is_gradient_descent_on_all_examples(learn, variables):
    data = clients([4 + n % 5 for n in range(NUM_CLIENTS)])
    strategy = Strategy(cohort_size=NUM_CLIENTS)
    weights, _, _ = learn(strategy, data, num_rounds=3)
    expected = np.asarray(variables["params"]["Dense_0"]["kernel"], np.float64)[:, 0]
    x, y = (data.examples[name].astype(np.float64) for name in "xy")
    for _ in range(3):
        expected = expected - 0.1 * 2 * x.T @ (x @ expected - y) / len(x)
    np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_evaluations_are_over_all_examples_and_apart_for_clients_that_never_train(learn):
    data = clients(SIZES)
    test = clients([n % 3 for n in range(NUM_CLIENTS)])
    weights, server, _ = learn(
        SYNCHRONOUS, data, num_rounds=2, num_unseen=5, eval_every_rounds=0, splits={"test": test}
    )
    (evaluation,) = server.evaluations
    errors = (test.examples["x"] @ weights - test.examples["y"]) ** 2
    seen = int(np.asarray(test.sizes)[:15].sum())
    assert evaluation.metrics == {
        "test/loss": pytest.approx(errors[:seen].mean(), rel=1e-5),
        "test_unseen/loss": pytest.approx(errors[seen:].mean(), rel=1e-5),
    }


def test_a_course_ends_when_its_metric_has_stopped_improving(learn):
    val, stop = clients([2] * NUM_CLIENTS), EarlyStop("val/loss", patience=2, delta=0.5)
    _, server, report = learn(
        SYNCHRONOUS, clients(SIZES), splits={"val": val}, is_converged=stop, summarize=Report()
    )
    losses = [evaluation.metrics["val/loss"] for evaluation in server.evaluations]
    assert report["rounds"] == len(losses) < 40
    assert stop.is_over(losses) and not stop.is_over(losses[:-1])
    best = best_evaluation(server.evaluations, "val/loss")
    assert best is not None and best.metrics["val/loss"] == min(losses)
    assert best.metrics["val/fairness/loss_max"] > best.metrics["val/avg/loss"]
    last = server.evaluations[-1]
    assert report["convergence_round"] == last.round
    assert report["convergence_seconds"] == last.time_us / 1e6


def test_the_server_evaluates_its_own_examples_and_those_of_clients_as_one(learn):
    test, own = clients([n % 3 for n in range(NUM_CLIENTS)]), clients([300])
    weights, server, _ = learn(
        SYNCHRONOUS, clients(SIZES), num_rounds=1, splits={"test": test},
        server_splits={"test": test, "own": own}, summarize=Report(),
    )  # fmt: skip
    metrics = server.evaluations[0].metrics
    assert metrics["test_server/loss"] == pytest.approx(metrics["test/loss"], rel=1e-6)
    errors = (own.examples["x"] @ weights - own.examples["y"]) ** 2
    assert metrics["own_server/loss"] == pytest.approx(errors.mean(), rel=1e-5)
    assert "own_server/avg/loss" not in metrics


def test_merged_clients_are_one_with_their_examples_in_order():
    data = gather_clients({"x": np.arange(6.0)}, [np.array([4]), np.array([0, 2]), np.array([5])])
    merged = merge_clients(data)
    np.testing.assert_array_equal(merged.examples["x"], [4, 0, 2, 5])
    assert merged.sizes.tolist() == [4] and merged.offsets.tolist() == [0]
    swapped = data.replace(offsets=data.offsets[::-1], sizes=data.sizes[::-1])
    np.testing.assert_array_equal(merge_clients(swapped).examples["x"], [5, 0, 2, 4])


@pytest.mark.parametrize("summarize", [None, Report(("avg",))])
def test_a_metric_that_no_evaluation_has_is_told_before_the_start(learn, summarize):
    test = clients([2] * 15 + [0] * 5)
    there = "test/avg/loss" if summarize else "test/loss"
    with pytest.raises(ConfigError, match=f"'val/loss' is not among .*: {there}. Name one"):
        learn(
            SYNCHRONOUS, clients(SIZES), num_unseen=5, splits={"test": test}, summarize=summarize,
            is_converged=EarlyStop("val/loss"),
        )  # fmt: skip


def test_an_update_that_drops_out_costs_the_time_of_an_answer(learn):
    _, server, report = learn(
        SYNCHRONOUS,
        clients(SIZES),
        num_rounds=1,
        fails=lambda client, number: client > 3,
    )
    assert report["virtual_seconds"] >= 0.001 * 3 * 8 * 4
    assert report["failed_clients"] >= 3


@pytest.mark.parametrize(
    "options, wrong",
    [
        ({"devices": DEVICES[:3]}, "3 devices for 20 clients"),
        (
            {"devices": None, "strategy": Strategy(kind="time_up", time_budget_s=1.0)},
            "kind='time_up' needs devices",
        ),
        ({"devices": None, "strategy": FEDBUFF}, "kind='goal_achieved' needs devices"),
        ({"splits": {"val": clients([3] * 7)}}, "the split 'val' has 7 clients and the course 20"),
        ({"data": [3] * 7}, "num_clients=20 and the data has 7 clients"),
        ({"data": [3] * 4 + [0] * 16}, "cohort_size=6 of 4 clients that train"),
    ],
)
def test_parts_that_do_not_fit_together_are_told(learn, options, wrong):
    data = clients(options.pop("data", SIZES))
    with pytest.raises(ConfigError, match=wrong):
        learn(options.pop("strategy", SYNCHRONOUS), data, **options)


@pytest.mark.parametrize(
    "strategy, num_rounds, wrong",
    [
        (FEDBUFF, 4, "kind='goal_achieved' with an algorithm that takes 2 rounds for one"),
        (SYNCHRONOUS, 5, "num_rounds=5 .* use a multiple of 2"),
    ],
)
def test_an_algorithm_of_two_exchanges_takes_an_even_synchronous_course(
    task, variables, strategy, num_rounds, wrong
):
    with pytest.raises(ConfigError, match=wrong):
        make_simulation(
            CourseConfig(NUM_CLIENTS, num_rounds, strategy), mime(task, optax.sgd(0.1), SCHEDULE),
            clients(SIZES), variables, SCHEDULE, mesh=make_mesh(), devices=DEVICES,
        )  # fmt: skip
