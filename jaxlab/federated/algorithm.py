"""A federated algorithm as pure functions, and what all of them share.

An algorithm says what the server holds and sends, what a client does with it, and how the server
moves by the mean of what comes back. Neither messages, nor time, nor the number of devices are
known to it: the same functions run in a simulation, client by client or many at once, and in the
process of a client.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxlab.federated.aggregators import StackAggregator
from jaxlab.federated.client_data import ClientView, Schedule
from jaxlab.federated.local import Limits
from jaxlab.federated.strategy import ConfigError
from jaxlab.federated.tasks import Sums, Task

Tree = Any


class LocalResult(NamedTuple):
    """What local training gives.

    Attributes:
      update: what is sent to the server.
      weight: number of examples that were processed, the weight in the mean.
      client_state: what the client keeps until it is asked again.
      sums: training metrics.
    """

    update: Tree
    weight: Float[Array, ""]
    client_state: Tree
    sums: Sums


class EvaluationInput(NamedTuple):
    """What a client evaluates with.

    Attributes:
      view: the examples to evaluate on.
      train: its training examples, for what adapts to them first.
      limits: sizes that bound the training examples.
      key: of the client and the evaluation.
      batch_size: examples of a forward pass; None means as many as in training.
    """

    view: ClientView
    train: ClientView
    limits: Limits
    key: Key[Array, ""]
    batch_size: int | None = None


class Others(NamedTuple):
    """What the clients of a round have offered each other.

    Attributes:
      offers: every leaf (clients, ...), that of the client itself among them.
      counts: which rows are of others and can be used, (clients,).
    """

    offers: Tree
    counts: Bool[Array, " clients"]


class Exchange(NamedTuple):
    """A round in which clients tell each other something before they answer, see `exchange`.

    Attributes:
      offer: `(broadcast, client state, view, limits, key) -> (what the client keeps until it hears
        of the others, what they are told)`.
      answer: `(broadcast, client state, view, what it kept, Others) -> LocalResult`.
    """

    offer: Callable[[Tree, Tree, ClientView, Limits, Key[Array, ""]], tuple[Tree, Tree]]
    answer: Callable[[Tree, Tree, ClientView, Tree, Others], LocalResult]


class Algorithm(NamedTuple):
    """A federated algorithm.

    Attributes:
      init_server: `variables -> server tree`.
      init_client: `variables -> state of a client before its first round`, `{}` if it keeps none.
      broadcast: `server tree -> tree` that clients are sent.
      local: `(broadcast, client state, view, limits, key) -> LocalResult`.
      update_server: `(server tree, mean of the updates, number of the updates) -> server tree`.
      evaluation: `server tree -> tree` that clients are sent to evaluate.
      evaluate: `(evaluation tree, client state, given) -> sums` of a client over `given.view`;
        names without a prefix belong to the model that counts, those like `global/loss` to others.
      variables: `server tree -> variables` that are published at the end.
      receive: `update as it is sent -> update` that is aggregated, see `compression`.
      rounds_per_step: rounds of a course that make one of its own; with more than one the course
        must be synchronous, and of a whole number of them.
      schedule: how much a client trains in a round; None if only who makes the course knows.
      task: what is learned, whose examples are looked at when a course is made; None looks at
        nothing.
      exchange: what clients tell each other before they answer; `local` is then that of a client
        without others. None is a round of one question and one answer.
      for_client: `(tree that is broadcast or evaluated, place of the client, from 0) -> tree` that
        this client is sent; None sends the whole tree to all.
      aggregator: what is made of the updates, if the algorithm is defined with a rule of its own.
    """

    init_server: Callable[[PyTree], Tree]
    init_client: Callable[[PyTree], Tree]
    broadcast: Callable[[Tree], Tree]
    local: Callable[[Tree, Tree, ClientView, Limits, Key[Array, ""]], LocalResult]
    update_server: Callable[[Tree, Tree, Float[Array, ""]], Tree]
    evaluation: Callable[[Tree], Tree]
    evaluate: Callable[[Tree, Tree, EvaluationInput], Sums]
    variables: Callable[[Tree], PyTree]
    receive: Callable[[Tree], Tree] = lambda update: update
    rounds_per_step: int = 1
    schedule: Schedule | None = None
    task: Task | None = None
    exchange: Exchange | None = None
    for_client: Callable[[Tree, Int[Array, ""]], Tree] | None = None
    aggregator: StackAggregator | None = None


def find_schedule(algorithm: Algorithm, schedule: Schedule | None) -> Schedule:
    """The schedule of an algorithm, which steps, virtual time and limits of a course follow.

    Args:
      algorithm: may know its own.
      schedule: that was given beside it; None takes the algorithm's.

    Raises:
      ConfigError: (a ValueError) if there is none, or they differ.
    """
    own = algorithm.schedule
    found = schedule if own is None else own
    if found is None:
        raise ConfigError(
            "the algorithm carries no schedule; give one, or make it with Algorithm(..., "
            "schedule=schedule)"
        )
    if schedule is not None and schedule != found:
        raise ConfigError(
            f"the algorithm was made with {found}, and beside it stands {schedule}; give the same "
            "one, or leave it out"
        )
    return found


WEIGHTINGS = ("processed", "examples", "clients")
"""What a client counts by in the mean: see `make_weigh`."""


def make_weigh(weighting: str) -> Callable[[ClientView, Array], Float[Array, ""]]:
    """What clients count by in the mean of their updates.

    Args:
      weighting: `processed`, the examples that a client went through in the round; `examples`,
        those that it has; `clients`, all clients equally.

    Returns:
      `(view, examples that were processed) -> weight`, 0 for a client that took no step.

    Raises:
      ConfigError: (a ValueError) if there is no such weighting.
    """
    if weighting not in WEIGHTINGS:
        raise ConfigError(f"weighting={weighting!r} must be one of {', '.join(WEIGHTINGS)}")

    def weigh(view: ClientView, num_samples: Array) -> Float[Array, ""]:
        counted = {"processed": num_samples, "examples": view.size}.get(weighting, 1)
        return jnp.where(num_samples > 0, counted, 0).astype(jnp.float32)

    return weigh


def difference(new: PyTree, old: PyTree) -> PyTree:
    """`new - old`, leaf by leaf."""
    return jax.tree.map(jnp.subtract, new, old)


def is_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every number of every leaf is finite."""
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(leaves).all() if leaves else jnp.asarray(True)
