"""Messages of a federated course: what is sent, to whom, and in which order it arrives.

A message is plain data. Its content is a tree of numbers, texts, lists, dicts and arrays, so that
the same message can be handed over in a simulation and written to a wire. Nothing else is let in:
no objects, no code.

References:
  Xie et al. 2023, "FederatedScope: A Flexible Federated Learning Platform for Heterogeneity",
  arXiv:2204.05011, section 3; `federatedscope/core/message.py` of FederatedScope 0.3.0.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SERVER = 0
"""Id of the server; clients are 1, 2, ... N."""
UNASSIGNED = -1
"""Id of a client that has not been given one yet."""

JOIN = "join_in"
ASSIGN_ID = "assign_client_id"
ASK_INFO = "ask_for_join_in_info"
INFO = "join_in_info"
MODEL = "model_para"
OFFER = "pred_embedding"
"""What clients of a round tell each other, embeddings in the original, on the way to the server."""
OTHERS = "global_loss"
"""What the others of the round have told; the original sends the loss that follows from it."""
FAILURE = "failure"
EVALUATE = "evaluate"
METRICS = "metrics"
CONVERGED = "converged"
FINISH = "finish"


@dataclasses.dataclass(frozen=True)
class Message:
    """One message from a participant to others.

    Attributes:
      type: key of the receiver's handlers, such as `model_para`.
      sender: id of the sender, 0 for the server, -1 for a client without an id.
      receivers: ids of those it is for.
      content: a tree of numbers, texts, lists, dicts and arrays; None if the type says it all.
      round: the server's round that the content belongs to.
      time_us: virtual time of delivery, in microseconds: an integer, so that equal times are equal.
      serial: number of the message in the order of sending, the last tie-break.
      request: number that the server gave to what it asked for; an answer repeats it, so that a
        message that arrives twice is told from a second answer.
    """

    type: str
    sender: int
    receivers: tuple[int, ...]
    content: Any = None
    round: int = 0
    time_us: int = 0
    serial: int = 0
    request: int = 0

    @property
    def delivery_order(self) -> tuple[int, int, int]:
        """What messages to the server are ordered by: time, then round, then serial."""
        return self.time_us, self.round, self.serial

    def to(self, receiver: int, serial: int) -> "Message":
        """The message as one of its receivers gets it."""
        # Courses make millions of them, and `dataclasses.replace` takes four times as long.
        return Message(
            self.type, self.sender, (receiver,), self.content, self.round, self.time_us, serial,
            self.request,
        )  # fmt: skip

    def reply(self, message_type: str, content: Any = None, duration_us: int = 0) -> "Message":
        """The answer of the one that the message was delivered to.

        Args:
          message_type: key of the handlers of the one who asked.
          content: what is answered.
          duration_us: virtual microseconds that the answer takes.

        Raises:
          ValueError: if the message is for several and was not delivered to one of them yet.
        """
        if len(self.receivers) != 1:
            raise ValueError(
                f"a message of type {self.type!r} for {list(self.receivers)} has no one who could "
                "reply; reply to the message that a handler was given"
            )
        time_us = self.time_us + duration_us
        return Message(
            message_type, self.receivers[0], (self.sender,), content, self.round, time_us,
            request=self.request,
        )  # fmt: skip


def check_content(content: Any, path: str = "content") -> None:
    """Refuses content that could not be written to a wire.

    Args:
      content: a tree of None, bool, int, float, str, arrays (of numbers), lists, tuples, and dicts
        whose keys are all texts or all integers.
      path: what the tree is called in an error.

    Raises:
      TypeError: naming the place of the first thing that is something else.

    Example:
      >>> check_content({"loss": 0.5, "weights": [np.zeros(3)]})
      >>> check_content({"loss": {1, 2}})
      Traceback (most recent call last):
      TypeError: content['loss'] is a set; a message holds numbers, texts, lists, dicts and arrays
    """
    if content is None or isinstance(content, bool | int | float | str):
        return
    if isinstance(content, np.generic | np.ndarray | jax.Array) and _is_numeric(content.dtype):
        return
    if isinstance(content, Mapping):
        kinds = {str if isinstance(key, str) else type(key) for key in content}
        if not kinds <= {str} and not kinds <= {int}:
            raise TypeError(
                f"{path} has keys of the types {sorted(kind.__name__ for kind in kinds)}; the keys "
                "of a dict in a message are all texts or all integers"
            )
        for key, value in content.items():
            check_content(value, f"{path}[{key!r}]")
        return
    if isinstance(content, list | tuple):
        for place, value in enumerate(content):
            check_content(value, f"{path}[{place}]")
        return
    raise TypeError(
        f"{path} is a {type(content).__name__}; a message holds numbers, texts, lists, dicts and "
        "arrays"
    )


def _is_numeric(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)
