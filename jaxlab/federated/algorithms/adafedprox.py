"""FedProx whose penalty follows the loss.

References:
  Li et al. 2020, "Federated Optimization in Heterogeneous Networks", arXiv:1812.06127, section 5.3
  and appendix C.3.3: mu grows when the loss does, and shrinks when it has fallen some rounds in a
  row.
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from jaxlab.federated.algorithm import Algorithm, LocalResult, Tree, difference, make_weigh
from jaxlab.federated.checks import check_not_negative, check_optimizer, check_positive
from jaxlab.federated.client_data import ClientView, Schedule
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.local import Limits, evaluate_client, pull_towards, train_client
from jaxlab.federated.tasks import Task


def ada_fed_prox(
    task: Task,
    tx: optax.GradientTransformation,
    schedule: Schedule,
    *,
    mu: float = 0.0,
    change: float = 0.1,
    patience: int = 5,
    weighting: str = "processed",
) -> Algorithm:
    """FedProx with a weight mu of its penalty that the server adapts.

    Clients also send the loss of the model that they received over their examples. When the mean
    loss of a cohort is above that of the round before, mu grows by `change`; when it has fallen
    `patience` rounds in a row, mu shrinks by `change`, to no less than 0. With `change=0` this is
    FedProx.

    Args:
      task: the learning problem.
      tx: optimizer of the clients, new in every round.
      schedule: how much a client trains in a round.
      mu: at the start; the paper starts at 0 for clients that are alike and at 1 for others.
      change: of mu, 0.1 in the paper.
      patience: rounds, 5 in the paper.
      weighting: what a client counts by in both means, see `make_weigh`.

    Raises:
      ConfigError: (a ValueError) if a number is out of range.
    """
    check_optimizer("tx", tx, "ada_fed_prox")
    check_not_negative("ada_fed_prox", mu=mu, change=change)
    check_positive("ada_fed_prox", patience=patience)
    base, weigh = fed_avg(task, tx, schedule), make_weigh(weighting)

    def init_server(variables: PyTree) -> Tree:
        return {
            **base.init_server(variables),
            "mu": jnp.float32(mu),
            "loss": jnp.float32(jnp.inf),
            "falls": jnp.int32(0),
        }

    def broadcast(server: Tree) -> Tree:
        return {"variables": server["variables"], "mu": server["mu"]}

    def local(
        received: Tree, state: Tree, view: ClientView, limits: Limits, key: Key[Array, ""]
    ) -> LocalResult:
        start = received["variables"]
        total, count = evaluate_client(task, start, view, schedule.batch_size)["loss"]
        penalty = pull_towards(start["params"], received["mu"])
        end = train_client(task, tx, schedule, start, view, limits, key, penalty=penalty)
        update = {
            "variables": difference(end.variables, start),
            "loss": total / jnp.maximum(count, 1.0),
        }
        return LocalResult(update, weigh(view, end.num_samples), state, end.sums)

    def update_server(server: Tree, mean: Tree, num_updates: Float[Array, ""]) -> Tree:
        before, now = server["loss"], mean["loss"]
        # Nothing is known before the first round: its loss is no fall.
        falls = jnp.where((now < before) & jnp.isfinite(before), server["falls"] + 1, 0)
        is_long = falls >= patience
        step = jnp.where(now > before, change, jnp.where(is_long, -change, 0.0))
        return {
            **base.update_server(server, mean["variables"], num_updates),
            "mu": jnp.maximum(server["mu"] + step, 0.0),
            "loss": now,
            "falls": jnp.where(is_long, 0, falls),
        }

    return base._replace(
        init_server=init_server, broadcast=broadcast, local=local, update_server=update_server
    )
