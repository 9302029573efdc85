"""A course that learns: an algorithm, clients with data, and a server, put together.

::

    simulation = make_simulation(config, algorithm, data, variables, mesh=mesh)
    state = run_course(simulation.course, simulation.start())
    simulation.variables(state)  # what has been learned
    simulation.report(state)  # and what was seen on the way
"""

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxlab.federated.aggregators import Aggregator, ModelAggregator
from jaxlab.federated.algorithm import Algorithm, Tree, find_schedule
from jaxlab.federated.client import Answer, ClientProgram, Failure, make_client
from jaxlab.federated.client_data import (
    ClientData,
    Schedule,
    check_examples,
    warn_if_not_finite,
)
from jaxlab.federated.course_parts import check_parts, comparable_settings, find_rule
from jaxlab.federated.devices import Device, answer_time_us
from jaxlab.federated.evaluation import Evaluations, Summarize
from jaxlab.federated.exchange import exchange_at_client, exchange_at_server
from jaxlab.federated.executor import Executor
from jaxlab.federated.forms import Forms, find_fingerprint, find_forms, find_limits
from jaxlab.federated.monitoring import mean_metrics
from jaxlab.federated.roles import Role
from jaxlab.federated.samplers import Sampler, make_uniform_sampler
from jaxlab.federated.server import NUM_SAMPLE, init_server, make_server
from jaxlab.federated.server_state import (
    CourseConfig,
    Evaluation,
    ServerProgram,
    ServerState,
    Update,
)
from jaxlab.federated.simulation import Course, CourseState, start_course
from jaxlab.federated.stopping import EarlyStop, convergence
from jaxlab.federated.store import ClientStore
from jaxlab.federated.traffic import (
    Traffic,
    count_parameters,
    message_sizes,
    offer_content,
    others_size,
)
from jaxlab.federated.width import AUTO
from jaxlab.federated.wire import packed_size
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
      report: `state -> name -> number`: rounds, virtual seconds, bytes, what was computed and
        wasted, where an ended course has converged (see `convergence`), and whatever
        `ServerState.counts` has seen.
      evaluate: `state -> split -> name -> (clients, 2)`, sums and counts of every client, of the
        model it would use now.
      traffic: bytes of every client and round.
      executor: trains the clients.
      evaluations: those under way.
      forms: shapes of all trees.
      settings: name -> what the course follows from, for checkpoints.
      fingerprint: gives a number of what the algorithm computes, for checkpoints, see
        `jaxlab.federated.fingerprint`; it is found out when it is asked for, once.
      mesh: the devices.
    """

    course: Course
    start: Callable[[], CourseState]
    variables: Callable[[CourseState], PyTree]
    report: Callable[[CourseState], dict[str, int | float]]
    evaluate: Callable[[CourseState], dict[str, dict[str, np.ndarray]]]
    traffic: Traffic
    executor: Executor
    evaluations: Evaluations
    forms: Forms
    settings: Mapping[str, Any]
    fingerprint: Callable[[], str]
    mesh: Mesh


def make_simulation(
    config: CourseConfig,
    algorithm: Algorithm,
    data: ClientData,
    variables: PyTree,
    schedule: Schedule | None = None,
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
      schedule: how much a client trains; None takes that of the algorithm, which must be the same.
      mesh: the devices that compute.
      devices: what each client runs on, in virtual time; None answers at once, which only a
        synchronous course can do.
      answer_time: what an answer costs on a device, from the bytes that are sent.
      fails: `(client, round) -> whether the client drops out` instead of answering, after the time
        that an answer takes; a function of these alone, if the course is to be resumed.
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
    schedule, sizes = find_schedule(algorithm, schedule), np.asarray(data.sizes)
    splits, server_splits = splits or {}, server_splits or {}
    rule = find_rule(config, algorithm, aggregator)
    check_parts(config, algorithm, sizes, devices, server_splits)
    for name, part in {"train": data, **splits, **server_splits}.items():
        check_examples(algorithm.task, name, part)
        warn_if_not_finite(name, part)
    forms = find_forms(algorithm, data, variables, schedule, splits)
    message = message_sizes(forms.sent, forms.result, forms.evaluation, forms.sums)
    traffic = Traffic(message, count_parameters(variables))
    clients = _Clients(schedule, sizes, devices, answer_time, fails, traffic, forms.offer)
    if store is None:
        store = ClientStore(jax.device_get(algorithm.init_client(variables)), config.num_clients)
    executor = Executor(
        algorithm, place(replicated(mesh), data), find_limits(schedule, sizes), mesh, store,
        jax.random.key(config.seed), np.asarray(schedule.num_steps(sizes)), width=width,
        cohort_size=config.strategy.cohort_size, compute_pending=config.strategy.is_asynchronous,
    )  # fmt: skip
    evaluations = Evaluations(
        algorithm, executor, splits, server_splits, variables, mesh, config,
        summarize or mean_metrics,
    )  # fmt: skip
    if isinstance(is_converged, EarlyStop):
        evaluations.check_metric(is_converged.metric, data)
    sampler = sampler or make_uniform_sampler()
    server = make_server(
        config, _server_program(algorithm, executor, evaluations, rule, is_converged), sampler
    )
    if algorithm.exchange is not None:
        server = exchange_at_server(server, clients.tell)
    course = Course(server, clients.role(executor), config.strategy.kind == "time_up")

    def start() -> CourseState:
        model = place(replicated(mesh), algorithm.init_server(variables))
        state = init_server(config, model, sampler, clients.idle)
        return start_course(course, state, config.num_clients)

    return Simulation(
        course=course,
        start=start,
        variables=lambda state: algorithm.variables(state.server.model),
        report=lambda state: _report(
            state.server, executor, traffic, _convergence(state.server, config, is_converged)
        ),
        evaluate=lambda state: evaluations.by_client(state.server.model, state.server.round),
        traffic=traffic,
        executor=executor,
        evaluations=evaluations,
        forms=forms,
        settings=comparable_settings(config, schedule, rule, data, splits, clients.durations),
        fingerprint=functools.cache(
            lambda: find_fingerprint(algorithm, data, variables, schedule, splits, forms)
        ),
        mesh=mesh,
    )


def _server_program(
    algorithm: Algorithm,
    executor: Executor,
    evaluations: Evaluations,
    rule: Aggregator,
    is_converged: Callable[[Sequence[Evaluation]], bool],
) -> ServerProgram:
    """What the server learns with; clients are sent the number of a version of the model."""
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

    return ServerProgram(
        broadcast=broadcast,
        aggregate=aggregate,
        evaluation=evaluations.run,
        merge=evaluations.merge,
        final=lambda server: None,
        discard=executor.discard,
        is_converged=is_converged,
    )


class _Clients:
    """What clients do; they send the ticket of a training, which is computed when it is needed."""

    def __init__(
        self,
        schedule: Schedule,
        sizes: np.ndarray,
        devices: Sequence[Device] | None,
        answer_time: AnswerTime,
        fails: Callable[[int, int], bool] | None,
        traffic: Traffic,
        offer: Tree,
    ) -> None:
        self._devices = devices or [INSTANT] * len(sizes)
        self._answer_time, self._fails, self._traffic = answer_time, fails, traffic
        self._offer, self._sizes, self._batch_size = offer, sizes, schedule.batch_size
        self._num_samples = [schedule.num_samples(int(size)) for size in sizes]
        self._first_up = traffic.sizes.up
        if offer is not None:
            self._first_up = packed_size(offer_content(offer))
        self._others_size = functools.cache(functools.partial(others_size, offer))
        self.idle = [int(i) for i in np.flatnonzero(np.asarray(schedule.num_steps(sizes)) == 0) + 1]
        self.durations = [
            answer_time(device, samples, traffic.sizes.down, self._first_up)
            for device, samples in zip(self._devices, self._num_samples, strict=True)
        ]

    def role(self, executor: Executor) -> Role:
        """The role of all clients.

        Args:
          executor: trains.
        """

        def train(client: int, version: int, number: int) -> Answer | Failure:
            duration_us = self.durations[client - 1]
            dropped_out = self._fails is not None and self._fails(client, number)
            up = 0 if dropped_out else self._first_up
            self._traffic.count(client, number, self._traffic.sizes.down, up)
            if dropped_out:
                return Failure("dropped out", duration_us)
            return Answer(executor.ask(client, version), duration_us)

        program = ClientProgram(
            train=train,
            evaluate=lambda client, version, number: self._traffic.count_evaluation(),
            info={NUM_SAMPLE: lambda client: self._num_samples[client - 1]},
        )
        role = make_client(program)
        return role if self._offer is None else exchange_at_client(role, train, self._answer)

    def tell(self, client: int, offers: Mapping[int, int]) -> list[int]:
        """What a client is told of the others: its own ticket, and how many they are."""
        return [offers[client], len(offers) - 1]

    def _answer(self, client: int, told: Sequence[int], number: int) -> Answer:
        """The update of a client that has heard of the others, after one more step."""
        ticket, num_others = told
        down, up = self._others_size(num_others), self._traffic.sizes.up
        self._traffic.count(client, number, down, up)
        samples = min(self._batch_size, int(self._sizes[client - 1]))
        return Answer(ticket, self._answer_time(self._devices[client - 1], samples, down, up))


def _report(
    server: ServerState,
    executor: Executor,
    traffic: Traffic,
    converged: Mapping[str, int | float],
) -> dict[str, int | float]:
    """See `Simulation.report`."""
    steps = executor.step_count
    return {
        "rounds": server.round,
        "virtual_seconds": server.clock_us / 1e6,
        "local_steps": steps.taken,
        "padding_waste": steps.waste,
        "excluded_clients": len(server.excluded),
        **converged,
        **traffic.report(),
        **dict(sorted(server.counts.items())),
    }


def _convergence(
    server: ServerState,
    config: CourseConfig,
    is_converged: Callable[[Sequence[Evaluation]], bool],
) -> dict[str, int | float]:
    """Where an ended course has converged, by the metric of its early stop if it has one."""
    if not server.finished:
        return {}
    if not isinstance(is_converged, EarlyStop):
        return convergence(server.evaluations, config.num_rounds)
    return convergence(
        server.evaluations, config.num_rounds, is_converged.metric,
        larger_is_better=is_converged.larger_is_better,
    )  # fmt: skip
