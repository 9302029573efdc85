"""The examples of all clients as flat arrays, and the order in which a client goes through its own.

Clients differ in size. Their examples lie one after another in arrays that are shared by all; a
client is an offset and a size. Its batches are gathered by index, so nothing is padded but the last
batch.

References:
  Batches and epochs as in `federatedscope/core/trainers/context.py` (`calculate_batch_epoch_num`)
  of FederatedScope 0.3.0.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int, Key

from jaxlab.federated.strategy import ConfigError
from jaxlab.federated.tasks import MASK, Batch, Task

_logger = logging.getLogger(__name__)
_MAX_TOLD = 10
"""Clients that a warning names."""

Sizes = Int[Array | np.ndarray, "..."] | np.integer | int


@struct.dataclass
class ClientData:
    """The examples of all clients, in the order of the clients.

    Attributes:
      examples: name -> (examples of all clients, ...).
      offsets: where a client's examples begin, (clients,).
      sizes: how many it has, (clients,).
    """

    examples: dict[str, Array | np.ndarray]
    offsets: Int[Array | np.ndarray, " clients"]
    sizes: Int[Array | np.ndarray, " clients"]

    @property
    def num_clients(self) -> int:
        """Number of clients."""
        return self.sizes.shape[0]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Bound:
    """A number that programs are compiled for.

    Attributes:
      value: None if there is none.
    """

    value: int | None = None


class ClientView(NamedTuple):
    """One client's part of the data.

    Attributes:
      examples: those of all clients.
      offset: where its own begin.
      size: how many it has.
      bound: no client has more; without one no client has more than all have together.
    """

    examples: Mapping[str, Array | np.ndarray]
    offset: Int[Array, ""]
    size: Int[Array, ""]
    bound: Bound = Bound()

    @property
    def max_size(self) -> int:
        """Examples that no client has more of, which a program can be compiled for."""
        rows = next(iter(self.examples.values())).shape[0]
        return rows if self.bound.value is None else min(rows, self.bound.value)


def view_client(
    data: ClientData, client: Int[Array, ""], max_size: int | None = None
) -> ClientView:
    """A client's part of the data; `client` counts from 0, and none has more than `max_size`."""
    return ClientView(data.examples, data.offsets[client], data.sizes[client], Bound(max_size))


def gather_clients(examples: Mapping[str, np.ndarray], clients: Sequence[np.ndarray]) -> ClientData:
    """Lays the examples of every client one after another.

    Args:
      examples: name -> (examples, ...).
      clients: for every client the indices of its examples, as a splitter gives them.

    Returns:
      NumPy arrays; place them with `jax.device_put`.

    Raises:
      ConfigError: (a ValueError) if the arrays differ in length, or an index is outside them.
    """
    lengths = {name: len(values) for name, values in examples.items()}
    if len(set(lengths.values())) != 1:
        raise ConfigError(f"the arrays of the examples have the lengths {lengths}; wanted one")
    length = next(iter(lengths.values()))
    sizes = np.asarray([len(indices) for indices in clients], np.int32)
    order = np.concatenate([np.asarray(i, np.int64) for i in clients] or [np.zeros(0, np.int64)])
    if order.size and not (0 <= order.min() and order.max() < length):
        raise ConfigError(
            f"the clients hold indices from {order.min()} to {order.max()}; there are {length} "
            "examples"
        )
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32)
    return ClientData({n: values[order] for n, values in examples.items()}, offsets, sizes)


def check_examples(task: Task | None, name: str, data: ClientData) -> None:
    """Looks whether a task can learn from the examples of clients.

    Args:
      task: the learning problem; None knows nothing about examples.
      name: of the examples, such as `train`.
      data: on the host.

    Raises:
      ConfigError: (a ValueError) saying what is wrong with them.
    """
    if task is None or task.check is None:
        return
    try:
        task.check(data.examples)
    except ConfigError as error:
        raise ConfigError(f"the examples of {name!r}: {error}") from None


