"""A model for every client, moved by the updates that point where its own does (ATC).

Clients with different tasks share what helps and keep apart what does not: the server holds a model
for each, and moves it by a mean in which the updates nearest to that client's own by cosine, or
those of its group, weigh more than the others. Clients answer in every round, as across silos; who
does not keeps its model.

References:
  Dong et al. 2022, "Collaborating Heterogeneous Natural Language Processing Tasks via Federated
  Learning" (ATC), arXiv:2212.05789; `ATCAggregator` in
  `federatedscope/nlp/hetero_tasks/aggregator/aggregator.py` of FederatedScope.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxlab.federated.aggregators import StackAggregator
from jaxlab.federated.algorithm import Algorithm, EvaluationInput, LocalResult, Tree
from jaxlab.federated.client_data import ClientView
from jaxlab.federated.clusters import (
    agglomerate,
    check_worth,
    clustered_means,
    cosine_similarity,
    nearest,
    same_group,
)
from jaxlab.federated.local import Limits
from jaxlab.federated.strategy import ConfigError
from jaxlab.federated.tasks import Sums

MODEL, UPDATE, PLACE = "model", "update", "place"
"""Fields of what a client is sent, and of what it sends back: its model, and which one that is."""


def clustered(
    base: Algorithm,
    num_clients: int,
    *,
    num_nearest: int | tuple[int, ...] | None = None,
    num_groups: int | None = None,
    inside_weight: float = 1.0,
    outside_weight: float = 0.0,
) -> Algorithm:
    """An algorithm in which every client has a model of its own at the server.

    It goes around all else, `clustered(keep_local(fed_avg(...), is_head), ...)`, and takes what
    `base` does with the mean update for each of its models by itself.

    Args:
      base: what a client does, and how a model moves by a mean.
      num_clients: of the course.
      num_nearest: updates that a client's model moves by, its own among them, one number for all or
        one a client.
      num_groups: in place of that, groups that the updates of a round are put into (average
        linkage).
      inside_weight: what an update of the cluster is worth, times the weight of its client.
      outside_weight: what the others are worth.

    Returns:
      The algorithm, with a rule of its own; `variables` of it are those of all clients, every leaf
      (clients, ...).

    Raises:
      ConfigError: (a ValueError) if the numbers contradict each other or are out of range.
    """
    _check(num_clients, num_nearest, num_groups)
    check_worth(inside_weight, outside_weight)
    counts = None
    if num_nearest is not None:
        counts = jnp.broadcast_to(jnp.asarray(num_nearest, jnp.int32), (num_clients,))

    def cluster(updates: Tree, places: Array) -> Bool[Array, "updates updates"]:
        if counts is not None:
            return nearest(updates, counts[places])
        assert num_groups is not None, "one of both is given"
        return same_group(agglomerate(cosine_similarity(updates), num_groups))

    def combine(sent: Tree, weights: Array, staleness: Array) -> Tree:
        del staleness
        together = cluster(sent[UPDATE], sent[PLACE].astype(jnp.int32))
        means = clustered_means(
            sent[UPDATE], weights, together, inside_weight=inside_weight,
            outside_weight=outside_weight,
        )  # fmt: skip
        return {UPDATE: means, PLACE: sent[PLACE]}

    def init_server(variables: PyTree) -> Tree:
        def for_all(leaf: Array) -> Array:
            leaf = jnp.asarray(leaf)
            return jnp.broadcast_to(leaf[None], (num_clients, *leaf.shape))

        return jax.tree.map(for_all, base.init_server(variables))

    def local(
        received: Tree, state: Tree, view: ClientView, limits: Limits, key: Key[Array, ""]
    ) -> LocalResult:
        result = base.local(received[MODEL], state, view, limits, key)
        return result._replace(update={UPDATE: result.update, PLACE: received[PLACE]})

    def update_server(server: Tree, moves: Tree, num_updates: Float[Array, ""]) -> Tree:
        places = moves[PLACE].astype(jnp.int32)
        rows = jax.tree.map(lambda leaf: leaf[places], server)
        moved = jax.vmap(base.update_server, in_axes=(0, 0, None))(rows, moves[UPDATE], num_updates)
        return jax.tree.map(lambda all_, new: all_.at[places].set(new), server, moved)

    def evaluate(received: Tree, state: Tree, given: EvaluationInput) -> Sums:
        return base.evaluate(received[MODEL], state, given)

    return base._replace(
        init_server=init_server,
        broadcast=jax.vmap(base.broadcast),
        local=local,
        update_server=update_server,
        evaluation=jax.vmap(base.evaluation),
        evaluate=evaluate,
        variables=jax.vmap(base.variables),
        receive=lambda sent: {UPDATE: base.receive(sent[UPDATE]), PLACE: sent[PLACE]},
        for_client=_for_client,
        aggregator=StackAggregator(jax.jit(combine), name="means of clusters", gives_all=True),
    )


def _for_client(models: Tree, place: Int[Array, ""]) -> Tree:
    """The model of one client."""
    return {MODEL: jax.tree.map(lambda leaf: leaf[place], models), PLACE: place}


def _check(
    num_clients: int, num_nearest: int | tuple[int, ...] | None, num_groups: int | None
) -> None:
    if (num_nearest is None) == (num_groups is None):
        raise ConfigError(
            f"clustered: num_nearest={num_nearest} and num_groups={num_groups}; give one of them"
        )
    if num_groups is not None and not 1 <= num_groups <= num_clients:
        raise ConfigError(f"num_groups={num_groups} must be from 1 to num_clients={num_clients}")
    if num_nearest is None:
        return
    counts = (num_nearest,) if isinstance(num_nearest, int) else tuple(num_nearest)
    wrong = not isinstance(num_nearest, int) and len(counts) != num_clients
    if wrong or min(counts) < 1:
        raise ConfigError(
            f"num_nearest={num_nearest} must be a number from 1 on, or one for each of the "
            f"{num_clients} clients"
        )
