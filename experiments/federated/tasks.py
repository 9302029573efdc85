"""A course from its settings: data, task, algorithm, devices, and the server's rules.

`make_problem` is what all courses of a run share, `plan_course` what one of them is. Commands that
simulate, deploy or evaluate put the same parts together::

    problem = make_problem(config)
    plan = plan_course(config, problem)
    simulation = make_simulation(problem, plan, mesh)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from experiments.federated.data import load_data
from experiments.federated.methods import make_algorithm
from experiments.federated.settings import (
    BesideConfig,
    ModelConfig,
    RunConfig,
)
from jaxlab import federated
from jaxlab.checkpoints.foreign.names import flatten, unflatten
from jaxlab.federated import (
    Algorithm,
    ClientData,
    ConfigError,
    CourseConfig,
    Device,
    Evaluation,
    Sampler,
    Schedule,
    Simulation,
    Task,
    datasets,
    models,
)
from jaxlab.federated.aggregators import Aggregator, StackAggregator
from jaxlab.federated.datasets import FederatedData
from jaxlab.federated.datasets.image_files import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    MNIST_MEAN,
    MNIST_STD,
)
from jaxlab.federated.learning import Summarize
from jaxlab.federated.width import AUTO

MODEL = "model.safetensors"
"""What a course leaves: the shared model, with the names of the original."""

INIT, TRUST = 0, 1
"""Purposes of the keys that are made of a run's seed."""

Prepare = Callable[[Array], Array]


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
    """

    data: FederatedData
    module: nn.Module
    example: jax.ShapeDtypeStruct
    task: Task
    variables: PyTree
    schedule: Schedule
    devices: tuple[Device, ...] | None
    fails: Callable[[int, int], bool] | None


class Plan(NamedTuple):
    """One course.

    Attributes:
      name: `sync` or `async`, by its pace; the one beside another of its kind is `beside`.
      config: length and pace.
      algorithm: what is computed.
      sampler: who is asked.
      aggregator: what is made of the updates; None is the weighted mean.
      splits: what evaluations go over.
    """

    name: str
    config: CourseConfig
    algorithm: Algorithm
    sampler: Sampler
    aggregator: Aggregator | None
    splits: dict[str, ClientData]


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
    task = make_task(module, example, prepare, data)
    num_models = config.algorithm.num_models if config.algorithm.name == "fed_em" else 0

    def init() -> PyTree:
        key = jax.random.fold_in(jax.random.key(config.seed), INIT)
        return federated.init_models(task, key, num_models) if num_models else task.init(key)

    if config.model.start:
        variables = load_variables(config.model.start, module, example, num_models)
    else:
        variables = jax.eval_shape(init) if is_abstract else jax.jit(init)()
    return Problem(
        data, module, example, task, variables, config.local.schedule,
        make_devices(config, data.num_clients), make_failures(config),
    )  # fmt: skip


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
    algorithm = make_algorithm(config, problem.task, int(trained.sum()), pace.num_rounds)
    name = "async" if strategy.is_asynchronous else "sync"
    if beside is not None and config.strategy.kind == beside.strategy.kind:
        name = "beside"
    parts = {"train": problem.data.train, **problem.data.splits}
    missing = [split for split in config.evaluation.splits if split not in parts]
    if missing:
        raise ConfigError(
            f"evaluation.splits={config.evaluation.splits}: the data has no examples for "
            f"{', '.join(missing)}; it has {', '.join(parts)}. Set data.shares, or other splits"
        )
    splits = {split: parts[split] for split in config.evaluation.splits}
    return Plan(
        name, course, algorithm, make_sampler(config, problem),
        make_aggregator(config, problem, course, algorithm), splits,
    )  # fmt: skip


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
      is_converged: whether the course ends early.
    """
    options: dict[str, Any] = {} if summarize is None else {"summarize": summarize}
    return federated.make_simulation(
        plan.config, plan.algorithm, problem.data.train, problem.variables, problem.schedule,
        mesh=mesh, devices=problem.devices, fails=problem.fails, aggregator=plan.aggregator,
        sampler=plan.sampler, splits=plan.splits, is_converged=is_converged, width=width,
        **options,
    )  # fmt: skip


# Model and task.


