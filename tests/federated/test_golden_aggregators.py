"""Every aggregator of FederatedScope 0.3.0, called by itself, against ours; see `tests/golden`.

All of its classes run. Where they depart from ours:

* it averages models and we average differences to the model, which is the same;
* its Krum and Bulyan sum norms tensor by tensor, Bulyan selects by one run of Krum and trims at
  both ends instead of averaging around the median: `compat=True`; neither has a default for what
  the rule needs, so that Krum stops without `krum_agg_num`;
* its trimmed mean subtracts what it drops from a sum, which two of 11 values at 1e6 leave 0.04 off,
  and counts in floats what it drops: 28 of 100 at 0.29;
* its FedOpt steps parameters only and never averages what else a model has; Adam is that of torch,
  with corrected moments, which is `optax.adam` and not `fed_adam`;
* its pFedMe mixes by weights, so that `ignore_weight` would replace beta by a half;
* its FedSWA averages a reference to the model first: `compat=True`.
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import federated
from jaxlab.federated import models, robust
from jaxlab.federated.aggregators import combine_updates, weighted_mean
from jaxlab.federated.algorithms.swa import stochastic_averaging
from jaxlab.federated.fedavg import make_server_update

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module", name="maker")
def maker_fixture():
    """The script of the goldens, for the drawing of its inputs."""
    path = GOLDEN / "make_federated_aggregators.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", name="golden")
def golden_fixture():
    with np.load(GOLDEN / "federated_aggregators.npz") as file:
        return dict(file)


def combine(rule, updates, weights, staleness):
    """One update of the rule, as a server makes it."""
    return combine_updates(
        rule,
        weights.astype(np.float64),
        staleness,
        lambda place, factor, after: {
            n: jnp.asarray(u[place] * factor) for n, u in updates.items()
        },
    )


def check(found, expected, maker, atol=3e-6):
    numbers = np.concatenate([np.ravel(found[name]) for name in maker.SHAPES])
    np.testing.assert_allclose(numbers, expected, atol=atol)


LATE = {f"late_{a}": weighted_mean(staleness_exponent=a) for a in (0.0, 0.2, 0.5, 1.0)}
RULES = {
    "mean": weighted_mean(),
    "ignore_weight": weighted_mean(ignore_weight=True),
    "online": weighted_mean(),
    **LATE,
    "late_ignore_weight": weighted_mean(ignore_weight=True, staleness_exponent=1.0),
    "krum": robust.krum(2, compat=True),
    "multi_krum": robust.multi_krum(2, 4, compat=True),
    "bulyan": robust.bulyan(2, compat=True),
    "bulyan_half": robust.bulyan(2, compat=True, sample_rate=0.5),
    "median": robust.median(),
    "trimmed_mean": robust.trimmed_mean(0.25),
    "norm_bounding": robust.norm_bounding(4.0),
}


@pytest.mark.parametrize("name", RULES)
def test_rules_give_what_those_of_the_original_give(maker, golden, name):
    for seed, num_clients in maker.CASES:
        model, updates, weights, staleness = maker.draw(seed, num_clients)
        late = staleness if name.startswith("late") else 0 * staleness
        update = combine(RULES[name], updates, weights, late)
        moved = {entry: model[entry] + update[entry] for entry in model}
        check(moved, golden[f"{seed}/{name}"], maker)


@pytest.mark.parametrize(
    "name, server_tx",
    [
        ("sgd", optax.sgd(0.5)),
        ("annealed", optax.sgd(optax.exponential_decay(0.5, 2, 0.5, staircase=True))),
        ("momentum", optax.sgd(0.5, momentum=0.9)),
        ("adam", optax.adam(0.1)),
    ],
)
def test_five_steps_of_fedopt_end_where_those_of_the_original_end(maker, golden, name, server_tx):
    init, update = make_server_update(server_tx)
    step = jax.jit(update)
    for seed, num_clients in maker.CASES:
        server = init({"params": jax.tree.map(jnp.asarray, maker.draw(seed, num_clients)[0])})
        for number in range(maker.OPT_ROUNDS):
            _, updates, weights, staleness = maker.draw(seed + 10 * number, num_clients)
            mean = combine(weighted_mean(), updates, weights, 0 * staleness)
            server = step(server, {"params": mean}, jnp.float32(num_clients))
        # 1 - 0.999^t, by which Adam divides, has four digits in float32.
        check(server["variables"]["params"], golden[f"{seed}/fedopt_{name}"], maker, 1e-5)


TASK = federated.classification(
    models.LogisticRegression(3), jax.ShapeDtypeStruct((6,), jnp.float32)
)
SCHEDULE = federated.Schedule(4, 1)


def test_the_server_of_pfedme_mixes_as_that_of_the_original(maker, golden):
    algorithm = federated.pfedme(TASK, optax.sgd(0.1), 0.1, SCHEDULE, beta=maker.BETA)
    for seed, num_clients in maker.CASES:
        model, updates, weights, staleness = maker.draw(seed, num_clients)
        mean = combine(weighted_mean(), updates, weights, 0 * staleness)
        start = algorithm.init_server({"params": model})
        end = algorithm.update_server(start, {"params": mean}, jnp.float32(num_clients))
        check(algorithm.variables(end)["params"], golden[f"{seed}/pfedme"], maker)


def test_the_mean_of_models_is_that_of_fedswa(maker, golden):
    algorithm = stochastic_averaging(
        federated.fed_avg(TASK, optax.sgd(0.1), SCHEDULE),
        maker.SWA_ROUNDS, start_round=2, every_rounds=2, compat=True,
    )  # fmt: skip
    server = algorithm.init_server({"params": jax.tree.map(jnp.asarray, maker.draw(0, 3)[0])})
    step = jax.jit(algorithm.update_server)
    for number in range(maker.SWA_ROUNDS):
        updates = maker.draw(number, 3)[1]
        first = {name: jnp.asarray(update[0]) for name, update in updates.items()}
        server = step(server, {"params": first}, jnp.float32(1))
    check(algorithm.variables(server)["params"], golden["swa"], maker)
