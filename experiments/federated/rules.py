"""The server's rules, who is asked, and what the clients run on."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from experiments.federated.settings import RunConfig
from jaxlab import federated
from jaxlab.federated import Algorithm, ClientData, ConfigError, Device, Sampler, Strategy
from jaxlab.federated.aggregators import Aggregator, StackAggregator

TRUST = 1
"""Purpose of the key of FLTrust, beside those of `tasks`."""


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


def make_sampler(config: RunConfig, devices: Sequence[Device] | None, variables: PyTree) -> Sampler:
    """Who is asked.

    Args:
      config: the settings.
      devices: of the clients.
      variables: what is sent to them.
    """
    if config.sampler.name == "uniform":
        return federated.make_uniform_sampler()
    assert devices is not None, "checked by RunConfig"
    leaves = jax.tree.leaves(variables)
    size = sum(math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in leaves)
    slowness = {
        client: federated.slowness(device, size) for client, device in enumerate(devices, start=1)
    }
    if config.sampler.name == "group":
        return federated.make_group_sampler(slowness, config.sampler.num_groups)
    return federated.make_responsiveness_sampler(slowness)


def make_aggregator(
    config: RunConfig,
    strategy: Strategy,
    algorithm: Algorithm,
    train: ClientData,
    variables: PyTree,
) -> Aggregator | None:
    """What is made of the updates; None for the mean that the course takes by itself.

    Args:
      config: the settings.
      strategy: the pace.
      algorithm: what clients do.
      train: their training examples.
      variables: what the course starts from.

    Raises:
      ConfigError: (a ValueError) if fewer updates come than the rule needs.
    """
    given = config.aggregator
    if given.name == "mean":
        if not given.ignore_weight:
            return None
        discount = strategy.staleness_exponent if strategy.is_asynchronous else 0.0
        return federated.weighted_mean(ignore_weight=True, staleness_exponent=discount)
    if given.name == "fl_trust":
        return _trust(config, algorithm, train, variables)
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


def _trust(
    config: RunConfig, algorithm: Algorithm, train: ClientData, variables: PyTree
) -> Aggregator:
    """FLTrust with some of the training examples, drawn from all clients, at the server."""
    wanted = config.aggregator.server_examples
    size = len(train.examples["y"])
    chosen = np.random.default_rng(config.seed).permutation(size)[:wanted]
    held = {name: np.asarray(values)[chosen] for name, values in train.examples.items()}
    key = jax.random.fold_in(jax.random.key(config.seed), TRUST)
    return federated.fl_trust(algorithm, config.local.schedule, held, variables, key=key)
