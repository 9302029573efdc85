"""A course from its settings: data, task, algorithm, devices, and the server's rules.

`make_problem` is what all courses of a run share, `plan_course` and `plan_baseline` what one of
them is. Commands that simulate, deploy or evaluate put the same parts together::

    problem = make_problem(config)
    plan = plan_course(config, problem)
    simulation = make_simulation(problem, plan, mesh)
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import PyTree

from experiments.federated.data import load_data
from experiments.federated.learned import (
    example_shape,
    load_variables,
    make_contrastive,
    make_model,
    make_prepare,
    make_task,
    num_outputs,
)
from experiments.federated.methods import make_algorithm, make_optimizer
from experiments.federated.metrics import own_metric, shown_name, watched_metric
from experiments.federated.own import check_output, make_own_task, score_names
from experiments.federated.rules import (
    make_aggregator,
    make_devices,
    make_failures,
    make_sampler,
)
from experiments.federated.settings import BesideConfig, RunConfig
from jaxlab import federated
from jaxlab.federated import (
    Algorithm,
    ClientData,
    ConfigError,
    CourseConfig,
    Device,
    EarlyStop,
    Evaluation,
    Sampler,
    Schedule,
    Simulation,
    Task,
)
from jaxlab.federated.aggregators import Aggregator
from jaxlab.federated.datasets import FederatedData
from jaxlab.federated.evaluation import Summarize
from jaxlab.federated.monitoring import UNSEEN_SUFFIX
from jaxlab.federated.width import AUTO

INIT = 0
"""Purpose of a key that is made of a run's seed, beside that of `rules`."""


class Problem(NamedTuple):
    """What the courses of a run share.

    Attributes:
      data: the examples of all clients, on the host.
      module: the model.
      example: shape and type of one input of it.
      task: what is learned.
      variables: what every course starts from; of several models with FedEM.
      schedule: how much a client trains in a round.
      devices: what clients run on; None if every answer comes at once.
      fails: `(client, round) -> whether it does not answer`; None if all do.
      scores: what a task that is not of the labels measures beside the loss, as it is shown; None
        for others.
    """

    data: FederatedData
    module: nn.Module
    example: jax.ShapeDtypeStruct
    task: Task
    variables: PyTree
    schedule: Schedule
    devices: tuple[Device, ...] | None
    fails: Callable[[int, int], bool] | None
    scores: list[str] | None = None


class Plan(NamedTuple):
    """One course.

    Attributes:
      name: `sync` or `async`, by its pace; the one beside another of its kind is `beside`; that of
        a baseline is its kind.
      config: length and pace.
      algorithm: what is computed.
      clients: their names.
      train: their training examples.
      variables: what the course starts from.
      splits: what clients evaluate on.
      server_splits: what the server evaluates on by itself.
      sampler: who is asked; None is uniform.
      aggregator: what is made of the updates; None is the weighted mean.
      kind: `course`, or which baseline it is.
      early_stop: when a client of the baseline `local` stops; None lets all go on.
    """

    name: str
    config: CourseConfig
    algorithm: Algorithm
    clients: Sequence[str]
    train: ClientData
    variables: PyTree
    splits: dict[str, ClientData]
    server_splits: dict[str, ClientData]
    sampler: Sampler | None = None
    aggregator: Aggregator | None = None
    kind: Literal["course", "local", "global"] = "course"
    early_stop: EarlyStop | None = None


def make_problem(
    config: RunConfig, data: FederatedData | None = None, *, is_abstract: bool = False
) -> Problem:
    """Loads the data and makes what all courses of a run share.

    Args:
      config: the settings.
      data: takes the place of the data that the settings name.
      is_abstract: variables are shapes only, for what is traced and not run.

    Raises:
      FileNotFoundError: if files are missing.
      ModuleNotFoundError: if a package that brings data is not installed.
      ValueError: if data cannot be read, or model and data do not fit.
    """
    data = load_data(config.data) if data is None else data
    module, prepare = make_model(config.model, data), make_prepare(config.data.name, data)
    example = example_shape(data, prepare)
    task = _make_task(config, module, example, prepare, data)
    if config.model.name == "own" and not config.task.has_own_scores:
        check_output(config.model.factory, module, example, num_outputs(data))
    num_models = config.algorithm.num_mixed

    def init() -> PyTree:
        key = jax.random.fold_in(jax.random.key(config.seed), INIT)
        return federated.init_models(task, key, num_models) if num_models else task.init(key)

    if config.model.start:
        variables = load_variables(config.model.start, module, example, num_models)
    else:
        variables = jax.eval_shape(init) if is_abstract else jax.jit(init)()
    scores = None
    if config.task.has_own_scores:
        scores = [shown_name(name) for name in score_names(task, data.train.examples)]
    return Problem(
        data, module, example, task, variables, config.local.schedule,
        make_devices(config, data.num_clients), make_failures(config), scores,
    )  # fmt: skip