def make_model(config: ModelConfig, data: FederatedData) -> nn.Module:
    """The model, of the size that the data wants.

    Args:
      config: which.
      data: tells classes, users and items.

    Raises:
      ConfigError: (a ValueError) if the model is not for such data.
    """
    examples, classes = data.train.examples, data.info.num_classes
    shape, name = examples["x"].shape[1:], config.name
    pictures = name in ("convnet2", "convnet5", "vgg11", "resnet")
    needs = {
        "pictures, (height, width, channels)": pictures and len(shape) != 3,
        "texts as numbers of symbols": name == "lstm" and (len(shape) != 1 or _is_float(examples)),
        "pairs of user and item": name == "matrix_factorization"
        and (shape != (2,) or _is_float(examples)),
        "targets that are numbers": name == "linear" and classes is not None,
        "targets that are classes": name not in ("linear", "mlp", "matrix_factorization")
        and classes is None,
    }
    if wrong := [what for what, missing in needs.items() if missing]:
        raise ConfigError(
            f"model.name={name!r} is for {' and '.join(wrong)}; {data.info.name} has inputs of "
            f"shape {shape} and {'numbers' if classes is None else f'{classes} classes'} to predict"
        )
    num_outputs = classes or max(1, math.prod(examples["y"].shape[1:]))
    hidden: dict[str, Any] = {"hidden": config.hidden} if config.hidden else {}
    match name:
        case "logistic" | "linear":
            return models.LogisticRegression(num_outputs)
        case "mlp":
            widths = (*config.widths, num_outputs)
            return models.MLP(widths, config.dropout, use_norm=config.use_norm)
        case "convnet2":
            return models.convnet2(
                num_outputs, dropout=config.dropout, use_norm=config.use_norm, **hidden
            )
        case "convnet5":
            return models.convnet5(num_outputs, dropout=config.dropout, **hidden)
        case "vgg11":
            return models.vgg11(num_outputs, dropout=config.dropout, **hidden)
        case "resnet":
            return models.ResNet(num_outputs)
        case "lstm":
            return models.LSTM(num_outputs, num_outputs, dropout=config.dropout, **hidden)
        case "matrix_factorization":
            parts = [p.examples["x"] for p in (data.train, data.val, data.test) if len(p.examples)]
            users, items = (max(int(x[:, i].max(initial=0)) for x in parts) + 1 for i in (0, 1))
            return models.MatrixFactorization(users, items, config.features)


def make_prepare(name: str, data: FederatedData) -> Prepare:
    """What the device does to the inputs of a batch: bytes of pictures become numbers."""
    x = data.train.examples["x"]
    if x.dtype != np.uint8 or x.ndim != 4:
        return lambda x: x
    mean, std = {
        "mnist": (MNIST_MEAN, MNIST_STD),
        "cifar10": (CIFAR10_MEAN, CIFAR10_STD),
        "cifar100": (CIFAR10_MEAN, CIFAR10_STD),
    }.get(name, ((0.0,), (1.0,)))
    return datasets.scale_pixels(mean, std)


def example_shape(data: FederatedData, prepare: Prepare) -> jax.ShapeDtypeStruct:
    """Shape and type of one input of the model."""
    x = data.train.examples["x"]
    given = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    prepared = jax.eval_shape(prepare, given)
    return jax.ShapeDtypeStruct(prepared.shape[1:], prepared.dtype)


def make_task(
    module: nn.Module, example: jax.ShapeDtypeStruct, prepare: Prepare, data: FederatedData
) -> Task:
    """Classification where the data has classes, else least squares."""
    if data.info.num_classes:
        return federated.classification(module, example, prepare, masked=True)
    return federated.regression(module, example, masked=True)


def load_variables(
    path: str, module: nn.Module, example: jax.ShapeDtypeStruct, num_models: int = 0
) -> PyTree:
    """Variables from a checkpoint of the original, or from `model.safetensors` of a run.

    Args:
      path: the file.
      module: the model.
      example: shape and type of one input.
      num_models: models of FedEM; 0 for one that is no mixture.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no checkpoint of this model, listing what differs.
    """
    from jaxlab.checkpoints.foreign import state_dicts

    if not Path(path).expanduser().is_file():
        raise FileNotFoundError(
            f"{path} does not exist; give a checkpoint of FederatedScope or {MODEL} of a run"
        )
    tensors = state_dicts.read_state_dict(Path(path).expanduser()).tensors
    if not num_models:
        return models.load_original(module, example, tensors)
    if not all("/" in name for name in tensors):
        raise ConfigError(
            f"{path} holds one model, and models of FedEM that begin equal stay equal; give "
            f"{MODEL} of a run with fed_em"
        )
    return unflatten({name: np.asarray(tensor) for name, tensor in tensors.items()})


def save_variables(
    path: Path, module: nn.Module, example: jax.ShapeDtypeStruct, variables: PyTree, num_models: int
) -> None:
    """Writes variables under the names of the original; those of several models under ours.

    Args:
      path: a safetensors file.
      module: the model.
      example: shape and type of one input.
      variables: of the model, or of several, whose leaves are (models, ...).
      num_models: models of FedEM; 0 for one that is no mixture.
    """
    from jaxlab.checkpoints.foreign import safetensors

    host = jax.device_get(variables)
    tensors = flatten(host) if num_models else models.save_original(module, example, host)
    safetensors.write_safetensors(path, tensors)


