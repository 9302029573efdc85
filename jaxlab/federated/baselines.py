"""What federated learning is compared with: every client alone, and all examples in one place.

Both are courses of the same engine, algorithms and evaluations: their numbers mean the same.

References:
  The methods `local` and `global` of FederatedScope 0.3.0 (`core/workers/client.py`,
  `core/auxiliaries/runner_builder.py`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, PyTree

from jaxlab.federated.algorithm import (
    Algorithm,
    EvaluationInput,
    LocalResult,
    Tree,
    find_schedule,
    is_finite,
)
from jaxlab.federated.client_data import ClientData, ClientView, Schedule
from jaxlab.federated.evaluation import Summarize, evaluated_names, merge_clients
from jaxlab.federated.learning import Simulation, make_simulation
from jaxlab.federated.local import Limits
from jaxlab.federated.monitoring import (
    UNSEEN_SUFFIX,
    Metric,
    check_metric,
    mean_metrics,
    metric_values,
)
from jaxlab.federated.server_state import CourseConfig, Evaluation
from jaxlab.federated.stopping import EarlyStop, StopState
from jaxlab.federated.store import ClientStore
from jaxlab.federated.strategy import Strategy
from jaxlab.federated.tasks import Sums

STOPPED = "stopped_clients"
"""Metric of a split: how many clients have stopped by themselves."""


def train_alone(algorithm: Algorithm, early_stop: EarlyStop | None = None) -> Algorithm:
    """Every client learns from its own examples: a federation of one for each.

    A client keeps `server`, what the server would have after rounds with this client only;
    `client`, what it keeps as a client; and `is_stopped`, after which it takes no more steps. What
    it sends is a number that tells whether its model is finite. The variables of the server stay
    what the course starts from.

    Args:
      algorithm: what a client would learn with others.
      early_stop: what a client remembers of its evaluations as `stop`; None remembers nothing.
    """

    def init_client(variables: PyTree) -> Tree:
        state = {
            "server": algorithm.init_server(variables),
            "client": algorithm.init_client(variables),
            "is_stopped": np.zeros((), bool),
        }
        if early_stop is None:
            return state
        # Single precision, as a device would give it back.
        best, num_without, recent, num_seen = early_stop.init(())
        floats = best.astype(np.float32), recent.astype(np.float32)
        counts = num_without.astype(np.int32), num_seen.astype(np.int32)
        return {**state, "stop": StopState(floats[0], counts[0], floats[1], counts[1])}

    def local(
        received: Tree, state: Tree, view: ClientView, limits: Limits, key: Key[Array, ""]
    ) -> LocalResult:
        del received
        own = view._replace(size=jnp.where(state["is_stopped"], 0, view.size))
        sent = algorithm.broadcast(state["server"])
        result = algorithm.local(sent, state["client"], own, limits, key)
        moved = algorithm.update_server(state["server"], result.update, jnp.float32(1.0))
        new = {"server": moved, "client": result.client_state}
        has_trained = result.weight > 0
        kept = {
            name: jax.tree.map(lambda a, b: jnp.where(has_trained, a, b), new[name], state[name])
            for name in new
        }
        told = jnp.where(is_finite(kept["server"]), 0.0, jnp.nan)
        return result._replace(update={"is_finite": told}, client_state={**state, **kept})

    def evaluate(received: Tree, state: Tree, given: EvaluationInput) -> Sums:
        del received
        tree = algorithm.evaluation(state["server"])
        return algorithm.evaluate(tree, state["client"], given)

    def update_server(server: Tree, mean: Tree, num_updates: Float[Array, ""]) -> Tree:
        del mean, num_updates
        return server

    return Algorithm(
        init_server=lambda variables: {"variables": variables},
        init_client=init_client,
        broadcast=lambda server: {},
        local=local,
        update_server=update_server,
        evaluation=lambda server: {},
        evaluate=evaluate,
        variables=lambda server: server["variables"],
        schedule=algorithm.schedule,
        task=algorithm.task,
    )


def make_local_simulation(
    algorithm: Algorithm,
    data: ClientData,
    variables: PyTree,
    schedule: Schedule | None = None,
    *,
    num_rounds: int,
    mesh: Mesh,
    early_stop: EarlyStop | None = None,
    splits: Mapping[str, ClientData] | None = None,
    summarize: Summarize = mean_metrics,
    num_unseen: int = 0,
    eval_every_rounds: int = 1,
    seed: int = 0,
    store: ClientStore | None = None,
    width: int | str | None = 1,
) -> Simulation:
    """A course in which every client trains alone.

    Args:
      algorithm: what a client would learn with others, such as `fed_avg`.
      data: training examples of the clients, on the host.
      variables: what every client starts from.
      schedule: how much a client trains in a round, if the algorithm does not know it.
      num_rounds: after which the course ends.
      mesh: the devices that compute.
      early_stop: ends the training of a client whose own metric does not improve, and the course
        when all have stopped; how many is the metric `split/stopped_clients`. A client without
        examples in the split goes on. None stops nobody.
      splits: name -> examples of all clients that evaluations go over.
      summarize: from the sums of all clients over a split to its metrics.
      num_unseen: clients, those with the last ids, that never train. Nothing is told of them: each
        has the model that it started from.
      eval_every_rounds: rounds between two evaluations; 0 evaluates at the end only.
      seed: of the course.
      store: where clients keep their models, made with the `init_client` of `train_alone(algorithm,
        early_stop)`; `store.rows()["server"]` holds all of them. None keeps them in memory.
      width: clients of a device that are computed at once; `auto` (or None) chooses.

    Raises:
      ConfigError: (a ValueError) if the parts do not fit together.
    """
    schedule = find_schedule(algorithm, schedule)
    alone = train_alone(algorithm, early_stop)
    num_clients = data.num_clients
    if store is None:
        store = ClientStore(jax.device_get(alone.init_client(variables)), num_clients)
    trains = np.asarray(schedule.num_steps(np.asarray(data.sizes))) > 0
    trains[num_clients - num_unseen :] = False
    stopping = None
    if early_stop is not None:
        names = evaluated_names(alone, variables, data)
        stopping = _Stopping(early_stop, store, summarize, trains)
        stopping.check(splits or {}, names)
    config = CourseConfig(
        num_clients, num_rounds, Strategy(cohort_size=max(1, int(trains.sum()))), num_unseen,
        eval_every_rounds, seed=seed,
    )  # fmt: skip
    chosen = summarize if stopping is None else stopping.summarize
    return make_simulation(
        config, alone, data, variables, schedule, mesh=mesh, splits=splits, store=store,
        width=width, summarize=_without_unseen(chosen, splits or {}),
        is_converged=(lambda e: False) if stopping is None else stopping.have_all_stopped,
    )  # fmt: skip


def make_global_simulation(
    algorithm: Algorithm,
    data: ClientData,
    variables: PyTree,
    schedule: Schedule | None = None,
    *,
    num_rounds: int,
    mesh: Mesh,
    splits: Mapping[str, ClientData] | None = None,
    eval_every_rounds: int = 1,
    seed: int = 0,
    **options: Any,
) -> Simulation:
    """A course of one client that has the examples of all.

    Args:
      algorithm: what it learns with, such as `fed_avg`.
      data: training examples of the clients, on the host.
      variables: what the course starts from.
      schedule: how much it trains in a round, if the algorithm does not know it.
      num_rounds: after which the course ends.
      mesh: the devices that compute; one of them trains.
      splits: name -> examples of all clients that evaluations go over.
      eval_every_rounds: rounds between two evaluations; 0 evaluates at the end only.
      seed: of the course.
      **options: others of `make_simulation`, such as `summarize` and `is_converged`.
    """
    config = CourseConfig(1, num_rounds, Strategy(), 0, eval_every_rounds, seed=seed)
    merged = {name: merge_clients(split) for name, split in (splits or {}).items()}
    return make_simulation(
        config, algorithm, merge_clients(data), variables, schedule, mesh=mesh, splits=merged,
        **options,
    )  # fmt: skip


def _without_unseen(summarize: Summarize, splits: Iterable[str]) -> Summarize:
    """Metrics of those who train; clients that never do have models that nobody has trained."""
    unseen = {f"{split}{UNSEEN_SUFFIX}" for split in splits}
    return lambda split, sums: {} if split in unseen else summarize(split, sums)


class _Stopping:
    """Stops clients by their own metric; what they remember lies in their store."""

    def __init__(
        self, stop: EarlyStop, store: ClientStore, summarize: Summarize, trains: np.ndarray
    ) -> None:
        self._stop, self._store, self._summarize = stop, store, summarize
        self._split, _, self._name = stop.metric.partition("/")
        self._trains = trains

    def check(self, splits: Iterable[str], names: Iterable[str]) -> None:
        """Looks whether clients will have the metric."""
        known = metric_values({name: np.ones(2) for name in names})
        check_metric(self._stop.metric, [f"{s}/{name}" for s in splits for name in known])

    def summarize(self, split: str, sums: dict[str, np.ndarray]) -> dict[str, float]:
        metrics = dict(self._summarize(split, sums))
        if split == self._split:
            metrics[f"{split}/{STOPPED}"] = self._note(metric_values(sums)[self._name])
        return metrics

    def _note(self, metric: Metric) -> float:
        """Takes what the first clients have, all that train among them; gives how many stopped."""
        rows, own = self._store.rows(), slice(0, len(metric.values))
        before = StopState(*(leaf[own] for leaf in rows["stop"]))
        after = self._stop.note(before, metric.values.astype(np.float32))
        for leaf, new in zip(rows["stop"], after, strict=True):
            counts = (metric.is_known & self._trains[own]).reshape(-1, *[1] * (new.ndim - 1))
            leaf[own] = np.where(counts, new, leaf[own])
        ended = self._stop.has_ended(StopState(*(leaf[own] for leaf in rows["stop"])))
        rows["is_stopped"][own] |= ended
        return float(rows["is_stopped"].sum())

    def have_all_stopped(self, evaluations: Sequence[Evaluation]) -> bool:
        return bool(evaluations[-1].metrics[f"{self._split}/{STOPPED}"] >= self._trains.sum())
