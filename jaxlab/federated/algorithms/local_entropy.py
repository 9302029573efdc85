"""Local entropy: clients walk around the received model and send the mean of where they were.

References:
  Chaudhari et al. 2017, "Entropy-SGD", arXiv:1611.01838;
  `federatedscope/contrib/trainer/local_entropy.py` of FederatedScope 0.3.0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from jaxlab.federated.algorithm import Algorithm, LocalResult, Tree, difference, make_weigh
from jaxlab.federated.checks import check_not_negative, check_positive, check_rate
from jaxlab.federated.client_data import ClientView, Schedule
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.local import (
    Limits,
    StepInput,
    TrainCarry,
    make_sgd_step,
    pull_towards,
    run_steps,
    start_carry,
)
from jaxlab.federated.strategy import ConfigError
from jaxlab.federated.tasks import Task


class Walk(NamedTuple):
    """What a step changes.

    Attributes:
      carry: the walker.
      mean: moving mean of its parameters.
      gamma: how strongly it is drawn back.
    """

    carry: TrainCarry
    mean: PyTree
    gamma: Float[Array, ""]


def local_entropy(
    task: Task,
    learning_rate: float,
    schedule: Schedule,
    *,
    gamma: float = 0.03,
    growth: float = 1.0,
    noise: float = 1e-4,
    alpha: float = 0.75,
    server_tx: optax.GradientTransformation | None = None,
    weighting: str = "processed",
    compat: bool = False,
) -> Algorithm:
    """Langevin steps on `F(w) + gamma / 2 ||w - received||^2`; the moving mean is sent.

    After a gradient step normal noise of deviation `sqrt(eta) noise` is added to the parameters,
    and `mean = (1 - alpha) mean + alpha w`, which begins at the received model.

    Args:
      task: the learning problem.
      learning_rate: eta.
      schedule: how much a client trains in a round.
      gamma: strength of the pull in the first round.
      growth: factor of gamma from one round to the next.
      noise: eps.
      alpha: weight of the newest parameters in the mean.
      server_tx: optimizer of the server, see `fed_avg`.
      weighting: see `make_weigh`.
      compat: gamma grows with every batch that a client trains on, and stays with the client, as in
        the original.

    Raises:
      ConfigError: (a ValueError) if a number is out of range.
    """
    check_rate("learning_rate", learning_rate, "local_entropy")
    check_positive("local_entropy", growth=growth)
    check_not_negative("local_entropy", gamma=gamma, noise=noise)
    if not 0 < alpha <= 1:
        raise ConfigError(f"local_entropy: alpha={alpha} must be in (0, 1]")
    tx, weigh = optax.sgd(learning_rate), make_weigh(weighting)
    base = fed_avg(task, tx, schedule, server_tx=server_tx)
    deviation = learning_rate**0.5 * noise

    def local(
        received: Tree, state: Tree, view: ClientView, limits: Limits, key: Key[Array, ""]
    ) -> LocalResult:
        start = received["variables"]

        def step(walk: Walk, given: StepInput) -> Walk:
            step_key, noise_key = jax.random.split(given.key)
            penalty = pull_towards(start["params"], walk.gamma)
            moved = make_sgd_step(task, tx, penalty=penalty)(
                walk.carry, given._replace(key=step_key)
            )
            params = _add_noise(moved.variables["params"], deviation, noise_key)
            carry = moved._replace(variables={**moved.variables, "params": params})
            mean = jax.tree.map(lambda m, w: (1 - alpha) * m + alpha * w, walk.mean, params)
            return Walk(carry, mean, walk.gamma * growth if compat else walk.gamma)

        first = state["gamma"] if compat else received["gamma"]
        walk = Walk(start_carry(task, tx, start, view), start["params"], first)
        end = run_steps(step, walk, view, schedule, limits, key)
        delta = difference({**end.carry.variables, "params": end.mean}, start)
        kept = {"gamma": end.gamma} if compat else state
        weight = weigh(view, end.carry.num_samples)
        return LocalResult(delta, weight, kept, end.carry.sums)

    def update_server(server: Tree, mean: Tree, num_updates: Float[Array, ""]) -> Tree:
        moved = base.update_server(server["plain"], mean, num_updates)
        return {"plain": moved, "gamma": server["gamma"] * growth}

    return base._replace(
        init_server=lambda variables: {
            "plain": base.init_server(variables),
            "gamma": jnp.float32(gamma),
        },
        init_client=lambda variables: {"gamma": jnp.float32(gamma)} if compat else {},
        broadcast=lambda server: {
            "variables": base.broadcast(server["plain"]),
            "gamma": server["gamma"],
        },
        local=local,
        update_server=update_server,
        evaluation=lambda server: base.evaluation(server["plain"]),
        variables=lambda server: base.variables(server["plain"]),
    )


def _add_noise(params: PyTree, deviation: float, key: Key[Array, ""]) -> PyTree:
    leaves, structure = jax.tree.flatten(params)
    drawn = [
        leaf
        + deviation * jax.random.normal(jax.random.fold_in(key, number), leaf.shape, leaf.dtype)
        for number, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, drawn)
