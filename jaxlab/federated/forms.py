"""What server and clients exchange, as shapes; and a course as programs that can be compared.

Nothing is computed here: functions are traced.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxlab.federated.algorithm import (
    Algorithm,
    EvaluationInput,
    LocalResult,
    Tree,
    find_schedule,
)
from jaxlab.federated.client_data import ClientData, Schedule, check_examples, view_client
from jaxlab.federated.fingerprint import fingerprint
from jaxlab.federated.local import Limits


class Forms(NamedTuple):
    """Shapes and types of what server and clients exchange and keep.

    Attributes:
      server: the server tree.
      broadcast: what it sends all clients of a round to train.
      sent: what one of them gets of it.
      result: what its training gives.
      update: what the server makes of the update that is in it.
      evaluation: what a client is sent to evaluate.
      sums: split -> what its evaluation gives.
      offer: what a client tells the others of its round; None if nothing.
    """

    server: Tree
    broadcast: Tree
    sent: Tree
    result: LocalResult
    update: Tree
    evaluation: Tree
    sums: Mapping[str, Tree]
    offer: Tree = None


def find_forms(
    algorithm: Algorithm,
    data: ClientData,
    variables: PyTree,
    schedule: Schedule | None,
    splits: Mapping[str, ClientData],
) -> Forms:
    """Shapes and types of what server and clients exchange; nothing is computed.

    Args:
      algorithm: what they compute.
      data: training examples of the clients.
      variables: what the course starts from.
      schedule: how much a client trains; None takes that of the algorithm.
      splits: name -> examples that evaluations go over.

    Raises:
      ConfigError: (a ValueError) if the schedule is not that of the algorithm, or its task cannot
        learn from the examples.
    """
    schedule = find_schedule(algorithm, schedule)
    for name, part in {"train": data, **splits}.items():
        check_examples(algorithm.task, name, part)
    round_of_one = _make_round(algorithm, find_limits(schedule, np.asarray(data.sizes)))
    return jax.eval_shape(round_of_one, variables, data, dict(splits))


def find_fingerprint(
    algorithm: Algorithm,
    data: ClientData,
    variables: PyTree,
    schedule: Schedule,
    splits: Mapping[str, ClientData],
    forms: Forms,
) -> str:
    """A number of what an algorithm computes, see `fingerprint`.

    Args:
      algorithm: what server and clients compute.
      data: training examples of the clients.
      variables: what the course starts from.
      schedule: how much a client trains.
      splits: name -> examples that evaluations go over.
      forms: of the trees, see `find_forms`.
    """
    round_of_one = _make_round(algorithm, find_limits(schedule, np.asarray(data.sizes)))
    rule = algorithm.aggregator
    axes = (1,) if rule is not None and rule.gives_all else ()
    mean = jax.tree.map(lambda f: jax.ShapeDtypeStruct((*axes, *f.shape), np.float32), forms.update)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    return fingerprint(
        jax.make_jaxpr(round_of_one)(variables, data, dict(splits)),
        jax.make_jaxpr(algorithm.update_server)(forms.server, mean, number),
        jax.make_jaxpr(algorithm.variables)(forms.server),
    )


def find_limits(schedule: Schedule, sizes: np.ndarray) -> Limits:
    """The sizes that bound clients.

    Args:
      schedule: how much they train.
      sizes: examples of each.
    """
    return Limits(max(1, int(sizes.max(initial=0))), schedule.max_epochs(sizes))


def _make_round(
    algorithm: Algorithm, limits: Limits
) -> Callable[[PyTree, ClientData, dict[str, ClientData]], Forms]:
    """All that a client and the server compute in a round, as one function that can be traced."""
    for_client = algorithm.for_client or (lambda tree, place: tree)

    def round_of_one(variables: PyTree, data: ClientData, splits: dict[str, ClientData]) -> Forms:
        server, kept = algorithm.init_server(variables), algorithm.init_client(variables)
        place = jnp.int32(0)
        view = view_client(data, place)
        key, own_key, offer_key = (jax.random.key(number) for number in range(3))
        broadcast = algorithm.broadcast(server)
        sent, evaluated = (
            for_client(tree, place) for tree in (broadcast, algorithm.evaluation(server))
        )
        result = algorithm.local(sent, kept, view, limits, key)
        sums = {
            name: algorithm.evaluate(
                evaluated,
                kept,
                EvaluationInput(view_client(split, place), view, limits, own_key),
            )
            for name, split in splits.items()
        }
        update, offer = algorithm.receive(result.update), None
        if algorithm.exchange is not None:
            _, offer = algorithm.exchange.offer(sent, kept, view, limits, offer_key)
        return Forms(server, broadcast, sent, result, update, evaluated, sums, offer)

    return round_of_one
