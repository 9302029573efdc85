"""FLTrust: a server with some clean examples of its own trusts updates that point as its own does.

References:
  Cao et al. 2021, "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping",
  arXiv:2012.13995, algorithm 2.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from jaxlab.federated.aggregators import ModelAggregator, StackAggregator
from jaxlab.federated.algorithm import Algorithm, Tree, find_schedule
from jaxlab.federated.client_data import Schedule, gather_clients, view_client
from jaxlab.federated.local import Limits, squared_norm
from jaxlab.federated.strategy import ConfigError


def fl_trust(
    algorithm: Algorithm,
    schedule: Schedule,
    examples: Mapping[str, np.ndarray],
    variables: PyTree,
    *,
    key: Key[Array, ""],
) -> ModelAggregator:
    """The mean of the updates, scaled to the norm of the server's, weighted by their cosine to it.

    The server trains as a client would, on its own examples, from the model that clients of the
    round get. An update that points away from what it finds does not count; if none counts, the
    model stays.

    Args:
      algorithm: what clients do.
      schedule: how much the server trains; the one that the algorithm was made with.
      examples: those of the server, name -> (examples, ...); a hundred were enough in the paper.
      variables: what the course starts from.
      key: for the order of the examples; a round makes its own of it.

    Raises:
      ConfigError: (a ValueError) if the server has no batch to train on.
    """
    schedule = find_schedule(algorithm, schedule)
    size = len(next(iter(examples.values())))
    if schedule.num_samples(size) == 0:
        raise ConfigError(f"the server has {size} examples, which make no batch of {schedule}")
    data = gather_clients(examples, [np.arange(size)])
    view = view_client(jax.tree.map(jnp.asarray, data), jnp.int32(0))
    limits = Limits(size, schedule.max_epochs(np.array([size])))
    state = algorithm.init_client(variables)

    @jax.jit
    def train(sent: Tree, number: Array) -> Tree:
        own_key = jax.random.fold_in(key, number)
        return algorithm.receive(algorithm.local(sent, state, view, limits, own_key).update)

    def at(sent: Tree, number: int) -> StackAggregator:
        own = train(sent, jnp.int32(number))

        def combine(updates: PyTree, weights: Array, staleness: Array) -> PyTree:
            return trusted_mean(updates, own)

        return StackAggregator(combine, 1, "FLTrust")

    return ModelAggregator(at)


@jax.jit
def trusted_mean(updates: PyTree, own: PyTree) -> PyTree:
    """`sum_i t_i x_i ||own|| / ||x_i|| / sum_i t_i`; t_i is the cosine of x_i and own, at least 0.

    Args:
      updates: every leaf (updates, ...).
      own: the update of the server.

    Returns:
      One update, float32; zeros if all point away.
    """

    def dot(leaf: Array, other: Array) -> Float[Array, " updates"]:
        rows = leaf.astype(jnp.float32).reshape(leaf.shape[0], -1)
        return rows @ other.astype(jnp.float32).ravel()

    tiny = jnp.finfo(jnp.float32).tiny
    norms = jnp.sqrt(jax.vmap(squared_norm)(updates))
    own_norm = jnp.sqrt(squared_norm(own))
    dots = functools.reduce(jnp.add, jax.tree.leaves(jax.tree.map(dot, updates, own)))
    trust = jnp.maximum(dots / jnp.maximum(norms * own_norm, tiny), 0.0)
    factors = trust * own_norm / jnp.maximum(norms, tiny) / jnp.maximum(trust.sum(), tiny)

    def mean(leaf: Array) -> Array:
        return jnp.tensordot(factors, leaf.astype(jnp.float32), 1)

    return jax.tree.map(mean, updates)
