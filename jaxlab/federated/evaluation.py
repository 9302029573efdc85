"""Evaluations of a simulation: by every client over its own examples, or by the server itself.

A server has no state of a client and no examples to adapt to. What it evaluates is the shared
model, over examples of its own or over those of all clients as one, in large batches; over the
examples of clients this gives the numbers that they give together, up to the order of additions.

References:
  `federate.make_global_eval` and `federate.merge_test_data` of FederatedScope 0.3.0; it evaluates
  normalisation layers with statistics of the batch there, and with the running ones here.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree

from jaxlab.federated.algorithm import Algorithm, EvaluationInput, Tree
from jaxlab.federated.client_data import ClientData, view_client
from jaxlab.federated.cohort import Cohort, client_keys, make_evaluate
from jaxlab.federated.executor import Executor
from jaxlab.federated.local import Limits
from jaxlab.federated.monitoring import (
    SERVER_SUFFIX,
    UNSEEN_SUFFIX,
    Report,
    check_metric,
    mean_metrics,
)
from jaxlab.federated.server_state import CourseConfig
from jaxlab.federated.strategy import ConfigError
from jaxlab.federated.tasks import OF_CLIENT, Sums
from jaxlab.parallel import DATA_AXIS, place, replicated

SERVER_EVALUATION = 2
"""Purpose of keys, beside those of the executor: an evaluation by the server."""

Summarize = Callable[[str, dict[str, np.ndarray]], Mapping[str, float]]
"""`(split, name -> (clients, 2) sums and counts) -> metrics`."""

ServerEvaluation = Callable[[Tree, Key[Array, ""]], dict[str, dict[str, np.ndarray]]]
"""`(evaluation tree, key) -> split -> name -> (1, 2) sums and counts`."""


def merge_clients(data: ClientData) -> ClientData:
    """One client that has the examples of all, in the order of the clients.

    Args:
      data: examples of many clients, on the host.
    """
    offsets, sizes = np.asarray(data.offsets), np.asarray(data.sizes)
    pieces = [np.arange(o, o + s) for o, s in zip(offsets, sizes, strict=True)]
    rows = np.concatenate(pieces or [np.zeros(0, np.int64)])
    examples: dict[str, Array | np.ndarray] = dict(data.examples)
    if not np.array_equal(rows, np.arange(len(next(iter(examples.values()))))):
        examples = {name: np.asarray(values)[rows] for name, values in examples.items()}
    return ClientData(examples, np.zeros(1, np.int32), np.asarray([len(rows)], np.int32))


def make_server_evaluation(
    algorithm: Algorithm,
    variables: PyTree,
    splits: Mapping[str, ClientData],
    mesh: Mesh,
    batch_size: int = 256,
) -> ServerEvaluation:
    """A program that evaluates the shared model over examples that the server holds.

    For an algorithm with personal models it is what a client would have before its first round:
    the names that begin with `global/` belong to the shared model there.

    Args:
      algorithm: what is learned.
      variables: what the course starts from.
      splits: name -> examples; of how many clients does not matter, see `merge_clients`.
      mesh: the devices; each takes an equal part, but for scores of all examples at once, which one
        device computes.
      batch_size: examples of a forward pass.
    """
    if not splits:
        return lambda tree, key: {}
    num_parts = mesh.shape[DATA_AXIS]
    program = make_evaluate(algorithm, Limits(1, 1), mesh, batch_size=batch_size)
    held = {
        name: place(replicated(mesh), _cut(data, num_parts, _is_whole(algorithm, variables, data)))
        for name, data in splits.items()
    }
    first = jax.device_get(algorithm.init_client(variables))
    states = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (num_parts, *np.shape(leaf))), first)
    parts = jnp.arange(num_parts, dtype=jnp.int32)

    def evaluate(tree: Tree, key: Key[Array, ""]) -> dict[str, dict[str, np.ndarray]]:
        cohort = Cohort(parts, jnp.ones(num_parts, bool), client_keys(key, parts), states)
        found = {}
        for name, data in held.items():
            nothing = dataclasses.replace(data, sizes=jnp.zeros_like(data.sizes))
            sums = jax.device_get(program(tree, cohort, nothing, data))
            found[name] = {key: rows.sum(axis=0, keepdims=True) for key, rows in sums.items()}
        return found

    return evaluate


def evaluated_names(algorithm: Algorithm, variables: PyTree, data: ClientData) -> list[str]:
    """Names of the sums that an evaluation gives; nothing is computed.

    Args:
      algorithm: what is learned.
      variables: what the course starts from.
      data: examples of the clients.
    """

    def evaluate(variables: PyTree) -> Sums:
        view = view_client(jax.tree.map(jnp.asarray, data), jnp.int32(0))
        given = EvaluationInput(view, view, Limits(1, 1), jax.random.key(0))
        tree = algorithm.evaluation(algorithm.init_server(variables))
        return algorithm.evaluate(tree, algorithm.init_client(variables), given)

    return list(jax.eval_shape(evaluate, variables))


class Evaluations:
    """Those of a course: made when clients are asked for them, told when they have answered."""

    def __init__(
        self,
        algorithm: Algorithm,
        executor: Executor,
        splits: Mapping[str, ClientData],
        server_splits: Mapping[str, ClientData],
        variables: PyTree,
        mesh: Mesh,
        config: CourseConfig,
        summarize: Summarize,
    ) -> None:
        """Compute nothing yet.

        Args:
          algorithm: what is learned.
          executor: computes the clients.
          splits: name -> examples of all clients.
          server_splits: name -> examples that the server evaluates on.
          variables: what the course starts from.
          mesh: the devices.
          config: the course.
          summarize: from sums to metrics.

        Raises:
          ConfigError: (a ValueError) if a split is of another number of clients.
        """
        for name, split in splits.items():
            if split.num_clients != config.num_clients:
                raise ConfigError(
                    f"the split {name!r} has {split.num_clients} clients and the course "
                    f"{config.num_clients}; a client without examples has the size 0"
                )
        self._algorithm, self._executor, self._summarize = algorithm, executor, summarize
        self._variables, self._config = variables, config
        self._splits = {name: place(replicated(mesh), split) for name, split in splits.items()}
        self._sizes = {name: np.asarray(split.sizes) for name, split in splits.items()}
        self._server_sizes = {n: np.asarray(split.sizes) for n, split in server_splits.items()}
        self._by_server = make_server_evaluation(algorithm, variables, server_splits, mesh)
        self._key = jax.random.fold_in(jax.random.key(config.seed), SERVER_EVALUATION)
        self._everybody = np.arange(1, config.num_clients + 1, dtype=np.int32)
        self._is_seen = self._everybody <= config.num_clients - config.num_unseen
        self._found: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}

    def run(self, server: Tree, version: int) -> int:
        """Evaluates now, and not when the answers come.

        Clients may have been asked to train on by then, and what they keep would be what they have
        after that.

        Args:
          server: the server's tree.
          version: the round, which is what clients are sent.
        """
        tree = self._algorithm.evaluation(server)
        by_server = self._by_server(tree, jax.random.fold_in(self._key, version))
        self._found[version] = self._by_client(tree, version), by_server
        return version

    def by_client(self, server: Tree, version: int) -> dict[str, dict[str, np.ndarray]]:
        """Sums and counts of every client, of the model that it would use now.

        Args:
          server: the server's tree.
          version: the round, for the keys.

        Returns:
          Split -> name -> (clients, 2).
        """
        return self._by_client(self._algorithm.evaluation(server), version)

    def _by_client(self, tree: Tree, version: int) -> dict[str, dict[str, np.ndarray]]:
        return {
            name: self._executor.evaluate(tree, self._everybody, split, version)
            for name, split in self._splits.items()
        }

    def merge(self, server: Tree, answers: Mapping[int, Any], version: int) -> dict[str, float]:
        """Metrics of an evaluation.

        Args:
          server: the server's tree.
          answers: by the clients that have answered.
          version: the round.
        """
        by_client, by_server = self._found.pop(version)
        answered = np.isin(self._everybody, list(answers))
        metrics: dict[str, float] = {}
        for name, sums in by_client.items():
            for label, group in self._groups(name):
                rows = group & answered
                if rows.any():
                    metrics |= self._summarize(label, {k: each[rows] for k, each in sums.items()})
        for name, sums in by_server.items():
            metrics |= self._summarize(f"{name}{SERVER_SUFFIX}", sums)
        return metrics

    def snapshot(self) -> dict[int, Any]:
        """What was evaluated and not yet told, as a tree that has bytes."""
        return {version: list(found) for version, found in self._found.items()}

    def restore(self, saved: Mapping[int, Any]) -> None:
        """Goes on from a snapshot."""
        self._found = {
            version: (jax.tree.map(np.array, by_client), jax.tree.map(np.array, by_server))
            for version, (by_client, by_server) in saved.items()
        }

    def check_metric(self, metric: str, data: ClientData) -> None:
        """Looks whether evaluations will have a metric; nothing is computed.

        What a function of one's own makes of the sums is not known before the first evaluation.

        Args:
          metric: such as `val/loss`.
          data: training examples of the clients.

        Raises:
          ConfigError: (a ValueError) listing those that there will be.
        """
        summarize = self._summarize
        if isinstance(summarize, Report):
            summarize = dataclasses.replace(summarize, keep_raw=None)
        elif summarize is not mean_metrics:
            return

        names = evaluated_names(self._algorithm, self._variables, data)
        sizes = {f"{name}{SERVER_SUFFIX}": each for name, each in self._server_sizes.items()}
        for name, each in self._sizes.items():
            sizes |= {label: each[group] for label, group in self._groups(name)}
        available: set[str] = set()
        for label, each in sizes.items():
            pairs = np.stack([np.ones(len(each)), each], axis=1)
            available |= (
                summarize(label, dict.fromkeys(names, pairs)).keys() if each.size else set()
            )
        check_metric(metric, available)

    def _groups(self, split: str) -> tuple[tuple[str, np.ndarray], ...]:
        """Name of the metrics, and the clients that they are of."""
        return (split, self._is_seen), (f"{split}{UNSEEN_SUFFIX}", ~self._is_seen)


def _is_whole(algorithm: Algorithm, variables: PyTree, data: ClientData) -> bool:
    """Whether an evaluation has numbers that must see all examples at once."""
    return any(name.endswith(OF_CLIENT) for name in evaluated_names(algorithm, variables, data))


def _cut(data: ClientData, num_parts: int, is_whole: bool = False) -> ClientData:
    """The examples of all clients in equal parts, or all of them in the first."""
    whole = merge_clients(data)
    bounds = np.arange(num_parts + 1) * int(whole.sizes[0]) // num_parts
    if is_whole:
        bounds = np.where(np.arange(num_parts + 1) > 0, whole.sizes[0], 0)
    offsets, sizes = bounds[:-1].astype(np.int32), np.diff(bounds).astype(np.int32)
    return dataclasses.replace(whole, offsets=offsets, sizes=sizes)
