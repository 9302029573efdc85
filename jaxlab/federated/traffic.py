"""The bytes that a course sends, to the byte.

What clients and server tell each other has the same shapes in every round, so that the size of a
message follows from the algorithm: it is that of the bytes that `wire` makes of its content,
headers included. A simulation counts those of every client and round, though it copies nothing;
what a deployment sends are the same contents, made by the functions here. Who asks whom, and when,
is told beside the content, in some hundred bytes that only a deployment counts.

The original counts the sizes of Python objects, 3,864 "bytes" for a model of 92,000 parameters, and
nothing that clients send in a simulation (`federatedscope/core/monitors/monitor.py`, 0.3.0).
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from jaxlab.federated.algorithm import LocalResult, Tree
from jaxlab.federated.wire import name_leaves, packed_size

TREE, UPDATE, WEIGHT, SUMS, OFFER = "tree", "update", "weight", "sums", "offer"
"""Keys of the contents of messages."""


def broadcast_content(sent: Tree) -> dict[str, Any]:
    """What a client is sent, to train or to evaluate: name -> array, see `wire.name_leaves`."""
    return {TREE: name_leaves(sent)}


def answer_content(update: Tree, weight: Tree) -> dict[str, Any]:
    """What a client answers: its update, and what it counts by.

    What it keeps (`client_state`) stays with it, and so do its training metrics (`sums`).

    Args:
      update: of its training.
      weight: an array of float32: whatever the number, it has four bytes.
    """
    return {UPDATE: name_leaves(update), WEIGHT: weight}


def metrics_content(sums: Tree) -> dict[str, Any]:
    """What a client answers to an evaluation: split -> name -> (sum, count)."""
    return {SUMS: sums}


def offer_content(offer: Tree) -> dict[str, Any]:
    """What a client tells the others, or what it is told of them, every leaf (others, ...)."""
    return {OFFER: name_leaves(offer)}


def others_size(offer: Tree, num_others: int) -> int:
    """Bytes of what a client is told of the others.

    Args:
      offer: of one client, arrays or shapes.
      num_others: clients.
    """

    def many(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((num_others, *leaf.shape), leaf.dtype)

    return packed_size(offer_content(jax.tree.map(many, offer)))


class MessageSizes(NamedTuple):
    """Bytes of the messages between the server and one client.

    Attributes:
      down: the model that a client is to train.
      up: what it answers.
      evaluation_down: the model that it is to evaluate; 0 if nothing is evaluated.
      evaluation_up: its metrics.
    """

    down: int
    up: int
    evaluation_down: int = 0
    evaluation_up: int = 0


def message_sizes(
    sent: Tree, result: LocalResult, evaluation: Tree = None, sums: Tree = None
) -> MessageSizes:
    """The sizes of messages.

    Args:
      sent: what a client is sent to train, arrays or shapes.
      result: what its training gives.
      evaluation: what a client is sent to evaluate.
      sums: split -> what an evaluation gives; None or empty if nothing is evaluated.
    """
    down = packed_size(broadcast_content(sent))
    up = packed_size(answer_content(result.update, result.weight))
    if not sums:
        return MessageSizes(down, up)
    evaluated = packed_size(broadcast_content(evaluation))
    return MessageSizes(down, up, evaluated, packed_size(metrics_content(sums)))


class Traffic:
    """Counts what is sent."""

    def __init__(self, sizes: MessageSizes, num_parameters: int) -> None:
        """Begin with nothing.

        Args:
          sizes: of the messages.
          num_parameters: numbers in the variables, for `bits_per_parameter`.
        """
        self.sizes, self.num_parameters = sizes, num_parameters
        self._exchanges: list[tuple[int, int, int, int]] = []
        self._num_evaluations = 0

    def count(self, client: int, number: int, down: int, up: int) -> None:
        """A client was sent some bytes in a round, and has answered with others.

        Args:
          client: its id.
          number: of the round.
          down: bytes that it was sent.
          up: bytes that it answered.
        """
        self._exchanges.append((number, client, down, up))

    def count_evaluation(self) -> None:
        """A client was sent the model to evaluate, and has answered."""
        self._num_evaluations += 1

    @property
    def exchanges(self) -> Int[np.ndarray, "exchanges 4"]:
        """Round, client, bytes down and bytes up of every question to train, in order.

        Rounds are those of the model; what was sent and came too late is among them.
        """
        return np.asarray(self._exchanges, np.int64).reshape(-1, 4)

    def report(self) -> dict[str, int | float]:
        """Bytes of the whole course, and bits of a message for every number of the model."""
        down, up = self.exchanges[:, 2:].sum(axis=0)
        evaluations = self._num_evaluations
        return {
            "bytes_down": int(down),
            "bytes_up": int(up),
            "evaluation_bytes_down": evaluations * self.sizes.evaluation_down,
            "evaluation_bytes_up": evaluations * self.sizes.evaluation_up,
            "bits_per_parameter_down": 8 * self.sizes.down / self.num_parameters,
            "bits_per_parameter_up": 8 * self.sizes.up / self.num_parameters,
        }

    def snapshot(self) -> dict[str, Any]:
        """All counts, as a tree that has bytes."""
        return {"exchanges": self.exchanges, "evaluations": self._num_evaluations}

    def restore(self, saved: dict[str, Any]) -> None:
        """Counts on from a snapshot."""
        self._exchanges = [(a, b, c, d) for a, b, c, d in saved["exchanges"].tolist()]
        self._num_evaluations = saved["evaluations"]


def count_parameters(variables: Tree) -> int:
    """Numbers in a tree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables))
