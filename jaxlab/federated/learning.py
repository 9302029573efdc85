"""A course that learns: an algorithm, clients with data, and a server, put together.

::

    simulation = make_simulation(config, algorithm, data, variables, mesh=mesh)
    state = run_course(simulation.course, simulation.start())
    simulation.variables(state)  # what has been learned
    simulation.report(state)  # and what was seen on the way
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxlab.federated.aggregators import (
    Aggregator,
    LinearAggregator,
    ModelAggregator,
    StackAggregator,
    check_aggregator,
    weighted_mean,
)
from jaxlab.federated.algorithm import (
    Algorithm,
    EvaluationInput,
    LocalResult,
    Tree,
    find_schedule,
)
from jaxlab.federated.client import Answer, ClientProgram, Failure, make_client
from jaxlab.federated.client_data import (
    ClientData,
    Schedule,
    check_examples,
    view_client,
    warn_if_not_finite,
)
from jaxlab.federated.devices import Device, answer_time_us
from jaxlab.federated.evaluation import Evaluations, Summarize
from jaxlab.federated.executor import Executor
from jaxlab.federated.fingerprint import fingerprint
from jaxlab.federated.local import Limits
from jaxlab.federated.monitoring import EarlyStop, convergence, mean_metrics
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
from jaxlab.federated.store import ClientStore
from jaxlab.federated.strategy import ConfigError
from jaxlab.federated.traffic import Traffic, count_parameters, message_sizes
from jaxlab.federated.width import AUTO
from jaxlab.parallel import place, replicated

_logger = logging.getLogger(__name__)

AnswerTime = Callable[[Device, int, int, int], int]
"""`(device, samples of the round, bytes down, bytes up) -> microseconds`."""

INSTANT = Device(0.0, math.inf)
"""A device that answers at once: a course without virtual time."""


class Forms(NamedTuple):
    """Shapes and types of what server and clients exchange and keep.

    Attributes:
      server: the server tree.
      sent: what a client is sent to train.
      result: what its training gives.
      update: what the server makes of the update that is in it.
      evaluation: what it is sent to evaluate.
      sums: split -> what its evaluation gives.
    """

    server: Tree
    sent: Tree
    result: LocalResult
    update: Tree
    evaluation: Tree
    sums: Mapping[str, Tree]


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
    sizes, schedule = np.asarray(data.sizes), find_schedule(algorithm, schedule)
    _check_clients(config, sizes)
    _check_devices(config, devices)
    _check_rounds(config, algorithm.rounds_per_step)
    rule = _default_rule(config) if aggregator is None else aggregator
    check_aggregator(rule)
    _check_rule(rule, config)
    for name, part in {"train": data, **(splits or {}), **(server_splits or {})}.items():
        check_examples(algorithm.task, name, part)
        warn_if_not_finite(name, part)
    forms = find_forms(algorithm, data, variables, schedule, splits or {})
    message = message_sizes(forms.sent, forms.result, forms.evaluation, forms.sums)
    traffic = Traffic(message, count_parameters(variables))
    durations = [
        answer_time(device, schedule.num_samples(int(size)), message.down, message.up)
        for device, size in zip(devices or [INSTANT] * len(sizes), sizes, strict=True)
    ]
    sampler = sampler or make_uniform_sampler()
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
    server_program = _server_program(algorithm, executor, evaluations, rule, is_converged)
    num_samples = [schedule.num_samples(int(size)) for size in sizes]
    client_program = _client_program(executor, traffic, durations, num_samples, fails)
    course = Course(
        make_server(config, server_program, sampler),
        make_client(client_program),
        config.strategy.kind == "time_up",
    )
    idle = np.flatnonzero(np.asarray(schedule.num_steps(sizes)) == 0) + 1

    def start() -> CourseState:
        model = place(replicated(mesh), algorithm.init_server(variables))
        server = init_server(config, model, sampler, (int(client) for client in idle))
        return start_course(course, server, config.num_clients)

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
        settings=_settings(config, schedule, rule, data, splits or {}, durations),
        fingerprint=functools.cache(
            functools.partial(
                _fingerprint, algorithm, data, variables, schedule, splits or {}, forms
            )
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


def _client_program(
    executor: Executor,
    traffic: Traffic,
    durations: Sequence[int],
    num_samples: Sequence[int],
    fails: Callable[[int, int], bool] | None,
) -> ClientProgram:
    """What clients do; they send the ticket of a training, which is computed when it is needed.

    Args:
      executor: trains.
      traffic: counts.
      durations: of an answer of every client, in microseconds.
      num_samples: that every client goes through in a round.
      fails: see `make_simulation`.
    """

    def train(client: int, version: int, number: int) -> Answer | Failure:
        duration_us = durations[client - 1]
        dropped_out = fails is not None and fails(client, number)
        traffic.count_training(client, number, not dropped_out)
        if dropped_out:
            return Failure("dropped out", duration_us)
        return Answer(executor.ask(client, version), duration_us)

    return ClientProgram(
        train=train,
        evaluate=lambda client, version, number: traffic.count_evaluation(),
        info={NUM_SAMPLE: lambda client: num_samples[client - 1]},
    )


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
    exchange = _make_exchange(algorithm, _limits(schedule, np.asarray(data.sizes)))
    return jax.eval_shape(exchange, variables, data, dict(splits))


def _make_exchange(
    algorithm: Algorithm, limits: Limits
) -> Callable[[PyTree, ClientData, dict[str, ClientData]], Forms]:
    """All that a client and the server compute in a round, as one function that can be traced."""

    def exchange(variables: PyTree, data: ClientData, splits: dict[str, ClientData]) -> Forms:
        server, kept = algorithm.init_server(variables), algorithm.init_client(variables)
        view = view_client(data, jnp.int32(0))
        key, own_key = jax.random.key(0), jax.random.key(1)
        sent, evaluated = algorithm.broadcast(server), algorithm.evaluation(server)
        result = algorithm.local(sent, kept, view, limits, key)
        sums = {
            name: algorithm.evaluate(
                evaluated,
                kept,
                EvaluationInput(view_client(split, jnp.int32(0)), view, limits, own_key),
            )
            for name, split in splits.items()
        }
        update = algorithm.receive(result.update)
        return Forms(server, sent, result, update, evaluated, sums)

    return exchange


def _fingerprint(
    algorithm: Algorithm,
    data: ClientData,
    variables: PyTree,
    schedule: Schedule,
    splits: Mapping[str, ClientData],
    forms: Forms,
) -> str:
    """See `Simulation.fingerprint`."""
    exchange = _make_exchange(algorithm, _limits(schedule, np.asarray(data.sizes)))
    mean = jax.tree.map(lambda f: jax.ShapeDtypeStruct(f.shape, jnp.float32), forms.update)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    return fingerprint(
        jax.make_jaxpr(exchange)(variables, data, dict(splits)),
        jax.make_jaxpr(algorithm.update_server)(forms.server, mean, number),
        jax.make_jaxpr(algorithm.variables)(forms.server),
    )


def _limits(schedule: Schedule, sizes: np.ndarray) -> Limits:
    return Limits(max(1, int(sizes.max(initial=0))), schedule.max_epochs(sizes))


def _default_rule(config: CourseConfig) -> LinearAggregator:
    """The weighted mean, with the discount of the strategy."""
    strategy = config.strategy
    discount = strategy.staleness_exponent if strategy.is_asynchronous else 0.0
    return weighted_mean(staleness_exponent=discount)


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


def _check_clients(config: CourseConfig, sizes: np.ndarray) -> None:
    if len(sizes) != config.num_clients:
        raise ConfigError(
            f"num_clients={config.num_clients} and the data has {len(sizes)} clients; they must "
            "be equal"
        )


def _check_devices(config: CourseConfig, devices: Sequence[Device] | None) -> None:
    if devices is None and config.strategy.is_asynchronous:
        raise ConfigError(
            f"kind={config.strategy.kind!r} needs devices: without them every answer comes at "
            "once, nothing is ever late and no time budget is spent"
        )
    if devices is not None and len(devices) != config.num_clients:
        raise ConfigError(
            f"{len(devices)} devices for {config.num_clients} clients; give one a client, see "
            "assign_devices"
        )


def _check_rounds(config: CourseConfig, rounds_per_step: int) -> None:
    if rounds_per_step == 1:
        return
    if config.strategy.is_asynchronous:
        raise ConfigError(
            f"kind={config.strategy.kind!r} with an algorithm that takes {rounds_per_step} rounds "
            "for one, such as mime: late answers would belong to another one; use "
            "kind='synchronous', or mime_lite"
        )
    if config.num_rounds % rounds_per_step:
        raise ConfigError(
            f"num_rounds={config.num_rounds} with an algorithm that takes {rounds_per_step} rounds "
            f"for one, such as mime; use a multiple of {rounds_per_step}"
        )


def _settings(
    config: CourseConfig,
    schedule: Schedule,
    rule: Aggregator,
    data: ClientData,
    splits: Mapping[str, ClientData],
    durations: Sequence[int],
) -> dict[str, Any]:
    """What a course follows from, as far as it can be compared."""
    plain = dataclasses.asdict(config)
    strategy = {f"strategy.{name}": value for name, value in plain.pop("strategy").items()}
    steps = {f"schedule.{n}": value for n, value in dataclasses.asdict(schedule).items()}
    sizes = {f"splits[{name!r}].sizes": np.asarray(split.sizes) for name, split in splits.items()}
    return {
        **plain,
        **strategy,
        **steps,
        "aggregator": _rule_name(rule),
        "data.sizes": np.asarray(data.sizes),
        **sizes,
        "answer times (us)": np.asarray(durations, np.int64),
    }


def _rule_name(rule: Aggregator) -> str:
    if isinstance(rule, LinearAggregator):
        late, _ = rule.coefficients(np.array([1.0, 2.0]), np.array([0, 1]))
        return f"mean in which updates of weights 1 and 2 count {late.tolist()}"
    return "a rule of the model" if isinstance(rule, ModelAggregator) else rule.name
