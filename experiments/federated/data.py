"""The data set that settings name, shared out among clients."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.federated.own import load_own_data
from experiments.federated.settings import DataConfig
from experiments.federated.settings.data import TABULAR
from jaxlab import federated
from jaxlab.federated import ClientData, ConfigError, datasets
from jaxlab.federated.datasets import CentralData, FederatedData

MAX_CLASSES = 100
"""Whole numbers of more different values are numbers to predict, unless settings say otherwise."""

_ASKED = {"auto": None, "classification": True, "regression": False}  # `classes` of the readers


def load_data(config: DataConfig) -> FederatedData:
    """The data set of the settings, shared out.

    Args:
      config: which, and who holds what.

    Raises:
      FileNotFoundError: if files are missing.
      ModuleNotFoundError: if a package that brings data is not installed.
      ValueError: if data cannot be read or shared out so.
    """
    data = _load(config)
    if config.noise_variance:
        data = data.map(
            lambda part: federated.add_client_noise(part, config.noise_variance, seed=config.seed)
        )
    return data.map(federated.rotate_client_images) if config.rotate else data


def _load(config: DataConfig) -> FederatedData:
    count, shares = config.num_clients or None, _shares(config)
    options: dict[str, Any] = {"seed": config.seed} | ({"shares": shares} if shares else {})
    leaf = options | {"subsample": config.subsample, "min_size": config.min_size}
    match config.name:
        case "synthetic":
            return datasets.make_logistic_mixture(
                count or 300, num_val=config.num_held_out, num_test=config.num_held_out,
                seed=config.seed,
            )  # fmt: skip
        case "toy":
            return datasets.make_linear_regression(count or 5, seed=config.seed)
        case "femnist":
            return datasets.load_leaf_femnist(config.path, **leaf)
        case "celeba":
            return datasets.load_leaf_celeba(config.path, config.images, **leaf)
        case "leaf_shakespeare":
            return datasets.load_leaf_shakespeare(config.path, **leaf)
        case "leaf":
            return datasets.load_leaf_numbers(config.path, **leaf)
        case "shakespeare":
            data = datasets.load_shakespeare(
                min_characters=config.min_characters, stride=config.stride, **options
            )
            return take_clients(data, config.subsample, config.seed)
        case "movielens":
            return datasets.load_movielens(
                config.path or None, by=config.by, num_clients=count, **options
            )
        case "own":
            own = load_own_data(config.factory, config)
            if isinstance(own, CentralData):
                return share_out(own, config)
            if config.splitter != "own":
                raise ConfigError(
                    f"splitter={config.splitter!r} and data.factory={config.factory!r} returned "
                    "FederatedData, whose clients are there; set it to 'own', or return CentralData"
                )
            return own
        case name if name in TABULAR:
            data = with_target(_load_central(config), config.task, is_typed=name == "npz")
            return share_out(data, config)
        case _:
            return share_out(_load_central(config), config)


def _load_central(config: DataConfig) -> CentralData:
    match config.name:
        case "mnist":
            return datasets.load_mnist(config.path or None)
        case "emnist":
            return datasets.load_emnist(config.path, config.kind)
        case "cifar10":
            return datasets.load_cifar10(config.path)
        case "cifar100":
            return datasets.load_cifar100(config.path)
        case "table":
            return datasets.load_table(
                config.table, config.target, client=config.client or None,
                classes=_ASKED[config.task],
            )  # fmt: skip
        case "csv":
            return datasets.load_csv(
                config.path, config.target, client=config.client or None,
                classes=_ASKED[config.task],
            )  # fmt: skip
        case "npz":
            return datasets.load_npz(config.path, client=config.client or "client")
        case name:
            raise AssertionError(f"{name} is checked by DataConfig")


def with_target(data: CentralData, task: str, *, is_typed: bool) -> CentralData:
    """A data set whose target `y` is classes, or numbers.

    Args:
      data: as it was read.
      task: `classification`, `regression`, or `auto`: texts, booleans, and whole numbers of at most
        `MAX_CLASSES` different values are classes.
      is_typed: whether the type of `y` tells whole numbers from others; tables have one type.

    Returns:
      The data set with `y` int32 and the number of classes, or with `y` float32. Small whole
      numbers stay what they are; other classes are numbered in sorted order.

    Raises:
      ConfigError: (a ValueError) if the target is missing or cannot be taken so.
    """
    source = data.info.source
    if "y" not in data.train:
        raise ConfigError(f"{source} has no target y; it has {', '.join(data.train)}")
    parts = [data.train] if data.test is None else [data.train, data.test]
    y = np.concatenate([np.asarray(part["y"]) for part in parts])
    is_text, values = y.dtype.kind in "US", np.unique(y)
    if task == "auto":
        is_whole = y.dtype.kind in "iub" or (not is_typed and bool(np.all(y == np.round(y))))
        is_few = is_text or (is_whole and len(values) <= MAX_CLASSES)
        is_read_so = not is_typed and data.info.num_classes is not None  # texts of a table
        is_class = is_read_so or (y.ndim == 1 and is_few)
        task = "classification" if is_class else "regression"
    if task == "regression":
        if is_text:
            raise ConfigError(f"task='regression': y of {source} has {values[:3]}; wanted numbers")
        return _with_y(data, None, lambda labels: labels.astype(np.float32))
    if y.ndim != 1:
        raise ConfigError(
            f"task='classification': y of {source} has shape {y.shape}; wanted a class an example"
        )
    is_small = y.dtype.kind in "iu" and values[0] >= 0 and values[-1] < MAX_CLASSES
    if is_small:
        return _with_y(data, int(values[-1]) + 1, lambda labels: labels.astype(np.int32))
    return _with_y(
        data, len(values), lambda labels: np.searchsorted(values, labels).astype(np.int32)
    )


def _with_y(
    data: CentralData, num_classes: int | None, convert: Callable[[np.ndarray], np.ndarray]
) -> CentralData:
    def replace(part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**part, "y": convert(np.asarray(part["y"]))}

    return dataclasses.replace(
        data,
        info=dataclasses.replace(data.info, num_classes=num_classes),
        train=replace(data.train),
        test=None if data.test is None else replace(data.test),
    )


def share_out(data: CentralData, config: DataConfig) -> FederatedData:
    """Makes clients of a data set that lies in one place.

    Args:
      data: the data set.
      config: who gets what.

    Raises:
      ConfigError: (a ValueError) if it cannot be shared out so.
    """
    data = take_examples(data, config.subsample, config.seed)
    labels, names = data.train["y"], None
    count, seed = config.num_clients, config.seed
    match config.splitter:
        case "own":
            if data.keys is None:
                has_no = f"no field client={config.client or 'client'!r}; name another one"
                if config.name == "own":
                    has_no = "no keys; give CentralData keys that say whose a row is"
                raise ConfigError(
                    f"splitter='own' and {data.info.source} has {has_no}, or choose a splitter"
                )
            split, keys = federated.split_by_key(data.keys, min_size=max(config.min_size, 1))
            names = [str(key) for key in keys]
        case "iid":
            split = federated.split_iid(len(labels), count, seed=seed)
        case "dirichlet":
            split = federated.split_by_dirichlet(
                labels, count, config.alpha, seed=seed, min_size=config.min_size
            )
        case "shards":
            split = federated.split_by_shards(
                labels, count, seed=seed, shards_per_client=config.shards_per_client
            )
        case "quantity":
            split = federated.split_by_quantity(
                len(labels), count, config.alpha, seed=seed, min_size=config.min_size
            )
    test = None
    is_alike = config.test_split == "alike" and data.info.num_classes is not None
    if data.test is not None and is_alike and config.splitter != "own":
        test = federated.split_like(data.test["y"], labels, split, seed=seed + 1)
    return datasets.federate(data, split, test, shares=_shares(config), names=names, seed=seed)


def take_examples(data: CentralData, share: float, seed: int) -> CentralData:
    """A random share of the training examples."""
    if share == 1.0:
        return data
    size = len(data.train["y"])
    kept = np.sort(np.random.default_rng(seed).permutation(size)[: math.ceil(share * size)])
    train = {name: values[kept] for name, values in data.train.items()}
    keys = None if data.keys is None else data.keys[kept]
    return dataclasses.replace(data, train=train, keys=keys)


def take_clients(data: FederatedData, share: float, seed: int) -> FederatedData:
    """A random share of the clients."""
    if share == 1.0:
        return data
    count = math.ceil(share * data.num_clients)
    kept = np.sort(np.random.default_rng(seed).permutation(data.num_clients)[:count])

    def take(part: ClientData) -> ClientData:
        offsets, sizes = np.asarray(part.offsets)[kept], np.asarray(part.sizes)[kept]
        rows = [np.arange(a, a + n) for a, n in zip(offsets, sizes, strict=True)]
        return federated.gather_clients(
            {name: np.asarray(values) for name, values in part.examples.items()}, rows
        )

    names = tuple(data.names[int(client)] for client in kept)
    return dataclasses.replace(data.map(take), names=names)


def _shares(config: DataConfig) -> tuple[float, float, float] | None:
    if not config.shares:
        return None
    train, val, test = config.shares
    return train, val, test