def warn_if_not_finite(name: str, data: ClientData) -> None:
    """Logs which clients have inputs with NaN or infinity, once for all of them.

    Targets may be NaN, where they are not known.

    Args:
      name: of the examples, such as `train`.
      data: on the host.
    """
    for field, values in data.examples.items():
        if field == "y" or not np.issubdtype(np.dtype(values.dtype), np.floating):
            continue
        values = np.asarray(values)
        # Extremes tell it without memory for a mask.
        if not values.size or (np.isfinite(values.min()) and np.isfinite(values.max())):
            continue
        wrong = np.logical_not(np.isfinite(values.reshape(len(values), -1)).all(axis=1))
        offsets, sizes = np.asarray(data.offsets), np.asarray(data.sizes)
        counts = [int(wrong[o : o + s].sum()) for o, s in zip(offsets, sizes, strict=True)]
        found = [(client, count) for client, count in enumerate(counts, start=1) if count]
        told = ", ".join(f"client {client} ({count})" for client, count in found[:_MAX_TOLD])
        if found:
            _logger.warning(
                "%r of %r is NaN or infinite in %d examples of %d clients: %s%s. Their updates "
                "will not be finite, and will not count",
                field, name, sum(counts), len(found), told,
                ", ..." if len(found) > _MAX_TOLD else "",
            )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How much a client trains in a round.

    Attributes:
      batch_size: examples of a step.
      amount: epochs, or steps.
      unit: `epoch` or `step`.
      drop_last: leave out the last batch of an epoch if it is not full.
      shuffle: go through the examples in an order that is new in every epoch, or as they lie.
    """

    batch_size: int
    amount: int = 1
    unit: str = "epoch"
    drop_last: bool = False
    shuffle: bool = True

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
          ConfigError: (a ValueError) if a field is out of range.
        """
        if self.batch_size < 1 or self.amount < 1 or self.unit not in ("epoch", "step"):
            raise ConfigError(
                f"Schedule: batch_size={self.batch_size} and amount={self.amount} must be at least "
                f"1, and unit={self.unit!r} one of 'epoch', 'step'"
            )

    def num_batches(self, size: Sizes) -> Sizes:
        """Batches of an epoch over `size` examples; with `step` no more than there are steps."""
        whole = size // self.batch_size
        count = whole if self.drop_last else whole + (size % self.batch_size != 0)
        # Arithmetic, since it is also asked on the host for every client.
        return count - (count > self.amount) * (count - self.amount) * (self.unit == "step")

    def num_steps(self, size: Sizes) -> Sizes:
        """Steps of a round over `size` examples; none where there is no batch."""
        batches = self.num_batches(size)
        if self.unit == "epoch":
            return batches * self.amount
        return (batches > 0) * self.amount

    def num_samples(self, size: int) -> int:
        """Examples that a client of `size` examples goes through in a round, on the host."""
        batches = int(self.num_batches(size))
        if not batches:
            return 0
        sizes = np.minimum(size - self.batch_size * np.arange(batches), self.batch_size)
        epochs, rest = divmod(int(self.num_steps(size)), batches)
        return int(epochs * sizes.sum() + sizes[:rest].sum())

    def max_epochs(self, sizes: Int[np.ndarray, " clients"]) -> int:
        """Epochs of the client that goes through its examples most often, on the host."""
        if self.unit == "epoch":
            return self.amount
        batches = np.asarray(self.num_batches(np.asarray(sizes)))
        batches = batches[batches > 0]
        return int(np.ceil(self.amount / batches.min())) if batches.size else 1


def shuffle_epochs(
    key: Key[Array, ""], size: Int[Array, ""], num_epochs: int, max_size: int
) -> Int[Array, "epochs examples"]:
    """The order of a client's examples in every epoch.

    Args:
      key: of the client and the round.
      size: examples of the client.
      num_epochs: rows.
      max_size: columns; those from `size` on hold no example.

    Returns:
      Positions among the client's own examples.
    """

    def one_epoch(epoch: Array) -> Array:
        draws = jax.random.uniform(jax.random.fold_in(key, epoch), (max_size,))
        return jnp.argsort(jnp.where(jnp.arange(max_size) < size, draws, jnp.inf))

    return jax.vmap(one_epoch)(jnp.arange(num_epochs))


def take_batch(
    view: ClientView,
    start: Int[Array, ""],
    batch_size: int,
    order: Int[Array, " examples"] | None = None,
) -> tuple[Batch, Bool[Array, " batch"]]:
    """A batch of a client, and which of its rows are examples.

    Args:
      view: the client's examples.
      start: place of the first row, in the order if there is one.
      batch_size: rows.
      order: in which the client goes through its examples; None as they lie.

    Returns:
      The batch, with the mask as its field `mask` (normalisation over the batch needs it); rows
      beyond the client's last example repeat one of its examples and are masked.
    """
    places = start + jnp.arange(batch_size)
    mask = places < view.size
    own = places if order is None else order[jnp.minimum(places, order.shape[0] - 1)]
    rows = view.offset + jnp.where(mask, own, 0)
    batch = {name: values[rows] for name, values in view.examples.items()}
    return {**batch, MASK: mask}, mask
