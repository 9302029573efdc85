"""FedGC against NumPy in float64, and its messages."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import logsumexp

from jaxlab import federated
from jaxlab.federated import checkpoint, compression, wire
from jaxlab.federated.completeness import check_completeness
from jaxlab.federated.deployment.agreement import Agreement
from jaxlab.federated.deployment.agreement import find_forms as find_deployed_forms
from jaxlab.federated.simclr import FIRST, SECOND, nt_xent
from jaxlab.federated.simulation import step
from jaxlab.federated.tasks import LossOutput, Task
from jaxlab.parallel import make_mesh

SIZES, BATCH, EPOCHS, RATE, WEIGHT, TEMPERATURE = (5, 4, 7), 4, 2, 0.1, 5.0, 0.5
RNG = np.random.default_rng(0)
X = RNG.normal(size=(sum(SIZES), 2, 3)).astype(np.float32)  # both views of every example
ROWS = np.split(np.arange(len(X)), np.cumsum(SIZES)[:-1])
START = {"params": {"w": jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32)}}


def project(variables, batch, key, train):
    """A linear model on two views that are given, so that a round follows from the data alone."""
    w = variables["params"]["w"]
    first, second = batch["x"][:, 0] @ w, batch["x"][:, 1] @ w
    losses, correct = nt_xent(first, second, batch["mask"], TEMPERATURE)
    return LossOutput(losses, {}, {"correct": correct}, {FIRST: first, SECOND: second})


TASK = Task(lambda key: START, project)
SCHEDULE = federated.Schedule(BATCH, EPOCHS, shuffle=False)


GC = federated.fed_gc(
    TASK, optax.sgd(RATE, 0.9), SCHEDULE, temperature=TEMPERATURE, global_weight=WEIGHT
)
"""One for all tests, whose programs are then compiled once."""


def simulate(algorithm=GC, *, num_rounds=2, num_devices=1, x=X, **options):
    data = federated.gather_clients({"x": x}, ROWS)
    config = federated.CourseConfig(3, num_rounds, federated.Strategy(cohort_size=3))
    return federated.make_simulation(
        config,
        algorithm,
        data,
        START,
        mesh=make_mesh(devices=jax.devices()[:num_devices]),
        **options,
    )


def finish(simulation):
    state = federated.run_course(simulation.course, simulation.start())
    return state, np.asarray(simulation.variables(state)["params"]["w"])


# The second form.


def slow_loss(w, views, others):
    """Anchor by anchor: the other view among all views but itself, and what others have."""
    both = np.concatenate([views[:, 0] @ w, views[:, 1] @ w, *(each[:, 1] for each in others)])
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    size, losses = len(views), []
    for anchor in range(2 * size):
        candidates = [row for row in range(len(both)) if row != anchor]
        cosines = both[candidates] @ both[anchor] / TEMPERATURE
        losses.append(logsumexp(cosines) - cosines[candidates.index((anchor + size) % (2 * size))])
    return np.mean(losses)


def slope(function, w, step=1e-5):
    """The gradient by central differences."""
    found = np.zeros_like(w)
    for place in np.ndindex(*w.shape):
        move = np.zeros_like(w)
        move[place] = step
        found[place] = (function(w + move) - function(w - move)) / (2 * step)
    return found


def slow_round(w, clients=(0, 1, 2)):
    """One round: ordinary steps, second views of the last batches, one more step, the mean."""
    walks = {}
    for client in clients:
        own, trace = w.copy(), np.zeros_like(w)
        views = X[ROWS[client]].astype(np.float64)
        for _ in range(EPOCHS):
            for begin in range(0, len(views), BATCH):
                batch = views[begin : begin + BATCH]
                trace = 0.9 * trace + slope(lambda v, b=batch: slow_loss(v, b, []), own)
                own = own - RATE * trace
        told = np.stack([np.zeros_like(batch[:, 1] @ own), batch[:, 1] @ own], axis=1)
        walks[client] = own, trace, batch, told
    moved = []
    for client, (own, trace, batch, _) in walks.items():
        others = [told for other, (*_, told) in walks.items() if other != client]
        last = WEIGHT * slope(lambda v, b=batch, o=others: slow_loss(v, b, o), own)
        moved.append(own - RATE * (0.9 * trace + last))
    return np.average(moved, axis=0, weights=[SIZES[client] for client in clients])


def test_two_rounds_are_those_of_numpy():
    wanted = slow_round(slow_round(np.asarray(START["params"]["w"], np.float64)))
    _, found = finish(simulate())
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("devices", "width"), [(1, 2), (2, 1)])
def test_the_result_does_not_depend_on_who_is_computed_together(devices, width):
    if len(jax.devices()) < devices:
        pytest.skip(f"needs {devices} devices")
    _, wanted = finish(simulate())
    _, found = finish(simulate(num_devices=devices, width=width))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_client_that_fails_is_not_waited_for_and_told_nothing():
    wanted = slow_round(np.asarray(START["params"]["w"], np.float64), (0, 2))
    simulation = simulate(num_rounds=1, fails=lambda client, number: client == 2)
    state, found = finish(simulation)
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-5)
    assert state.server.aggregations[0].fresh == (1, 3)


def test_without_others_a_client_takes_the_step_by_itself():
    config = federated.CourseConfig(1, 1)
    data = federated.gather_clients({"x": X[:5]}, [np.arange(5)])
    simulation = federated.make_simulation(
        config, GC, data, START, mesh=make_mesh(devices=jax.devices()[:1])
    )
    wanted = slow_round(np.asarray(START["params"]["w"], np.float64), (0,))
    np.testing.assert_allclose(finish(simulation)[1], wanted, rtol=2e-4, atol=2e-5)


def test_an_offer_that_is_not_finite_reaches_nobody():
    broken = X.copy()
    broken[ROWS[1][0]] = np.nan
    state, found = finish(simulate(num_rounds=1, x=broken))
    assert state.server.aggregations[0].rejected == (2,)
    wanted = slow_round(np.asarray(START["params"]["w"], np.float64), (0, 2))
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-5)


# Messages.


def test_the_course_is_complete_and_sends_the_messages_of_the_original():
    simulation = simulate(num_rounds=1)
    assert check_completeness(simulation.course.server, simulation.course.client).verdict == "pass"
    state, kinds = simulation.start(), []
    while not state.server.finished:
        kinds += [message.type for message in state.to_clients]
        kinds += [message.type for _, message in state.to_server]
        assert step(simulation.course, state)
    exchanged = ["model_para", "pred_embedding", "global_loss"]
    assert [kind for kind in dict.fromkeys(kinds) if kind in exchanged] == exchanged
    without = simulation.course.client.without("global_loss")
    report = check_completeness(simulation.course.server, without)
    assert report.verdict == "error"
    assert "'global_loss', which no client handles" in str(report)


def test_bytes_are_those_of_what_is_sent():
    simulation = simulate(num_rounds=1)
    finish(simulation)
    model = {"params/w": np.zeros((3, 2), np.float32)}
    offer = {SECOND: np.zeros((BATCH, 2), np.float32), "mask": np.zeros(BATCH, bool)}
    others = {name: np.stack([value] * 2) for name, value in offer.items()}
    answer = {"update": model, "weight": np.zeros((), np.float32)}
    asked = [len(wire.pack(each)) for each in ({"tree": model}, {"offer": offer})]
    told = [len(wire.pack(each)) for each in ({"offer": others}, answer)]
    rows = simulation.traffic.exchanges
    np.testing.assert_array_equal(rows[:3], [[0, client, *asked] for client in (1, 2, 3)])
    np.testing.assert_array_equal(rows[3:], [[0, client, *told] for client in (1, 2, 3)])


def test_both_answers_take_time():
    device = federated.Device(1000.0, 1.0)
    seconds = {}
    for algorithm in (GC, federated.fed_avg(TASK, optax.sgd(RATE), SCHEDULE)):
        simulation = simulate(
            algorithm, num_rounds=1, devices=[device] * 3,
            answer_time=lambda d, samples, down, up: 1000 * samples,
        )  # fmt: skip
        state, _ = finish(simulation)
        seconds[algorithm.exchange is None] = state.server.clock_us
    assert seconds[True] == 1000 * EPOCHS * max(SIZES)
    assert seconds[False] == seconds[True] + 1000 * BATCH


def test_a_course_that_was_saved_while_clients_wait_goes_on(tmp_path):
    _, wanted = finish(simulate())
    simulation = simulate()
    state = simulation.start()
    while not (state.server.round == 1 and len(state.server.offers) == 2):
        assert step(simulation.course, state)
    checkpoint.save_course(tmp_path, simulation, state)
    resumed = simulate()
    state = checkpoint.restore_course(tmp_path, resumed)
    state = federated.run_course(resumed.course, state)
    np.testing.assert_array_equal(resumed.variables(state)["params"]["w"], wanted)


# What is refused.


def test_what_would_not_see_the_exchange_is_refused():
    with pytest.raises(federated.ConfigError, match="put around the training"):
        simulate(federated.compressed(GC, up=compression.quantize(8)))


def test_clients_that_exchange_wait_for_each_other():
    config = federated.CourseConfig(3, 1, federated.Strategy(cohort_size=2, min_updates=1))
    data = federated.gather_clients({"x": X}, ROWS)
    with pytest.raises(federated.ConfigError, match="wait for each other"):
        federated.make_simulation(
            config, GC, data, START, mesh=make_mesh(devices=jax.devices()[:1])
        )


def test_a_task_without_projections_is_refused():
    def no_views(variables, batch, key, train):
        return project(variables, batch, key, train)._replace(kept=None)

    algorithm = federated.fed_gc(Task(lambda key: START, no_views), optax.sgd(0.1), SCHEDULE)
    with pytest.raises(federated.ConfigError, match="keeps no first and no second"):
        simulate(algorithm)


def test_it_is_not_deployed():
    agreement = Agreement(
        federated.CourseConfig(3, 1), GC, START, SCHEDULE,
        {"x": jax.ShapeDtypeStruct((2, 3), np.float32)},
    )  # fmt: skip
    with pytest.raises(federated.ConfigError, match="cannot be deployed"):
        find_deployed_forms(agreement)
