"""What carries messages between the server and its nodes."""

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from jaxlab.federated.deployment.codec import Packed
from jaxlab.federated.messages import Message


class Parcel(NamedTuple):
    """What is sent to a node at once.

    Attributes:
      node: where to.
      messages: what, in order.
    """

    node: int
    messages: tuple[Message, ...]


class Delivery(NamedTuple):
    """What has come of a parcel.

    Attributes:
      ticket: of the parcel.
      answers: of the node, in order.
      failure: why the node could not handle the parcel, empty if it could.
      is_lost: whether the node is gone, or what it has answered.
    """

    ticket: str
    answers: tuple[Packed, ...] = ()
    failure: str = ""
    is_lost: bool = False


@runtime_checkable
class Transport(Protocol):
    """What carries parcels to nodes and answers back."""

    def nodes(self) -> Collection[int]:
        """The nodes that are there."""
        ...

    def send(self, node: int, kind: str, messages: Sequence[Packed]) -> str | None:
        """Sends packed messages; gives a ticket, or None if the node is gone.

        Args:
          node: where to.
          kind: `train`, `evaluate` or `query`, for what looks at it on the way.
          messages: what.
        """
        ...

    def receive(self) -> Sequence[Delivery]:
        """What has come since the last call."""
        ...
