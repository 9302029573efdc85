"""A data set before and after it is shared out, and the examples that clients keep for tests."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int64, Shaped

from jaxlab.federated.client_data import ClientData, gather_clients
from jaxlab.federated.splitters import Split, split_iid
from jaxlab.federated.strategy import ConfigError

Arrays = dict[str, np.ndarray]
Shares = tuple[float, float, float]
"""Parts of a client's examples for training, validation and test."""

DEFAULT_SHARES: Shares = (0.6, 0.2, 0.2)


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What a data set is, and where it comes from.

    Attributes:
      name: of the data set.
      source: files or package with its version.
      licence: of the data, or who gives it; empty if unknown.
      num_classes: of the labels `y`; None if they are no classes.
    """

    name: str
    source: str
    licence: str = ""
    num_classes: int | None = None


@dataclasses.dataclass(frozen=True)
class CentralData:
    """A data set that lies in one place.

    Attributes:
      info: what it is.
      train: name -> (examples, ...).
      test: the official test part, in the same form; None if there is none.
      keys: whose every example of `train` is, where the data says so; see `split_by_key`.
    """

    info: DataInfo
    train: Arrays
    test: Arrays | None = None
    keys: Shaped[np.ndarray, " examples"] | None = None


@dataclasses.dataclass(frozen=True)
class FederatedData:
    """A data set of many clients, NumPy arrays on the host.

    Attributes:
      info: what it is.
      names: of the clients, in their order.
      train: what they train on.
      val: what they validate on; clients may have none.
      test: what they test on; clients may have none.
    """

    info: DataInfo
    names: tuple[str, ...]
    train: ClientData
    val: ClientData
    test: ClientData

    @property
    def num_clients(self) -> int:
        """Number of clients."""
        return len(self.names)

    @property
    def splits(self) -> dict[str, ClientData]:
        """What evaluations can go over, as `make_simulation` takes it: `val` and `test`."""
        held = {"val": self.val, "test": self.test}
        return {name: data for name, data in held.items() if np.asarray(data.sizes).any()}

    def map(self, change: Callable[[ClientData], ClientData]) -> "FederatedData":
        """The same data with all three parts changed."""
        train, val, test = change(self.train), change(self.val), change(self.test)
        return dataclasses.replace(self, train=train, val=val, test=test)


def federate(
    data: CentralData,
    split: Sequence[Int64[np.ndarray, "_"]],
    test_split: Sequence[Int64[np.ndarray, "_"]] | None = None,
    *,
    shares: Shares | None = None,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> FederatedData:
    """Shares a data set out, and sets examples of every client apart for validation and test.

    An official test part is shared out, too; else clients test on a part of what they hold.

    Args:
      data: the data set.
      split: indices of every client's examples of `data.train`, from a splitter.
      test_split: those of `data.test`, such as `split_like` gives; None is an even split.
      shares: see `split_each_client`; by default 0.6, 0.2, 0.2, and all for training where there is
        an official test part.
      names: of the clients; by default their numbers from 1.
      seed: of the shares and the even split.

    Raises:
      ConfigError: (a ValueError) if the parts do not fit together.
    """
    if names is None:
        names = [str(number + 1) for number in range(len(split))]
    if len(names) != len(split):
        raise ConfigError(f"{len(names)} names for {len(split)} clients; wanted as many")
    if data.test is None:
        if test_split is not None:
            raise ConfigError(
                f"{data.info.name} has no test part to share out by test_split; take the test "
                "examples from each client's own by shares=(train, val, test)"
            )
        parts = split_each_client(split, shares or DEFAULT_SHARES, seed=seed)
        held = [gather_clients(data.train, part) for part in parts]
        return FederatedData(data.info, tuple(names), *held)
    shares = shares or (1.0, 0.0, 0.0)
    if shares[2]:
        raise ConfigError(
            f"shares={shares} takes test examples from the clients' own, and {data.info.name} has "
            "a test part; set the third to 0"
        )
    if test_split is None:
        count = len(next(iter(data.test.values()), ()))
        test_split = split_iid(count, len(split), seed=seed)
    if len(test_split) != len(split):
        raise ConfigError(f"test_split has {len(test_split)} clients and split {len(split)}")
    train_split, val_split, _ = split_each_client(split, shares, seed=seed)
    train, val = gather_clients(data.train, train_split), gather_clients(data.train, val_split)
    test = gather_clients(data.test, test_split)
    return FederatedData(data.info, tuple(names), train, val, test)


def split_each_client(
    split: Sequence[Int64[np.ndarray, "_"]], shares: Shares = DEFAULT_SHARES, *, seed: int = 0
) -> tuple[Split, Split, Split]:
    """Cuts what every client holds into training, validation and test examples.

    floor(n * train) examples are for training, floor of the rest's share for validation; a client
    with examples trains on one at least. The order of a client depends on its size and the seed
    alone: it is the one that scikit-learn's `train_test_split`, called twice, gives.

    Args:
      split: indices of every client's examples.
      shares: of training, validation and test; not negative, with sum 1, some for training.
      seed: of the orders.

    Returns:
      Three splits of the same clients.

    Raises:
      ConfigError: (a ValueError) if the shares are not such.

    References:
      `process` in `federatedscope/nlp/dataset/leaf_nlp.py` of FederatedScope 0.3.0.
    """
    if len(shares) != 3 or min(shares) < 0 or not shares[0] or abs(sum(shares) - 1) > 1e-9:
        raise ConfigError(
            f"shares={shares} of training, validation and test must not be negative, sum to 1 and "
            "leave something for training"
        )
    parts: tuple[Split, Split, Split] = ([], [], [])
    for held in split:
        for part, places in zip(parts, _cut(len(held), shares, seed), strict=True):
            part.append(np.asarray(held, np.int64)[places])
    return parts


def _cut(size: int, shares: Shares, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places of the three parts among `size` examples."""
    if shares[0] == 1:
        everything, nothing = np.arange(size), np.arange(0)
        return everything, nothing, nothing
    num_train = max(math.floor(shares[0] * size), min(size, 1))
    order = np.random.RandomState(seed).permutation(size)
    rest, train = order[: size - num_train], order[size - num_train :]
    num_val = math.floor(shares[1] / (1.0 - shares[0]) * len(rest))
    order = np.random.RandomState(seed).permutation(len(rest)) if num_val else np.arange(len(rest))
    num_test = len(rest) - num_val
    return train, rest[order[num_test:]], rest[order[:num_test]]
