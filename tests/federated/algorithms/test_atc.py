"""ATC as a course, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from jaxlab import federated
from jaxlab.federated import wire
from jaxlab.federated.clusters import agglomerate, cosine_similarity
from jaxlab.federated.tasks import LossOutput, Task
from jaxlab.parallel import make_mesh

SIZES, RATE, STEPS = (6, 3, 4, 5), 0.1, 2
RNG = np.random.default_rng(0)
X = RNG.normal(size=(sum(SIZES), 3)).astype(np.float32)
TRUTH = np.repeat(
    [[1.0, -2.0, 0.5], [1.2, -1.8, 0.3], [-1.0, 2.0, 1.0], [-0.8, 2.0, 0.7]], SIZES, 0
)
Y = (X * TRUTH).sum(axis=1).astype(np.float32)
ROWS = np.split(np.arange(len(X)), np.cumsum(SIZES)[:-1])
START = {"params": {"w": jnp.zeros(3)}}


def squares(variables, batch, key, train):
    del key, train
    error = batch["x"] @ variables["params"]["w"] - batch["y"]
    return LossOutput(error**2, {}, {})


BASE = federated.fed_avg(
    Task(lambda key: START, squares), optax.sgd(RATE), federated.Schedule(8, STEPS, shuffle=False)
)


def simulate(algorithm, *, num_rounds=3, cohort_size=4, **options):
    data = federated.gather_clients({"x": X, "y": Y}, ROWS)
    config = federated.CourseConfig(
        4, num_rounds, federated.Strategy(cohort_size=cohort_size)
    )  # fmt: skip
    return federated.make_simulation(
        config, algorithm, data, START, mesh=make_mesh(devices=jax.devices()[:1]), **options
    )


def finish(simulation):
    state = federated.run_course(simulation.course, simulation.start())
    return state, np.asarray(simulation.variables(state)["params"]["w"])


def slow_update(w, client):
    x, y, start = X[ROWS[client]].astype(np.float64), Y[ROWS[client]], w.copy()
    for _ in range(STEPS):
        w = w - RATE * 2 * x.T @ (x @ w - y) / len(y)
    return w - start


def slow_course(together, num_rounds, inside=1.0, outside=0.0):
    """`together` tells from the cosines which updates are in the cluster of each."""
    models = np.zeros((4, 3))
    for _ in range(num_rounds):
        updates = np.stack([slow_update(models[client], client) for client in range(4)])
        unit = updates / np.linalg.norm(updates, axis=1, keepdims=True)
        worth = np.where(together(unit @ unit.T), inside, outside) * np.array(SIZES)
        models = models + worth / worth.sum(axis=1, keepdims=True) @ updates
    return models


@pytest.mark.parametrize(("counts", "outside"), [(2, 0.0), ((1, 2, 3, 4), 0.25)])
def test_every_model_moves_by_the_updates_nearest_to_its_own(counts, outside):
    def together(cosines):
        ranks = np.argsort(np.argsort(-cosines, axis=1), axis=1)
        return ranks < np.broadcast_to(counts, 4)[:, None]

    algorithm = federated.clustered(BASE, 4, num_nearest=counts, outside_weight=outside)
    _, found = finish(simulate(algorithm))
    np.testing.assert_allclose(found, slow_course(together, 3, outside=outside), rtol=1e-4)


def test_groups_are_found_from_the_updates():
    def together(cosines):
        group = np.array([0, 0, 1, 1])
        return group[:, None] == group[None, :]

    simulation = simulate(federated.clustered(BASE, 4, num_groups=2))
    _, found = finish(simulation)
    np.testing.assert_allclose(found, slow_course(together, 3), rtol=1e-4)


def test_with_all_in_one_cluster_every_model_is_that_of_fedavg():
    _, wanted = finish(simulate(BASE))
    _, found = finish(simulate(federated.clustered(BASE, 4, num_groups=1)))
    np.testing.assert_allclose(found, np.tile(wanted, (4, 1)), rtol=1e-5)


def test_clients_evaluate_their_own_models_and_the_server_has_none_to_evaluate():
    data = federated.gather_clients({"x": X, "y": Y}, ROWS)
    algorithm = federated.clustered(BASE, 4, num_nearest=1)
    simulation = simulate(algorithm, splits={"test": data})
    state, models = finish(simulation)
    losses = [np.sum((X[rows] @ models[c] - Y[rows]) ** 2) for c, rows in enumerate(ROWS)]
    found = simulation.evaluate(state)["test"]["loss"][:, 0]
    np.testing.assert_allclose(found, losses, rtol=1e-4)
    with pytest.raises(federated.ConfigError, match="a model for every client"):
        simulate(algorithm, server_splits={"test": data})


def test_who_is_not_asked_keeps_its_model():
    simulation = simulate(federated.clustered(BASE, 4, num_nearest=1), num_rounds=1, cohort_size=2)
    state, models = finish(simulation)
    asked = {client - 1 for client in state.server.aggregations[0].fresh}
    assert {c for c in range(4) if models[c].any()} == asked and len(asked) == 2


def test_a_message_holds_one_model():
    simulation = simulate(federated.clustered(BASE, 4, num_nearest=1), num_rounds=1)
    finish(simulation)
    model, place = {"params/w": np.zeros(3, np.float32)}, np.zeros((), np.int32)
    sent = {f"model/{name}": leaf for name, leaf in model.items()} | {"place": place}
    update = {f"update/{name}": leaf for name, leaf in model.items()} | {"place": place}
    sizes = simulation.traffic.sizes
    assert sizes.down == len(wire.pack({"tree": sent}))
    answer = {"update": update, "weight": np.zeros((), np.float32)}
    assert sizes.up == len(wire.pack(answer))


def test_personal_entries_and_an_optimizer_of_the_server_stay_inside():
    start = {"params": {"w": jnp.zeros(3), "head": jnp.zeros(())}}

    def loss(variables, batch, key, train):
        shifted = {"params": {"w": variables["params"]["w"]}}
        batch = {**batch, "y": batch["y"] - variables["params"]["head"]}
        return squares(shifted, batch, key, train)

    base = federated.fed_avg(
        Task(lambda key: start, loss), optax.sgd(RATE), federated.Schedule(8, STEPS),
        server_tx=optax.adam(0.1),
    )  # fmt: skip
    algorithm = federated.clustered(
        federated.keep_local(base, federated.named("head")), 4, num_nearest=2
    )
    data = federated.gather_clients({"x": X, "y": Y}, ROWS)
    simulation = federated.make_simulation(
        federated.CourseConfig(4, 4, federated.Strategy(cohort_size=4)), algorithm, data, start,
        mesh=make_mesh(devices=jax.devices()[:1]), splits={"test": data},
    )  # fmt: skip
    state = federated.run_course(simulation.course, simulation.start())
    losses = [each.metrics["test/loss"] for each in state.server.evaluations]
    assert losses[-1] < 0.8 * losses[0]
    shared = simulation.variables(state)["params"]["w"]
    assert shared.shape == (4, 3) and len(np.unique(np.round(shared, 4), axis=0)) > 1


@pytest.mark.parametrize("num_groups", [1, 2, 4, 7])
def test_groups_are_those_of_average_linkage(num_groups):
    rows = np.random.default_rng(3).normal(size=(7, 4)).astype(np.float32)
    cosines = cosine_similarity({"w": jnp.asarray(rows)})
    distances = np.maximum(1 - np.asarray(cosines, np.float64), 0)
    np.fill_diagonal(distances, 0)
    wanted = fcluster(
        linkage(squareform(distances, checks=False), "average"), num_groups, "maxclust"
    )
    found = np.asarray(agglomerate(cosines, num_groups))
    np.testing.assert_array_equal(found[:, None] == found, wanted[:, None] == wanted)


@pytest.mark.parametrize(
    "wrong",
    [{}, {"num_nearest": 1, "num_groups": 2}, {"num_groups": 5}, {"num_nearest": (1, 2)},
     {"num_nearest": 0}, {"num_nearest": 1, "inside_weight": 0.0}],
    ids=["none", "both", "many groups", "few counts", "zero", "no weight"],
)  # fmt: skip
def test_numbers_that_make_no_clusters_are_refused(wrong):
    with pytest.raises(federated.ConfigError):
        federated.clustered(BASE, 4, **wrong)


def test_a_rule_beside_its_own_is_refused():
    with pytest.raises(federated.ConfigError, match="means of clusters"):
        simulate(federated.clustered(BASE, 4, num_groups=2), aggregator=federated.median())