def _make_task(
    config: RunConfig,
    module: nn.Module,
    example: jax.ShapeDtypeStruct,
    prepare: Callable[[Any], Any],
    data: FederatedData,
) -> Task:
    """The task that settings name."""
    if config.task.factory:
        return make_own_task(config.task.factory, module, example, prepare)
    if config.task.name == "contrastive":
        return make_contrastive(config, module, example, data)
    return make_task(module, example, prepare, data, config.evaluation.scores)


def plan_run(config: RunConfig, problem: Problem) -> list[Plan]:
    """All courses of a run in the order in which they run: the main one is the last of its kind.

    Args:
      config: the settings of the run.
      problem: what its courses share.

    Raises:
      ConfigError: (a ValueError) with the numbers, if one cannot be run.
    """
    courses = [plan_course(config, problem)]
    if config.beside is not None:
        courses.insert(0, plan_course(config, problem, config.beside))
    return courses + [plan_baseline(config, problem, kind) for kind in config.baselines]


def chosen_plan(config: RunConfig, problem: Problem, name: str | None) -> Plan:
    """The course of a run that is to be evaluated.

    Args:
      config: the settings of the run.
      problem: what its courses share.
      name: of the course; None is the main one.

    Raises:
      ValueError: if the run has no such course.
    """
    named = {plan.name: plan for plan in plan_run(config, problem)}
    if name is not None and name not in named:
        raise ValueError(f"--course={name} is not in this run; it has {', '.join(named)}")
    main = [plan.name for plan in named.values() if plan.kind == "course"][-1]
    return named[name or main]


def plan_course(config: RunConfig, problem: Problem, beside: BesideConfig | None = None) -> Plan:
    """One course of a run, with all that its settings contradict.

    Args:
      config: the settings of the run.
      problem: what its courses share.
      beside: the settings of the second course; None is the first one.

    Raises:
      ConfigError: (a ValueError) with the numbers, if it cannot be run.
    """
    pace = config if beside is None else beside
    every = config.evaluation.every_rounds if beside is None else beside.every_rounds
    num_clients = problem.data.num_clients
    idle = problem.schedule.num_steps(np.asarray(problem.data.train.sizes)) == 0
    trained = ~np.asarray(idle)[: num_clients - config.num_unseen]
    if config.num_unseen >= num_clients:
        raise ConfigError(
            f"num_unseen={config.num_unseen} of {num_clients} clients leaves none that trains"
        )
    strategy = pace.strategy.resolve(num_clients - config.num_unseen)
    course = CourseConfig(
        num_clients, pace.num_rounds, strategy, num_unseen=config.num_unseen,
        eval_every_rounds=every, seed=config.seed,
    )  # fmt: skip
    algorithm = make_algorithm(
        config, problem.task, int(trained.sum()), pace.num_rounds, num_clients
    )
    name = "async" if strategy.is_asynchronous else "sync"
    if beside is not None and config.strategy.kind == beside.strategy.kind:
        name = "beside"
    return Plan(
        name, course, algorithm, problem.data.names, problem.data.train, problem.variables,
        _parts(config, problem, "splits"), _parts(config, problem, "by_server"),
        make_sampler(config, problem.devices, problem.variables),
        make_aggregator(config, strategy, algorithm, problem.data.train, problem.variables),
    )  # fmt: skip


