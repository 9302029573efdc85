"""The parts of a course: whether they fit together, and what of them can be compared."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlab.federated.aggregators import (
    Aggregator,
    LinearAggregator,
    ModelAggregator,
    StackAggregator,
    check_aggregator,
    weighted_mean,
)
from jaxlab.federated.algorithm import Algorithm
from jaxlab.federated.client_data import ClientData, Schedule
from jaxlab.federated.devices import Device
from jaxlab.federated.exchange import check_exchange
from jaxlab.federated.server_state import CourseConfig
from jaxlab.federated.strategy import ConfigError


def find_rule(config: CourseConfig, algorithm: Algorithm, aggregator: Any) -> Aggregator:
    """What is made of the updates.

    Args:
      config: the course.
      algorithm: may have a rule of its own.
      aggregator: the one that was given; None takes the weighted mean, with the discount of the
        strategy.

    Raises:
      ConfigError: (a ValueError) if it is none, if the algorithm has its own, or if fewer updates
        come than it needs.
    """
    if algorithm.aggregator is not None:
        if aggregator is not None:
            raise ConfigError(
                f"the algorithm is defined with the rule {algorithm.aggregator.name!r}; leave "
                "aggregator out"
            )
        if config.strategy.is_asynchronous and algorithm.aggregator.gives_all:
            raise ConfigError(
                f"kind={config.strategy.kind!r} with an algorithm that has a model for every "
                "client: two updates of one client would move its model at once; use "
                "kind='synchronous'"
            )
        aggregator = algorithm.aggregator
    strategy = config.strategy
    if aggregator is None:
        discount = strategy.staleness_exponent if strategy.is_asynchronous else 0.0
        aggregator = weighted_mean(staleness_exponent=discount)
    check_aggregator(aggregator)
    # A round of a time budget may bring any number of updates; others bring what they wait for.
    is_known = isinstance(aggregator, StackAggregator) and strategy.kind != "time_up"
    if is_known and aggregator.min_updates > strategy.num_updates:
        raise ConfigError(
            f"{aggregator.name} needs {aggregator.min_updates} updates and a round of this course "
            f"has {strategy.num_updates}: nothing would ever be learned. Take a larger cohort, or "
            "a rule that withstands fewer hostile clients"
        )
    return aggregator


def check_parts(
    config: CourseConfig,
    algorithm: Algorithm,
    sizes: np.ndarray,
    devices: Sequence[Device] | None,
    server_splits: Mapping[str, ClientData],
) -> None:
    """Looks whether the parts of a course fit together.

    Args:
      config: the course.
      algorithm: what server and clients compute.
      sizes: examples of the clients.
      devices: what they run on; None answers at once.
      server_splits: what the server evaluates on by itself.

    Raises:
      ConfigError: (a ValueError) if they do not.
    """
    if len(sizes) != config.num_clients:
        raise ConfigError(
            f"num_clients={config.num_clients} and the data has {len(sizes)} clients; they must "
            "be equal"
        )
    if server_splits and algorithm.for_client is not None:
        raise ConfigError(
            f"server_splits={sorted(server_splits)} with an algorithm that has a model for every "
            "client: there is none that the server could evaluate by itself; give them as splits"
        )
    _check_devices(config, devices)
    _check_rounds(config, algorithm.rounds_per_step)
    check_exchange(algorithm, config.strategy)


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


def comparable_settings(
    config: CourseConfig,
    schedule: Schedule,
    rule: Aggregator,
    data: ClientData,
    splits: Mapping[str, ClientData],
    durations: Sequence[int],
) -> dict[str, Any]:
    """What a course follows from, as far as it can be compared: name -> numbers or a text.

    Args:
      config: the course.
      schedule: how much a client trains.
      rule: what is made of the updates.
      data: training examples of the clients.
      splits: name -> examples that evaluations go over.
      durations: of the first answer of every client in a round, in microseconds.
    """
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
