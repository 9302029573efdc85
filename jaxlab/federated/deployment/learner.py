"""The server of a deployment: what it sends, and what it makes of what comes back.

The role is the one of simulations (`jaxlab.federated.server`); only here updates are arrays that
have come over a wire, and are looked at before they count.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.federated import wire
from jaxlab.federated.aggregators import (
    Aggregator,
    ModelAggregator,
    Rule,
    combine_updates,
)
from jaxlab.federated.algorithm import Tree, is_finite
from jaxlab.federated.course_parts import find_rule
from jaxlab.federated.deployment.agreement import (
    Agreement,
    Forms,
    find_forms,
)
from jaxlab.federated.evaluation import Summarize
from jaxlab.federated.messages import INFO, METRICS, MODEL, Message
from jaxlab.federated.monitoring import UNSEEN_SUFFIX, mean_metrics
from jaxlab.federated.roles import Role
from jaxlab.federated.samplers import Sampler, make_uniform_sampler
from jaxlab.federated.server import init_server, make_server
from jaxlab.federated.server_state import Evaluation, ServerProgram, ServerState, Update
from jaxlab.federated.traffic import SUMS, UPDATE, WEIGHT, broadcast_content

_logger = logging.getLogger(__name__)


class Learner(NamedTuple):
    """The server's side of a course.

    Attributes:
      agreement: what all agree on.
      forms: of what is exchanged.
      role: the server's.
      start: makes its state before anybody has joined.
      check: raises a ValueError for a message of a client whose content is not what it should be.
      program: what the role learns with.
    """

    agreement: Agreement
    forms: Forms
    role: Role
    start: Callable[[], ServerState]
    check: Callable[[Message], None]
    program: ServerProgram


def make_learner(
    agreement: Agreement,
    *,
    aggregator: Aggregator | None = None,
    sampler: Sampler | None = None,
    summarize: Summarize | None = None,
    is_converged: Callable[[Sequence[Evaluation]], bool] = lambda evaluations: False,
) -> Learner:
    """The server's side of a course, of the parts that `make_simulation` takes.

    Args:
      agreement: what all agree on.
      aggregator: what is made of the updates; None is the weighted mean with the discount of the
        strategy.
      sampler: who is asked; None is uniform.
      summarize: from the sums of all clients over a split to its metrics; None takes the mean over
        all examples.
      is_converged: whether the course ends early, asked after every evaluation.

    Raises:
      ConfigError: (a ValueError) if the parts do not fit together.
    """
    agreement = agreement.checked()
    config, algorithm = agreement.config, agreement.algorithm
    rule, forms = find_rule(config, algorithm, aggregator), find_forms(agreement)
    sampler = sampler or make_uniform_sampler()
    update_server, receive = jax.jit(algorithm.update_server), jax.jit(algorithm.receive)

    def aggregate(
        server: Tree, updates: Sequence[Update], version: int
    ) -> tuple[Tree, Sequence[int]]:
        current = rule
        if isinstance(current, ModelAggregator):
            current = current.at(algorithm.broadcast(server), version)
        weights, finite = _weights(updates)
        kept = np.where(finite, weights, 0.0)
        refused = [u.client for u, ok in zip(updates, finite, strict=True) if not ok]
        trees = [
            receive(_restore(forms, update)) if w > 0 else None
            for update, w in zip(updates, kept, strict=True)
        ]
        update = combine(trees, kept, np.asarray([u.staleness for u in updates]), current)
        if update is None:
            _logger.warning("round %d: no update counts, the model stays as it is", version)
            return server, refused
        return update_server(server, update, np.float32((kept > 0).sum())), refused

    def merge(server: Tree, answers: Mapping[int, Any], version: int) -> Mapping[str, float]:
        del server, version
        return merge_sums(
            answers, config.num_clients - config.num_unseen, summarize or mean_metrics
        )

    def sent(tree: Tree) -> dict[str, Any]:
        return broadcast_content(on_host(tree))

    program = ServerProgram(
        broadcast=lambda server, version: sent(algorithm.broadcast(server)),
        aggregate=aggregate,
        evaluation=lambda server, version: sent(algorithm.evaluation(server)),
        merge=merge,
        final=lambda server: sent(algorithm.evaluation(server)),
        is_converged=is_converged,
    )

    def start() -> ServerState:
        model = jax.tree.map(jnp.asarray, algorithm.init_server(agreement.variables))
        return init_server(config, model, sampler)

    def check(message: Message) -> None:
        check_answer(message, forms, config.ask_on_join)

    role = make_server(config, program, sampler)
    return Learner(agreement, forms, role, start, check, program)


def name_on_host(tree: Tree) -> dict[str, np.ndarray]:
    """The leaves of a tree by the names of their places, fetched from the devices at once."""
    return wire.name_leaves(on_host(tree))


def on_host(tree: Tree) -> Tree:
    """The tree with NumPy arrays as leaves, fetched from the devices at once."""
    return jax.tree.map(np.asarray, jax.device_get(tree))


def combine(trees: Sequence[Tree], weights: np.ndarray, staleness: np.ndarray, rule: Rule) -> Tree:
    """One update made of some, see `aggregators.combine_updates`.

    Args:
      trees: the updates; None where the weight is 0.
      weights: by which they count, (updates,).
      staleness: rounds between the model of each and the server's, (updates,).
      rule: what is made of them.
    """

    def take(place: int, factor: np.float32, after: Tree) -> Tree:
        del after
        return _scale(trees[place], factor)

    return combine_updates(rule, weights, staleness, take)


def merge_sums(answers: Mapping[int, Any], num_seen: int, summarize: Summarize) -> dict[str, float]:
    """Metrics of the sums that clients have sent.

    Args:
      answers: client -> split -> name -> (sum, count).
      num_seen: clients that train; metrics of the others are found under `SPLIT_unseen`.
      summarize: from the sums of all clients over a split to its metrics.
    """
    metrics: dict[str, float] = {}
    by_client = {client: answers[client][SUMS] for client in sorted(answers)}
    splits = dict.fromkeys(split for sums in by_client.values() for split in sums)
    for split in splits:
        for label, is_seen in ((split, True), (f"{split}{UNSEEN_SUFFIX}", False)):
            group = [
                sums[split]
                for client, sums in by_client.items()
                if split in sums and (client <= num_seen) == is_seen
            ]
            names = set.intersection(*map(set, group)) if group else set()
            if names:
                rows = {name: np.stack([sums[name] for sums in group]) for name in sorted(names)}
                metrics |= summarize(label, rows)
    return metrics


def check_answer(message: Message, forms: Forms, asked: Sequence[str]) -> None:
    """Whether the content of an answer is what it should be.

    Args:
      message: what a client has sent.
      forms: of what is exchanged.
      asked: what clients are asked when they join.

    Raises:
      ValueError: saying what is wrong.
    """
    content = message.content
    if message.type == MODEL:
        _check_keys(content, (UPDATE, WEIGHT), "an update")
        wire.restore_leaves(content[UPDATE], forms.update, "the update")
        weight = content[WEIGHT]
        if not _is_number(weight) or not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the update has the weight {weight!r}; wanted a number, 0 or more")
    elif message.type == METRICS:
        _check_keys(content, (SUMS,), "an answer to an evaluation")
        _check_sums(content[SUMS])
    elif message.type == INFO:
        _check_keys(content, asked, "what a client tells when it joins")
        wrong = {key: content[key] for key in asked if not isinstance(content[key], int | float)}
        if wrong:
            raise ValueError(f"a client that joins tells {wrong}; wanted numbers")


def _is_number(value: Any) -> bool:
    is_scalar = isinstance(value, np.ndarray) and value.shape == () and value.dtype.kind in "fiu"
    return is_scalar or isinstance(value, int | float)


def _check_keys(content: Any, keys: Sequence[str], what: str) -> None:
    if not isinstance(content, Mapping) or not set(keys) <= content.keys():
        found = sorted(content) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{what} holds {found}; wanted {sorted(keys)}")


def _check_sums(sums: Any) -> None:
    if not isinstance(sums, Mapping):
        raise ValueError(f"the sums of an evaluation are a {type(sums).__name__}")
    for split, values in sums.items():
        if not isinstance(values, Mapping):
            raise ValueError(f"the sums over {split!r} are a {type(values).__name__}")
        for name, value in values.items():
            if not isinstance(value, np.ndarray) or value.shape != (2,) or value.dtype.kind != "f":
                raise ValueError(f"{split}/{name} is no pair of a sum and a count")


def _restore(forms: Forms, update: Update) -> Tree:
    return wire.restore_leaves(update.content[UPDATE], forms.update, "the update")


def _weights(updates: Sequence[Update]) -> tuple[np.ndarray, np.ndarray]:
    """Weights of updates, and whether all their numbers are finite."""
    weights = np.asarray([float(update.content[WEIGHT]) for update in updates], np.float64)
    finite = [bool(is_finite(update.content[UPDATE])) for update in updates]
    return weights, np.asarray(finite, bool)


@jax.jit
def _scale(tree: Tree, factor: Float[Array, ""]) -> Tree:
    return jax.tree.map(lambda leaf: factor * leaf.astype(jnp.float32), tree)
