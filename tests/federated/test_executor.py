"""Many clients as one program: the result is that of one client after another."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxlab.federated import executor as executor_module
from jaxlab.federated import width as width_module
from jaxlab.federated.aggregators import StackAggregator, weighted_mean
from jaxlab.federated.algorithm import Algorithm
from jaxlab.federated.client_data import ClientData, Schedule, gather_clients
from jaxlab.federated.executor import Executor
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.labelled import regression
from jaxlab.federated.local import Limits
from jaxlab.federated.store import ClientStore
from jaxlab.parallel import make_mesh, place

SIZES = np.array([3, 7, 1, 5, 2, 6])
SCHEDULE = Schedule(3, 2)


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(1)(x)


class Problem(NamedTuple):
    """Clients, and algorithms that all tests share, since a program is compiled once for each."""

    data: ClientData
    variables: dict
    stateless: Algorithm
    stateful: Algorithm


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    total = SIZES.sum()
    x = rng.normal(size=(total, 4)).astype(np.float32)
    y = rng.normal(size=total).astype(np.float32)
    clients = np.split(np.arange(total), np.cumsum(SIZES)[:-1])
    task = regression(Linear(), jax.ShapeDtypeStruct((4,), jnp.float32))
    data = gather_clients({"x": x, "y": y}, clients)
    algorithm = fed_avg(task, optax.sgd(0.05), SCHEDULE)
    return Problem(data, task.init(jax.random.key(1)), algorithm, with_memory(algorithm))


def with_memory(algorithm):
    """Clients that remember all that they have sent, and start from it."""

    def local(received, state, view, limits, key):
        start = jax.tree.map(jnp.add, received, state)
        result = algorithm.local(start, {}, view, limits, key)
        kept = jax.tree.map(jnp.add, state, result.update)
        return result._replace(client_state=kept)

    def evaluate(received, state, given):
        return algorithm.evaluate(jax.tree.map(jnp.add, received, state), {}, given)

    def init_client(variables):
        return jax.tree.map(jnp.zeros_like, variables)

    return algorithm._replace(init_client=init_client, local=local, evaluate=evaluate)


def place_data(problem, num_devices):
    return place(make_mesh(devices=jax.devices()[:num_devices]), problem.data)


def make_executor(problem, *, memory=False, num_devices=1, width=1, store=None, **options):
    data, variables, stateless, stateful = problem
    algorithm = stateful if memory else stateless
    mesh = make_mesh(devices=jax.devices()[:num_devices])
    store = store or ClientStore(algorithm.init_client(variables), len(SIZES))
    return Executor(
        algorithm, place(mesh, data), Limits(7, 2), mesh, store, jax.random.key(0),
        SCHEDULE.num_steps(SIZES), width=width, **options,
    )  # fmt: skip


def two_versions(executor, variables, one_by_one=False):
    """Tickets of a course: five clients from version 0, three of them again from version 1."""
    tickets = []
    for version, clients in enumerate([(1, 2, 3, 4, 6), (2, 6, 5)]):
        executor.publish(version, jax.tree.map(lambda leaf, v=version: leaf + 0.1 * v, variables))
        for client in clients:
            tickets.append(executor.ask(client, version))
            if one_by_one:
                executor.compute(tickets[-1:])
    return tickets


def assert_trees_equal(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_computed_together_is_exactly_computed_one_by_one(problem):
    variables = problem.variables
    order, staleness = [3, 0, 5, 4, 6], [1, 1, 0, 1, 0]
    results = []
    for one_by_one in (False, True):
        executor = make_executor(problem)
        tickets = two_versions(executor, variables, one_by_one)
        chosen = [tickets[number] for number in order]
        results.append(executor.aggregate(chosen, staleness, weighted_mean(staleness_exponent=0.5)))
    together, apart = results
    assert_trees_equal(together.update, apart.update)
    assert together.weight == apart.weight == 2 * SIZES[[3, 0, 1, 5, 5]].sum()
    jax.tree.map(np.testing.assert_allclose, together.sums, apart.sums)


def test_devices_and_width_change_nothing_but_the_order_of_additions(problem):
    variables = problem.variables
    means, sums = [], []
    for num_devices, width in ((1, 1), (1, 5), (4, 2)):
        executor = make_executor(problem, num_devices=num_devices, width=width)
        executor.publish(0, variables)
        tickets = [executor.ask(client, 0) for client in (5, 1, 2, 6, 4)]
        executor.compute(tickets)  # the rows of the updates lie on several devices
        result = executor.aggregate(tickets, [0] * 5, weighted_mean())
        assert result.weight == 2 * SIZES[[4, 0, 1, 5, 3]].sum()
        means.append(result.update)
        if (num_devices, width) in ((1, 1), (4, 2)):
            sums.append(executor.evaluate(variables, np.array([6, 2, 3]), executor._data, 0))
            np.testing.assert_array_equal(sums[-1]["loss"][:, 1], SIZES[[5, 1, 2]])
    for mean in means[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), means[0], mean
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *sums)


def test_the_folded_mean_is_the_mean_of_the_stacked_updates(problem):
    variables = problem.variables
    folded, stacked = make_executor(problem), make_executor(problem)
    for executor in (folded, stacked):
        executor.publish(0, variables)
    tickets = [folded.ask(client, 0) for client in (1, 2, 3)]
    assert [stacked.ask(client, 0) for client in (1, 2, 3)] == tickets
    stacked.compute(tickets)
    mean = folded.aggregate(tickets, [0, 0, 0], weighted_mean())
    other = stacked.aggregate(tickets, [0, 0, 0], weighted_mean())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6),
        mean.update, other.update,
    )  # fmt: skip
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), mean.sums, other.sums)
    assert mean.weight == other.weight


def test_what_clients_keep_is_that_of_one_by_one_in_memory_and_in_files(problem, tmp_path):
    variables, rows, updates = problem.variables, [], []
    for folder, one_by_one in ((None, False), (tmp_path / "store", True)):
        store = ClientStore(problem.stateful.init_client(variables), len(SIZES), folder)
        executor = make_executor(problem, memory=True, store=store)
        tickets = two_versions(executor, variables, one_by_one)
        executor.discard(tickets[0])  # client 1 has trained, though nobody wants its update
        result = executor.aggregate([tickets[5], tickets[3]], [0, 1], weighted_mean())
        updates.append(result.update)
        # An evaluation comes after all that was asked for.
        executor.evaluate(variables, np.array([1]), executor._data, 0)
        rows.append(jax.tree.map(np.array, store.rows()))
        assert not executor._asked and not executor._unwanted
        assert set(executor._done) == set(tickets) - {tickets[n] for n in (0, 3, 5)}
    assert_trees_equal(*rows)
    assert_trees_equal(*updates)
    kernel = rows[0]["params"]["Dense_0"]["kernel"]
    assert np.abs(kernel).max(axis=(1, 2)).min() > 0
    assert len(list((tmp_path / "store").glob("*.npy"))) == 2


def test_versions_and_updates_are_forgotten_when_nothing_needs_them(problem):
    variables = problem.variables
    executor = make_executor(problem)
    tickets = two_versions(executor, variables)
    executor.aggregate(tickets[:2], [1, 1], weighted_mean())
    executor.retire(1)
    assert set(executor._versions) == {1}  # all of version 0 is computed
    executor.discard(tickets[2])
    for ticket in tickets[3:]:
        executor.discard(ticket)
    executor.retire(2)
    assert not executor._versions and not executor._batches and not executor._done


def test_a_synchronous_course_computes_only_what_it_needs(problem):
    executor = make_executor(problem, compute_pending=False)
    executor.publish(0, problem.variables)
    tickets = [executor.ask(client, 0) for client in (1, 2, 3, 4)]
    executor.aggregate(tickets[:3], [0, 0, 0], weighted_mean())
    assert executor.step_count.taken == SCHEDULE.num_steps(SIZES[:3]).sum()
    assert set(executor._asked) == {tickets[3]}


def test_a_rule_sees_the_updates_in_their_order(problem):
    variables = problem.variables
    executor = make_executor(problem)
    tickets = two_versions(executor, variables)
    seen = {}

    def combine(updates, weights, staleness):
        seen.update(weights=weights, staleness=staleness)
        return jax.tree.map(lambda leaf: leaf[1], updates)

    result = executor.aggregate(
        [tickets[7], tickets[1], tickets[0]], [0, 1, 1], StackAggregator(combine)
    )
    np.testing.assert_array_equal(seen["weights"], 2 * SIZES[[4, 1, 0]])
    np.testing.assert_array_equal(seen["staleness"], [0, 1, 1])
    other = make_executor(problem)
    single = other.aggregate(two_versions(other, variables)[1:2], [1], weighted_mean())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), result.update, single.update
    )


def test_a_rule_that_needs_more_updates_leaves_the_model(problem, caplog):
    variables = problem.variables
    executor = make_executor(problem)
    rule = StackAggregator(lambda updates, weights, staleness: updates, 3, "median of three")
    tickets = two_versions(executor, variables)
    assert executor.aggregate(tickets[:2], [0, 0], rule).update is None
    assert "median of three needs 3 updates and got 2" in caplog.text


def test_a_width_that_is_being_found_changes_nothing_but_the_order_of_additions(
    problem, monkeypatch
):
    monkeypatch.setattr(width_module, "candidate_widths", lambda platform, clients: [4, 2, 1])
    width_module._shared_choice.cache_clear()
    tuned = make_executor(problem, width="auto", cohort_size=4, compute_pending=False)
    fixed = make_executor(problem, cohort_size=4, compute_pending=False)
    for version in range(6):
        results = []
        for executor in (tuned, fixed):
            executor.publish(version, problem.variables)
            tickets = [executor.ask(client, version) for client in (1, 2, 4, 6)]
            results.append(executor.aggregate(tickets, [0] * 4, weighted_mean()))
        found, wanted = results
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            found.update, wanted.update,
        )  # fmt: skip
        assert found.weight == wanted.weight
    assert tuned._width.is_settled
    width_module._shared_choice.cache_clear()


def test_clients_whose_update_is_not_finite_leave_the_mean_of_the_others(problem):
    data = problem.data.replace(examples=dict(problem.data.examples))
    x = data.examples["x"].copy()
    x[data.offsets[1] : data.offsets[1] + data.sizes[1]] = np.nan
    data.examples["x"] = x
    means = []
    for clients in ((1, 2, 3, 4), (1, 3, 4)):
        executor = make_executor(problem._replace(data=data), compute_pending=False)
        executor.publish(0, problem.variables)
        tickets = [executor.ask(client, 0) for client in clients]
        result = executor.aggregate(tickets, [0] * len(tickets), weighted_mean())
        assert result.num_updates == 3 and result.weight == 2 * SIZES[[0, 2, 3]].sum()
        assert result.rejected == ((tickets[1],) if 2 in clients else ())
        means.append(result)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        means[0].update, means[1].update,
    )  # fmt: skip
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b), means[0].sums, means[1].sums)


@pytest.mark.parametrize("num_devices", [1, 2])
def test_all_clients_are_evaluated_in_blocks_of_what_they_keep(problem, num_devices, monkeypatch):
    everybody = np.array([3, 1, 6, 2, 5])

    def evaluate():
        executor = make_executor(problem, memory=True, num_devices=num_devices)
        executor.publish(0, problem.variables)
        executor.compute([executor.ask(client, 0) for client in (1, 5)])
        data = place_data(problem, num_devices)
        return executor.evaluate(problem.variables, everybody, data, 1), executor

    wanted, _ = evaluate()
    monkeypatch.setattr(executor_module, "EVALUATION_BYTES", 2 * 20)  # two clients keep 20 each
    found, executor = evaluate()
    seen = []
    original = executor._store.gather
    monkeypatch.setattr(
        executor._store, "gather", lambda clients: seen.append(len(clients)) or original(clients)
    )
    executor.evaluate(problem.variables, everybody, place_data(problem, num_devices), 1)
    assert seen == [2, 2, 2]
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)
