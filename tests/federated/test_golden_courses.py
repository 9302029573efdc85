"""Whole courses against those of FederatedScope 0.3.0, see `tests/golden`."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import federated
from jaxlab.federated import models
from jaxlab.parallel import make_mesh

GOLDEN = Path(__file__).parents[1] / "golden" / "federated_courses.npz"
SIZES = (5, 9, 8)
RATE = 0.3
SCHEDULE = federated.Schedule(4, 1, shuffle=False)
TASK = federated.classification(
    models.LogisticRegression(3), jax.ShapeDtypeStruct((6,), jnp.float32)
)


def make_algorithm(method):
    """The algorithm of a golden course, with its numbers."""
    tx = optax.sgd(RATE)
    twice = federated.Schedule(4, 2, shuffle=False)
    return {
        "FedAvg": lambda: federated.fed_avg(TASK, tx, SCHEDULE),
        "FedProx": lambda: federated.fed_avg(TASK, tx, SCHEDULE, prox_mu=0.5),
        "FedOpt": lambda: federated.fed_avg(TASK, tx, SCHEDULE, server_tx=optax.sgd(0.5)),
        "Ditto": lambda: federated.ditto(
            TASK, tx, SCHEDULE, regularisation=0.4, personal_schedule=twice
        ),
        "pFedMe": lambda: federated.pfedme(
            TASK, optax.sgd(0.2), RATE, SCHEDULE,
            num_inner_steps=3, regularisation=2.0, beta=0.7, outer="epoch",
        ),
        "FedEM": lambda: federated.fed_em(TASK, tx, SCHEDULE, compat=True),
    }[method]()  # fmt: skip


@pytest.fixture(scope="module", name="golden")
def golden_fixture():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.mark.parametrize("method", ["FedAvg", "FedProx", "FedOpt", "Ditto", "pFedMe", "FedEM"])
def test_three_rounds_end_where_those_of_the_original_end(golden, method):
    rows = np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])
    examples = {"x": golden["x"], "y": golden["y"].astype(np.int32)}
    data = federated.gather_clients(examples, rows)
    kernels, biases = golden["kernels"].transpose(0, 2, 1), golden["biases"]
    start = {"params": {"fc": {"kernel": kernels, "bias": biases}}}
    if method != "FedEM":
        start = jax.tree.map(lambda leaf: leaf[0], start)
    simulation = federated.make_simulation(
        federated.CourseConfig(3, 3, federated.Strategy(cohort_size=3), eval_every_rounds=0),
        make_algorithm(method), data, start, SCHEDULE, mesh=make_mesh(devices=jax.devices()[:1]),
    )  # fmt: skip
    state = federated.run_course(simulation.course, simulation.start())
    found = simulation.variables(state)["params"]["fc"]
    kernel, bias = golden[f"{method}/kernel"], golden[f"{method}/bias"]
    assert np.abs(kernel[0] - golden["kernels"][0]).max() > 0.05
    kernel = kernel.transpose(0, 2, 1)
    if method != "FedEM":
        kernel, bias = kernel[0], bias[0]
    np.testing.assert_allclose(found["kernel"], kernel, atol=1e-5)
    np.testing.assert_allclose(found["bias"], bias, atol=1e-5)
