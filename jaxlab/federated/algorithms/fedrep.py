"""FedRep: a head of one's own on a body that is learned together, trained one after the other.

References:
  Collins et al. 2021, "Exploiting Shared Representations for Personalized Federated Learning",
  arXiv:2102.07078, algorithm 1.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from jaxlab.federated.algorithm import Algorithm, LocalResult, Tree, difference, make_weigh
from jaxlab.federated.algorithms.entries import IsEntry, train_only
from jaxlab.federated.algorithms.personal import keep_local
from jaxlab.federated.checks import check_optimizer
from jaxlab.federated.client_data import ClientView, Schedule
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.local import Limits, train_client
from jaxlab.federated.tasks import Task


def fed_rep(
    task: Task,
    is_head: IsEntry,
    head_tx: optax.GradientTransformation,
    head_schedule: Schedule,
    tx: optax.GradientTransformation,
    schedule: Schedule,
    *,
    server_tx: optax.GradientTransformation | None = None,
    weighting: str = "processed",
) -> Algorithm:
    """A client trains its head with the body frozen, then the body with the head frozen.

    The head stays with the client, see `keep_local`; the body is averaged.

    Args:
      task: the learning problem.
      is_head: entries of the head, see `named`.
      head_tx: optimizer of the head, such as `optax.sgd(0.1)`.
      head_schedule: how much the head is trained in a round; two epochs in the original.
      tx: optimizer of the body.
      schedule: how much the body is trained in a round; one epoch in the original.
      server_tx: optimizer of the server, see `fed_avg`.
      weighting: see `make_weigh`; both trainings count.

    Raises:
      ConfigError: (a ValueError) if an optimizer is none.
    """
    check_optimizer("head_tx", head_tx, "fed_rep")
    check_optimizer("tx", tx, "fed_rep")
    base, weigh = fed_avg(task, tx, schedule, server_tx=server_tx), make_weigh(weighting)
    tx_of_head = train_only(head_tx, is_head)
    tx_of_body = train_only(tx, lambda name: not is_head(name))

    def local(
        received: Tree, state: Tree, view: ClientView, limits: Limits, key: Key[Array, ""]
    ) -> LocalResult:
        head_key, key = jax.random.split(key)
        head_limits = limits.at_least(head_schedule)
        head = train_client(task, tx_of_head, head_schedule, received, view, head_limits, head_key)
        body = train_client(task, tx_of_body, schedule, head.variables, view, limits, key)
        num_samples = head.num_samples + body.num_samples
        sums = jax.tree.map(jnp.add, head.sums, body.sums)
        delta = difference(body.variables, received)
        return LocalResult(delta, weigh(view, num_samples), state, sums)

    return keep_local(base._replace(local=local), is_head)