def plan_baseline(config: RunConfig, problem: Problem, kind: Literal["local", "global"]) -> Plan:
    """What the courses of a run are compared with: plain local steps, and nobody sends anything.

    Args:
      config: the settings of the run.
      problem: what its courses share.
      kind: `local`, every client by itself, or `global`, one that has the training examples of all
        clients that train.

    Raises:
      ConfigError: (a ValueError) if the data has no examples for an evaluation.
    """
    evaluation, stop = config.evaluation, config.early_stop
    algorithm = federated.fed_avg(problem.task, make_optimizer(config.local), problem.schedule)
    variables, num_clients = problem.variables, problem.data.num_clients
    if config.algorithm.num_mixed:
        variables = jax.tree.map(lambda leaf: leaf[0], variables)
    splits = _parts(config, problem, "splits") | _parts(config, problem, "by_server")
    course = CourseConfig(
        num_clients, config.baseline_rounds or config.num_rounds, num_unseen=config.num_unseen,
        eval_every_rounds=evaluation.every_rounds, seed=config.seed,
    )  # fmt: skip
    names, train, seen = problem.data.names, problem.data.train, num_clients - config.num_unseen
    if kind == "local":
        metric = own_metric(watched_metric(config, problem.data.info.num_classes, problem.scores))
        early_stop = EarlyStop(metric, stop.patience, stop.delta, stop.mode)
        return Plan(
            kind, course, algorithm, names, train, variables, splits, {}, kind=kind,
            early_stop=early_stop if stop.patience else None,
        )  # fmt: skip
    merged = {name: _merged(part, 0, seen) for name, part in splits.items()}
    if config.num_unseen:
        merged |= {
            f"{name}{UNSEEN_SUFFIX}": _merged(part, seen, num_clients)
            for name, part in splits.items()
        }
    course = dataclasses.replace(course, num_clients=1, num_unseen=0)
    return Plan(
        kind, course, algorithm, ("all",), _merged(train, 0, seen), variables, merged, {},
        kind=kind,
    )  # fmt: skip


def _parts(config: RunConfig, problem: Problem, name: str) -> dict[str, ClientData]:
    """The examples that a setting of the evaluation names."""
    parts = {"train": problem.data.train, **problem.data.splits}
    wanted = getattr(config.evaluation, name)
    if missing := [split for split in wanted if split not in parts]:
        raise ConfigError(
            f"evaluation.{name}={wanted}: the data has no examples for {', '.join(missing)}; it "
            f"has {', '.join(parts)}. Set data.shares, or other splits"
        )
    return {split: parts[split] for split in wanted}


def _merged(data: ClientData, first: int, last: int) -> ClientData:
    """The examples of consecutive clients as those of one."""
    some = dataclasses.replace(data, offsets=data.offsets[first:last], sizes=data.sizes[first:last])
    return federated.merge_clients(some)


def make_simulation(
    problem: Problem,
    plan: Plan,
    mesh: Mesh,
    *,
    width: int | str = AUTO,
    summarize: Summarize | None = None,
    is_converged: Callable[[Sequence[Evaluation]], bool] = lambda evaluations: False,
) -> Simulation:
    """A course ready to run in this process.

    Args:
      problem: what the courses of a run share.
      plan: the course.
      mesh: the devices.
      width: clients of a device that are computed at once; `auto` chooses.
      summarize: from the sums of all clients to metrics.
      is_converged: whether the course ends early; clients that train alone stop by themselves.
    """
    parts = (plan.algorithm, plan.train, plan.variables, problem.schedule)
    options: dict[str, Any] = {"mesh": mesh, "splits": plan.splits, "width": width}
    options |= {} if summarize is None else {"summarize": summarize}
    if plan.kind == "course":
        return federated.make_simulation(
            plan.config, *parts, devices=problem.devices, fails=problem.fails,
            aggregator=plan.aggregator, sampler=plan.sampler, server_splits=plan.server_splits,
            is_converged=is_converged, **options,
        )  # fmt: skip
    course = plan.config
    options |= {"num_rounds": course.num_rounds, "eval_every_rounds": course.eval_every_rounds}
    if plan.kind == "global":
        return federated.make_global_simulation(
            *parts, seed=course.seed, is_converged=is_converged, **options
        )
    return federated.make_local_simulation(
        *parts, seed=course.seed, early_stop=plan.early_stop, num_unseen=course.num_unseen,
        **options,
    )  # fmt: skip
