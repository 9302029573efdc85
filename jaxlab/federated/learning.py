"""A course that learns: an algorithm, clients with data, and a server, put together.

::

    simulation = make_simulation(config, algorithm, data, variables, schedule, mesh=mesh)
    state = run_course(simulation.course, simulation.start())
    simulation.variables(state)  # what has been learned
    simulation.report(state)  # and what was seen on the way
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxlab.federated.aggregators import (
    Aggregator,
    ModelAggregator,
    StackAggregator,
    weighted_mean,
)
from jaxlab.federated.algorithm import Algorithm, Tree
from jaxlab.federated.client import Answer, ClientProgram, Failure, make_client
from jaxlab.federated.client_data import ClientData, Schedule, view_client
from jaxlab.federated.devices import Device, answer_time_us
from jaxlab.federated.evaluation import Evaluations, Summarize
from jaxlab.federated.executor import Executor
from jaxlab.federated.local import Limits
from jaxlab.federated.monitoring import EarlyStop, mean_metrics
from jaxlab.federated.samplers import Sampler, make_uniform_sampler
from jaxlab.federated.server import NUM_SAMPLE, init_server, make_server
from jaxlab.federated.server_state import CourseConfig, Evaluation, ServerProgram, Update
from jaxlab.federated.simulation import Course, CourseState, start_course
from jaxlab.federated.store import ClientStore
from jaxlab.federated.strategy import ConfigError
from jaxlab.federated.width import AUTO
from jaxlab.parallel import place, replicated

_logger = logging.getLogger(__name__)

AnswerTime = Callable[[Device, int, int, int], int]
"""`(device, samples of the round, bytes down, bytes up) -> microseconds`."""

INSTANT = Device(0.0, math.inf)
"""A device that answers at once: a course without virtual time."""


class Simulation(NamedTuple):
    """A course ready to run, once.

    Attributes:
      course: its roles.
      start: makes the state before the first message.
      variables: `state -> variables` of the model.
      report: `state -> name -> number`: rounds, virtual seconds, what was computed and wasted, and
        whatever `ServerState.counts` has seen.
      evaluate: `state -> split -> name -> (clients, 2)`, sums and counts of every client, of the
        model it would use now.
    """

    course: Course
    start: Callable[[], CourseState]
    variables: Callable[[CourseState], PyTree]
    report: Callable[[CourseState], dict[str, int | float]]
    evaluate: Callable[[CourseState], dict[str, dict[str, np.ndarray]]]


def make_simulation(
    config: CourseConfig,
    algorithm: Algorithm,
    data: ClientData,
    variables: PyTree,
    schedule: Schedule,
    *,
    mesh: Mesh,
    devices: Sequence[Device] | None = None,
    answer_time: AnswerTime = answer_time_us,
    fails: Callable[[int, int], bool] | None = None,
    aggregator: Aggregator | None = None,
    sampler: Sampler | None = None,
    splits: Mapping[str, ClientData] | None = None,
    server_splits: Mapping[str, ClientData] | None = None,
    summarize: Summarize | None = None,
    is_converged: Callable[[Sequence[Evaluation]], bool] = lambda evaluations: False,
    store: ClientStore | None = None,
    width: int | str | None = AUTO,
) -> Simulation:
    """Puts a course together that is simulated in this process.

    Clients for which the schedule has no step, such as those without examples, are never asked.

    Args:
      config: length and pace.
      algorithm: what server and clients compute.
      data: training examples of the clients, on the host.
      variables: what the course starts from.
      schedule: how much a client trains; the same that the algorithm was made with.
      mesh: the devices that compute.
      devices: what each client runs on, in virtual time; None answers at once, which only a
        synchronous course can do.
      answer_time: what an answer costs on a device.
      fails: `(client, round) -> whether the client drops out` instead of answering, after the time
        that an answer takes.
      aggregator: what is made of the updates; None is the weighted mean with the discount of the
        strategy.
      sampler: who is asked; None is uniform.
      splits: name -> examples of all clients that evaluations go over, such as `test`; metrics of
        clients that never train are found under `test_unseen`.
      server_splits: name -> examples that the server evaluates the shared model on by itself, its
        own or those of clients (then of all as one); found under `test_server`.
      summarize: from the sums of all clients over a split to its metrics, such as a `Report`; None
        takes the mean over all examples, see `mean_metrics`.
      is_converged: whether the course ends early, asked after every evaluation, such as an
        `EarlyStop`.
      store: where clients keep their state, made with `algorithm.init_client`; None keeps it in the
        memory of the host.
      width: clients of a device that are computed at once; `auto` (or None) is one on a CPU, and
        what is fastest in the first rounds on accelerators. The result does not depend on it but
        for the order of float additions.

    Raises:
      ConfigError: (a ValueError) if the parts do not fit together.
    """
    sizes = np.asarray(data.sizes)
    if len(sizes) != config.num_clients:
        raise ConfigError(
            f"num_clients={config.num_clients} and the data has {len(sizes)} clients; they must "
            "be equal"
        )
    durations = _durations(config, algorithm, data, variables, schedule, devices, answer_time)
    sampler = sampler or make_uniform_sampler()
    discount = config.strategy.staleness_exponent if config.strategy.is_asynchronous else 0.0
    rule = aggregator or weighted_mean(staleness_exponent=discount)
    _check_rule(rule, config)
    if store is None:
        store = ClientStore(jax.device_get(algorithm.init_client(variables)), config.num_clients)
    executor = Executor(
        algorithm,
        place(replicated(mesh), data),
        _limits(schedule, sizes),
        mesh,
        store,
        jax.random.key(config.seed),
        np.asarray(schedule.num_steps(sizes)),
        width=width,
        cohort_size=config.strategy.cohort_size,
        compute_pending=config.strategy.is_asynchronous,
    )
    evaluations = Evaluations(
        algorithm, executor, splits or {}, server_splits or {}, variables, mesh, config,
        summarize or mean_metrics,
    )  # fmt: skip
    if isinstance(is_converged, EarlyStop):
        evaluations.check_metric(is_converged.metric, data)
    update_server = jax.jit(algorithm.update_server)

    def broadcast(server: Tree, version: int) -> int:
        executor.publish(version, algorithm.broadcast(server))
        return version

    def aggregate(
        server: Tree, updates: Sequence[Update], version: int
    ) -> tuple[Tree, Sequence[int]]:
        tickets = [update.content for update in updates]
        current = rule
        if isinstance(current, ModelAggregator):
            current = current.at(algorithm.broadcast(server), version)
        result = executor.aggregate(tickets, [update.staleness for update in updates], current)
        executor.retire(version)
        client_of = {update.content: update.client for update in updates}
        refused = [client_of[ticket] for ticket in result.rejected]
        if result.update is None:
            _logger.warning("round %d: no update counts, the model stays as it is", version)
            return server, refused
        return update_server(server, result.update, np.float32(result.num_updates)), refused

    def train(client: int, version: int, number: int) -> Answer | Failure:
        duration_us = durations[client - 1]
        if fails is not None and fails(client, number):
            return Failure("dropped out", duration_us)
        return Answer(executor.ask(client, version), duration_us)

    server_role = make_server(
        config,
        ServerProgram(
            broadcast=broadcast,
            aggregate=aggregate,
            evaluation=evaluations.run,
            merge=evaluations.merge,
            final=lambda server: None,
            discard=executor.discard,
            is_converged=is_converged,
        ),
        sampler,
    )
    client_role = make_client(
        ClientProgram(
            train=train,
            evaluate=lambda client, version, number: None,
            info={NUM_SAMPLE: lambda client: schedule.num_samples(int(sizes[client - 1]))},
        )
    )
    course = Course(server_role, client_role, config.strategy.kind == "time_up")
    idle = np.flatnonzero(np.asarray(schedule.num_steps(sizes)) == 0) + 1

    def start() -> CourseState:
        model = place(replicated(mesh), algorithm.init_server(variables))
        server = init_server(config, model, sampler, (int(client) for client in idle))
        return start_course(course, server, config.num_clients)

    def report(state: CourseState) -> dict[str, int | float]:
        server, steps = state.server, executor.step_count
        return {
            "rounds": server.round,
            "virtual_seconds": server.clock_us / 1e6,
            "local_steps": steps.taken,
            "padding_waste": steps.waste,
            "excluded_clients": len(server.excluded),
            **dict(sorted(server.counts.items())),
        }

    def evaluate(state: CourseState) -> dict[str, dict[str, np.ndarray]]:
        return evaluations.by_client(state.server.model, state.server.round)

    return Simulation(
        course, start, lambda s: algorithm.variables(s.server.model), report, evaluate
    )


def tree_bytes(tree: PyTree) -> int:
    """Bytes of all arrays, or shapes, of a tree."""
    return sum(
        math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
    )


def _limits(schedule: Schedule, sizes: np.ndarray) -> Limits:
    return Limits(max(1, int(sizes.max(initial=0))), schedule.max_epochs(sizes))


def _check_rule(rule: Aggregator, config: CourseConfig) -> None:
    """A round of a time budget may bring any number of updates; others bring what they wait for."""
    if not isinstance(rule, StackAggregator) or config.strategy.kind == "time_up":
        return
    if rule.min_updates > config.strategy.num_updates:
        raise ConfigError(
            f"{rule.name} needs {rule.min_updates} updates and a round of this course has "
            f"{config.strategy.num_updates}: nothing would ever be learned. Take a larger cohort, "
            "or a rule that withstands fewer hostile clients"
        )


def _durations(
    config: CourseConfig,
    algorithm: Algorithm,
    data: ClientData,
    variables: PyTree,
    schedule: Schedule,
    devices: Sequence[Device] | None,
    answer_time: AnswerTime,
) -> list[int]:
    """Microseconds that the answer of every client takes."""
    sizes = np.asarray(data.sizes)
    if devices is None and config.strategy.is_asynchronous:
        raise ConfigError(
            f"kind={config.strategy.kind!r} needs devices: without them every answer comes at "
            "once, nothing is ever late and no time budget is spent"
        )
    if devices is not None and len(devices) != len(sizes):
        raise ConfigError(
            f"{len(devices)} devices for {len(sizes)} clients; give one a client, see "
            "assign_devices"
        )

    def exchange(variables: PyTree) -> tuple[Tree, Tree]:
        sent = algorithm.broadcast(algorithm.init_server(variables))
        view = view_client(jax.tree.map(jnp.asarray, data), jnp.int32(0))
        kept, limits = algorithm.init_client(variables), _limits(schedule, sizes)
        return sent, algorithm.local(sent, kept, view, limits, jax.random.key(0)).update

    down, up = (tree_bytes(tree) for tree in jax.eval_shape(exchange, variables))
    return [
        answer_time(device, schedule.num_samples(int(size)), down, up)
        for device, size in zip(devices or [INSTANT] * len(sizes), sizes, strict=True)
    ]
