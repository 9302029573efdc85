"""A mean for every client: of the updates that point where its own does.

What updates have to do with each other, by their cosines, and means in which some weigh more than
others; `algorithms.atc` makes a course of them.

References:
  Dong et al. 2022, "Collaborating Heterogeneous Natural Language Processing Tasks via Federated
  Learning" (ATC), arXiv:2212.05789; `ATCAggregator` in
  `federatedscope/nlp/hetero_tasks/aggregator/aggregator.py` of FederatedScope.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxlab.federated.strategy import ConfigError


def cosine_similarity(updates: PyTree) -> Float[Array, "updates updates"]:
    """Cosines between updates, all leaves together; 0 with an update of zeros.

    Args:
      updates: every leaf (updates, ...).
    """

    def products(leaf: Array) -> Array:
        rows = leaf.astype(jnp.float32).reshape(leaf.shape[0], -1)
        return jnp.matmul(rows, rows.T, precision="highest")

    dots = functools.reduce(jnp.add, [products(leaf) for leaf in jax.tree.leaves(updates)])
    norms = jnp.sqrt(jnp.diagonal(dots))
    scale = norms[:, None] * norms[None, :]
    return jnp.where(scale > 0, dots / jnp.where(scale > 0, scale, 1.0), 0.0)


def nearest(updates: PyTree, counts: Int[Array, " updates"]) -> Bool[Array, "updates updates"]:
    """Row i marks the `counts[i]` updates that are nearest to update i, itself among them.

    Args:
      updates: every leaf (updates, ...).
      counts: of every update, at least 1; clients with other tasks may want other numbers.
    """
    similar = cosine_similarity(updates)
    # Nothing is nearer to an update than itself, whatever rounding or equal updates say.
    similar = similar + 2.0 * jnp.eye(len(similar), dtype=similar.dtype)
    ranks = jnp.argsort(jnp.argsort(-similar, axis=1), axis=1)
    return ranks < counts[:, None]


def same_group(groups: Int[Array, " updates"]) -> Bool[Array, "updates updates"]:
    """Row i marks the updates of the group of update i."""
    return groups[:, None] == groups[None, :]


def agglomerate(
    similarity: Float[Array, "updates updates"], num_groups: int
) -> Int[Array, " updates"]:
    """Groups of updates, by average linkage: the two groups that are nearest on average are one.

    Args:
      similarity: cosines of updates.
      num_groups: that are left; with fewer updates each is one.

    Returns:
      The number of the group of every update, that of the first update in it.
    """
    size = len(similarity)
    apart = jnp.tril(jnp.ones((size, size), bool))  # of every pair of groups one half

    def unite(_: Array, members: Array) -> Array:
        sizes = members.sum(axis=1)
        pairs = jnp.maximum(sizes[:, None] * sizes[None, :], 1.0)
        between = jnp.matmul(jnp.matmul(members, similarity, precision="highest"), members.T)
        is_pair = (sizes[:, None] > 0) & (sizes[None, :] > 0) & ~apart
        place = jnp.where(is_pair, between / pairs, -jnp.inf).argmax()
        first, second = place // size, place % size
        members = members.at[first].add(members[second])
        return members.at[second].set(0.0)

    members = jnp.eye(size, dtype=jnp.float32)  # (group, update)
    members = jax.lax.fori_loop(0, max(0, size - num_groups), unite, members)
    return members.argmax(axis=0)


def check_worth(inside_weight: float, outside_weight: float) -> None:
    """Looks whether means can be made with what updates in and outside a cluster are worth.

    Raises:
      ConfigError: (a ValueError) if a weight is negative, or that inside not positive.
    """
    if outside_weight < 0 or not inside_weight > 0:
        raise ConfigError(
            f"inside_weight={inside_weight} must be positive and outside_weight={outside_weight} 0 "
            "or more"
        )


def clustered_means(
    updates: PyTree,
    weights: Float[Array, " updates"],
    together: Bool[Array, "updates updates"],
    *,
    inside_weight: float = 1.0,
    outside_weight: float = 0.0,
) -> PyTree:
    """For every client the weighted mean of the updates, by whether they are in its cluster.

    Args:
      updates: every leaf (updates, ...).
      weights: of the updates, positive, such as numbers of examples.
      together: which updates are in the cluster of each, see `nearest` and `same_group`.
      inside_weight: what updates in the cluster are worth.
      outside_weight: what the others are worth; with both equal all clients get the one mean of
        FedAvg.

    Returns:
      Every leaf (updates, ...), float32.

    Raises:
      ConfigError: (a ValueError) if a weight is negative, or that inside not positive.
    """
    check_worth(inside_weight, outside_weight)
    shares = jnp.where(together, inside_weight, outside_weight) * weights[None, :]
    shares = shares / shares.sum(axis=1, keepdims=True)

    def mean(leaf: Array) -> Array:
        return jnp.tensordot(shares, leaf.astype(jnp.float32), 1, precision="highest")

    return jax.tree.map(mean, updates)
