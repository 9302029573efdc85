"""Whole courses against those of FederatedScope 0.3.0, see `tests/golden`."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxlab import federated
from jaxlab.federated import models
from jaxlab.federated.models.layers import BatchNorm
from jaxlab.parallel import make_mesh

GOLDEN = Path(__file__).parents[1] / "golden" / "federated_courses.npz"
SIZES = (5, 9, 8)
RATE = 0.3
SCHEDULE = federated.Schedule(4, 1, shuffle=False)
TASK = federated.classification(
    models.LogisticRegression(3), jax.ShapeDtypeStruct((6,), jnp.float32)
)


def make_algorithm(method, task=TASK, rate=RATE):
    """The algorithm of a golden course, with its numbers."""
    tx = optax.sgd(rate)
    twice = federated.Schedule(4, 2, shuffle=False)
    return {
        "FedAvg": lambda: federated.fed_avg(task, tx, SCHEDULE),
        "FedProx": lambda: federated.fed_avg(task, tx, SCHEDULE, prox_mu=0.5),
        "FedOpt": lambda: federated.fed_avg(task, tx, SCHEDULE, server_tx=optax.sgd(0.5)),
        "Ditto": lambda: federated.ditto(
            task, tx, SCHEDULE, regularisation=0.4, personal_schedule=twice
        ),
        "pFedMe": lambda: federated.pfedme(
            task, optax.sgd(0.2), rate, SCHEDULE,
            num_inner_steps=3, regularisation=2.0, beta=0.7, outer="epoch",
        ),
        "FedEM": lambda: federated.fed_em(task, tx, SCHEDULE, compat=True),
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


class Layered(nn.Module):
    """A body and a head, with a batch norm between them or without."""

    norm: bool

    @nn.compact
    def __call__(self, x, *, train, mask):
        x = nn.Dense(4, name="fc1")(x)
        x = BatchNorm(name="bn")(x, train=train, mask=mask) if self.norm else x
        return nn.Dense(3, name="fc2")(nn.tanh(x))


def layered_start(norm):
    """The variables of `Layered` that the script of the golden draws."""
    shapes = {"fc1.weight": (4, 6), "fc1.bias": (4,), "fc2.weight": (3, 4), "fc2.bias": (3,)}
    of_norm = ("weight", "bias", "running_mean", "running_var") if norm else ()
    state = draw_state({**shapes, **{f"bn.{name}": (4,) for name in of_norm}}, 5)
    params = {
        name: {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}
        for name in ("fc1", "fc2")
    }
    if not norm:
        return {"params": params}
    params["bn"] = {"scale": state["bn.weight"], "bias": state["bn.bias"]}
    kept = {"mean": state["bn.running_mean"], "var": state["bn.running_var"]}
    return {"params": params, "batch_stats": {"bn": kept}}


def play_layered(golden, method):
    """The variables of the server after the course, and what its clients keep."""
    norm, is_head = method == "FedBN", federated.named("fc2")
    once, twice = (federated.Schedule(5, epochs, shuffle=False) for epochs in (1, 2))
    task = federated.classification(
        Layered(norm), jax.ShapeDtypeStruct((6,), jnp.float32), masked=True
    )
    algorithm = {
        "FedBN": lambda: federated.keep_local(
            federated.fed_avg(task, optax.sgd(RATE), once), federated.named("bn")
        ),
        "FedRep": lambda: federated.fed_rep(
            task, is_head, optax.sgd(0.1), twice, optax.sgd(0.2), once
        ),
    }[method]()
    start, rows = layered_start(norm), np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])
    examples = {"x": golden["x"], "y": golden["y"].astype(np.int32)}
    store = federated.ClientStore(jax.device_get(algorithm.init_client(start)), 3)
    simulation = federated.make_simulation(
        federated.CourseConfig(3, 3, federated.Strategy(cohort_size=3), eval_every_rounds=0),
        algorithm, federated.gather_clients(examples, rows), start, once, store=store,
        mesh=make_mesh(devices=jax.devices()[:1]),
    )  # fmt: skip
    state = federated.run_course(simulation.course, simulation.start())
    return simulation.variables(state), store.rows()["local"]


@pytest.mark.parametrize(
    "method, shared", [("FedBN", ("fc1", "fc2")), ("FedRep", ("fc1",))], ids=["FedBN", "FedRep"]
)
def test_what_is_shared_and_what_clients_keep_ends_as_in_the_original(golden, method, shared):
    found, kept = play_layered(golden, method)

    def check(tensor, wanted):
        np.testing.assert_allclose(tensor, golden[f"{method}/{wanted}"], atol=1e-5, err_msg=wanted)

    for name in shared:
        check(found["params"][name]["kernel"].T, f"{name}.weight")
        check(found["params"][name]["bias"], f"{name}.bias")
    if method == "FedRep":
        check(kept["params"]["fc2"]["kernel"].transpose(0, 2, 1), "fc2.weight")
        check(kept["params"]["fc2"]["bias"], "fc2.bias")
    else:
        check(kept["params"]["bn"]["scale"], "bn.weight")
        check(kept["params"]["bn"]["bias"], "bn.bias")
        check(kept["batch_stats"]["bn"]["mean"], "bn.running_mean")
        check(kept["batch_stats"]["bn"]["var"], "bn.running_var")
    start = layered_start(False)["params"]["fc1"]["kernel"]
    assert np.abs(found["params"]["fc1"]["kernel"] - start).max() > 0.01


CONVNET = models.convnet2(3, hidden=16)
PICTURE = jax.ShapeDtypeStruct((8, 8, 1), jnp.float32)


def draw_state(shapes, number):
    """As the script of the golden draws the weights of a ConvNet2."""
    rng = np.random.default_rng(number)
    state = {}
    for name in sorted(shapes):
        value = 0.1 * rng.normal(size=shapes[name])
        is_scale = name.startswith("bn") and name.endswith(("weight", "running_var"))
        state[name] = (abs(value) + 1 if is_scale else value).astype(np.float32)
    return state


def convnet_start(number, task):
    variables = jax.eval_shape(task.init, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)
    tensors = models.save_original(CONVNET, PICTURE, zeros)
    shapes = {n: v.shape for n, v in tensors.items() if not n.endswith("num_batches_tracked")}
    return models.load_original(CONVNET, PICTURE, draw_state(shapes, number))


# Compiling convolutions takes longer than the default suite has.
@pytest.mark.parity
@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", ["FedAvg", "FedProx", "Ditto", "pFedMe", "FedEM"])
def test_three_rounds_of_convnet2_end_where_those_of_the_original_end(golden, method):
    rng = np.random.default_rng(7)
    x = rng.normal(size=(sum(SIZES), 1, 8, 8)).astype(np.float32).transpose(0, 2, 3, 1)
    examples = {"x": x, "y": rng.integers(0, 3, sum(SIZES)).astype(np.int32)}
    rows = np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])
    task = federated.classification(CONVNET, PICTURE, masked=True)
    starts = [convnet_start(number, task) for number in range(3 if method == "FedEM" else 1)]
    start = jax.tree.map(lambda *leaves: np.stack(leaves), *starts)
    if method != "FedEM":
        start = starts[0]
    simulation = federated.make_simulation(
        federated.CourseConfig(3, 3, federated.Strategy(cohort_size=3), eval_every_rounds=0),
        make_algorithm(method, task, 0.05), federated.gather_clients(examples, rows), start,
        SCHEDULE, mesh=make_mesh(devices=jax.devices()[:1]),
    )  # fmt: skip
    state = federated.run_course(simulation.course, simulation.start())
    end = jax.device_get(simulation.variables(state))
    for number in range(len(starts)):
        one = jax.tree.map(lambda leaf, n=number: leaf[n], end) if method == "FedEM" else end
        for name, tensor in models.save_original(CONVNET, PICTURE, one).items():
            # The original leaves what batch norms count at the clients, unless told to share.
            if not name.endswith(("num_batches_tracked", "running_mean", "running_var")):
                wanted = golden[f"convnet/{method}/{name}"][number]
                found = tensor.ravel()[::37]
                np.testing.assert_allclose(found, wanted, atol=1e-4, err_msg=name)
