import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxlab.federated.client_data import Schedule, gather_clients
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.labelled import regression
from jaxlab.federated.learning import make_simulation
from jaxlab.federated.server_state import CourseConfig
from jaxlab.federated.simulation import run_course
from jaxlab.federated.strategy import ConfigError, Strategy
from jaxlab.federated.trust import fl_trust, trusted_mean
from jaxlab.parallel import make_mesh


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(1, use_bias=False)(x)


def test_updates_count_by_their_cosine_and_with_the_norm_of_the_servers():
    rng = np.random.default_rng(0)
    rows, own = rng.normal(size=(6, 5)), rng.normal(size=5)
    rows[2] = -own  # points away
    cosines = rows @ own / np.linalg.norm(rows, axis=1) / np.linalg.norm(own)
    trust = np.maximum(cosines, 0)
    scaled = rows / np.linalg.norm(rows, axis=1, keepdims=True) * np.linalg.norm(own)
    expected = trust @ scaled / trust.sum()
    updates = {"a": rows[:, :2].astype(np.float32), "b": rows[:, 2:, None].astype(np.float32)}
    got = trusted_mean(updates, {"a": own[:2].astype(np.float32), "b": np.float32(own[2:, None])})
    np.testing.assert_allclose(np.concatenate([got["a"], got["b"][:, 0]]), expected, rtol=1e-5)
    away = {"a": -np.ones((3, 2), np.float32)}
    np.testing.assert_array_equal(trusted_mean(away, {"a": np.ones(2, np.float32)})["a"], 0)
    same = {"a": np.tile(np.float32([1, -2]), (3, 1))}
    np.testing.assert_allclose(trusted_mean(same, {"a": same["a"][0]})["a"], [1, -2], rtol=1e-6)


def test_a_majority_of_hostile_clients_does_not_keep_the_model_from_the_truth():
    rng, truth = np.random.default_rng(0), np.array([1.0, -2.0, 0.5])
    x = rng.normal(size=(48, 3)).astype(np.float32)
    y = (x @ truth).astype(np.float32)
    y[:32] *= -1000  # four of five clients; the last rows are the server's
    data = gather_clients({"x": x[:40], "y": y[:40]}, np.split(np.arange(40), 5))
    task, schedule = regression(Linear(), jax.ShapeDtypeStruct((3,), jnp.float32)), Schedule(8)
    variables = task.init(jax.random.key(0))
    algorithm = fed_avg(task, optax.sgd(0.3), schedule)
    rule = fl_trust(
        algorithm, schedule, {"x": x[40:], "y": y[40:]}, variables, key=jax.random.key(1)
    )
    config = CourseConfig(5, 25, Strategy(cohort_size=5), eval_every_rounds=0)
    simulation = make_simulation(
        config, algorithm, data, variables, schedule, aggregator=rule,
        mesh=make_mesh(devices=jax.devices()[:1]),
    )  # fmt: skip
    state = run_course(simulation.course, simulation.start())
    learned = simulation.variables(state)["params"]["Dense_0"]["kernel"][:, 0]
    np.testing.assert_allclose(learned, truth, atol=1e-2)
    few, algorithm = {"x": x[:3], "y": y[:3]}, algorithm._replace(schedule=None)
    with pytest.raises(ConfigError, match="3 examples, which make no batch"):
        fl_trust(algorithm, Schedule(8, drop_last=True), few, variables, key=jax.random.key(1))