def _is_float(examples: Mapping[str, Any]) -> bool:
    return bool(jnp.issubdtype(examples["x"].dtype, jnp.floating))


# The server's rules, and the clients' devices.


def make_devices(config: RunConfig, num_clients: int) -> tuple[Device, ...] | None:
    """What every client runs on; None if answers take no time.

    Args:
      config: the settings.
      num_clients: clients.

    Raises:
      FileNotFoundError: if the file of profiles is missing.
      ConfigError: (a ValueError) if it has an entry that is no profile.
    """
    given = config.devices
    rng = np.random.default_rng(given.seed)
    if given.kind == "none":
        return None
    if given.kind == "file":
        profiles = federated.load_devices(given.path)
        return federated.assign_devices(profiles, num_clients, rng)
    speeds = given.compute_ms * np.exp(given.compute_spread * rng.standard_normal(num_clients))
    widths = given.bandwidth_kbps * np.exp(
        given.bandwidth_spread * rng.standard_normal(num_clients)
    )
    return tuple(Device(float(c), float(b)) for c, b in zip(speeds, widths, strict=True))


def make_failures(config: RunConfig) -> Callable[[int, int], bool] | None:
    """Whether a client does not answer in a round, drawn from both numbers and the seed."""
    rate, seed = config.devices.failure_rate, config.devices.seed
    if not rate:
        return None
    return lambda client, number: np.random.default_rng((seed, client, number)).random() < rate


def make_sampler(config: RunConfig, problem: Problem) -> Sampler:
    """Who is asked."""
    if config.sampler.name == "uniform":
        return federated.make_uniform_sampler()
    assert problem.devices is not None, "checked by RunConfig"
    leaves = jax.tree.leaves(problem.variables)
    size = sum(math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in leaves)
    slowness = {
        client: federated.slowness(device, size)
        for client, device in enumerate(problem.devices, start=1)
    }
    if config.sampler.name == "group":
        return federated.make_group_sampler(slowness, config.sampler.num_groups)
    return federated.make_responsiveness_sampler(slowness)


def make_aggregator(
    config: RunConfig, problem: Problem, course: CourseConfig, algorithm: Algorithm
) -> Aggregator | None:
    """What is made of the updates; None for the mean that the course takes by itself.

    Args:
      config: the settings.
      problem: data and task.
      course: length and pace.
      algorithm: what clients do.

    Raises:
      ConfigError: (a ValueError) if fewer updates come than the rule needs.
    """
    given, strategy = config.aggregator, course.strategy
    if given.name == "mean":
        if not given.ignore_weight:
            return None
        discount = strategy.staleness_exponent if strategy.is_asynchronous else 0.0
        return federated.weighted_mean(ignore_weight=True, staleness_exponent=discount)
    if given.name == "fl_trust":
        return _trust(config, problem, algorithm)
    rules: dict[str, Callable[[], StackAggregator]] = {
        "median": federated.median,
        "trimmed_mean": lambda: federated.trimmed_mean(given.ratio),
        "krum": lambda: federated.krum(given.num_byzantine, compat=given.compat),
        "multi_krum": lambda: federated.multi_krum(
            given.num_byzantine, given.num_selected, compat=given.compat
        ),
        "bulyan": lambda: federated.bulyan(given.num_byzantine, compat=given.compat),
        "norm_bounding": lambda: federated.norm_bounding(given.bound),
        "geometric_median": federated.geometric_median,
        "centered_clipping": lambda: federated.centered_clipping(given.radius),
    }
    rule = rules[given.name]()
    if strategy.kind != "time_up" and strategy.num_updates < rule.min_updates:
        raise ConfigError(
            f"aggregator.name={given.name!r} with num_byzantine={given.num_byzantine} needs "
            f"{rule.min_updates} updates, and the course aggregates {strategy.num_updates}; raise "
            "strategy.min_updates and cohort_size, or lower num_byzantine"
        )
    return rule


def _trust(config: RunConfig, problem: Problem, algorithm: Algorithm) -> Aggregator:
    """FLTrust with some of the training examples, drawn from all clients, at the server."""
    examples, wanted = problem.data.train.examples, config.aggregator.server_examples
    size = len(examples["y"])
    chosen = np.random.default_rng(config.seed).permutation(size)[:wanted]
    held = {name: np.asarray(values)[chosen] for name, values in examples.items()}
    key = jax.random.fold_in(jax.random.key(config.seed), TRUST)
    return federated.fl_trust(algorithm, problem.schedule, held, problem.variables, key=key)
