"""Courses on Flower: a ServerApp that runs the server's role, a ClientApp that runs a client's.

What crosses the wire are bytes of `jaxlab.federated.wire` in an ArrayRecord (so that Flower cuts
large ones into pieces, and stores the model of a broadcast once), and the name of the course in a
ConfigRecord. Flower starts the program of a client anew for every message; what a client keeps lies
in a file of its node.

References:
  Beutel et al. 2020, "Flower: A Friendly Federated Learning Research Framework", arXiv:2007.14390.
"""

import logging
import re
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxlab.federated.deployment.codec import Packed, Packer, unpack
from jaxlab.federated.deployment.extras import needed_module
from jaxlab.federated.deployment.learner import Learner
from jaxlab.federated.deployment.live import LiveConfig, LiveState, run_live
from jaxlab.federated.deployment.memory import Memory
from jaxlab.federated.deployment.node import Node, answer
from jaxlab.federated.deployment.server_checkpoint import ServerCheckpoint
from jaxlab.federated.deployment.transport import Delivery

_logger = logging.getLogger(__name__)

COURSE, MESSAGES = "course", "messages"
"""Names of the two records of a message."""
NAME, PROTOCOL, VERSION = "name", "protocol", 1
HEADER, CONTENT, KIND = "{}/header", "{}/content", "jaxlab.wire"
"""Names of the arrays of a message, and how their bytes were made."""

NODE_IS_GONE = (3, 4, 5)
"""Errors of Flower that mean that a node, a message or its answer is not there any more:
MESSAGE_UNAVAILABLE, REPLY_MESSAGE_UNAVAILABLE, NODE_UNAVAILABLE."""

_SAFE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class RawArray(NamedTuple):
    """An array of a message where Flower's own class is not at hand.

    Attributes:
      stype: how its bytes were made.
      data: its bytes.
    """

    stype: str
    data: bytes


class ServerPlace(NamedTuple):
    """The server of a deployment.

    Attributes:
      learner: its side of the course.
      folder: where its checkpoint lies; a course that is found there goes on.
      config: times and limits.
      on_progress: called whenever the course has moved on.
      on_error: called with what has ended the course before its time.
      on_join: called whenever a node has joined or come back.
    """

    learner: Learner
    folder: Path
    config: LiveConfig = LiveConfig()
    on_progress: Callable[[LiveState], None] = lambda state: None
    on_error: Callable[[Exception], None] = lambda error: None
    on_join: Callable[[LiveState], None] = lambda state: None


class NodePlace(NamedTuple):
    """A node of a deployment.

    Attributes:
      node: its client and data.
      folder: where it keeps what it needs from one message to the next.
      max_message_bytes: larger messages are refused.
      on_finish: called when the course has ended, with the folder of the course.
    """

    node: Node
    folder: Path
    max_message_bytes: int = 2**30
    on_finish: Callable[[Path], None] = lambda folder: None


def make_server_app(place: Callable[[Any], ServerPlace]) -> Any:
    """A ServerApp of Flower that runs a course.

    Args:
      place: from Flower's context (its `run_config` holds the settings of the app) to the server.
    """
    app = _flower("serverapp").ServerApp()

    @app.main()
    def main(grid: Any, context: Any) -> None:
        server = place(context)
        try:
            run_server(server, grid)
        except Exception as error:
            server.on_error(error)
            raise

    return app


def make_client_app(place: Callable[[Any], NodePlace]) -> Any:
    """A ClientApp of Flower that answers for a client.

    Args:
      place: from Flower's context (its `node_config` holds what the SuperNode was started with) to
        the node.
    """
    app = _flower("clientapp").ClientApp()

    def handle(message: Any, context: Any) -> Any:
        return answer_message(place(context), message)

    for register in (app.train, app.evaluate, app.query):
        register()(handle)
    return app


def run_server(place: ServerPlace, grid: Any) -> LiveState:
    """Runs a course over a Grid of Flower, or on from its checkpoint.

    Args:
      place: the server.
      grid: Flower's way to the nodes.

    Returns:
      The state at the end.
    """
    checkpoint = ServerCheckpoint(place.folder, place.learner)
    found = checkpoint.load()
    name, server = found or (secrets.token_hex(8), place.learner.start())
    if found:
        _logger.info("course %s goes on after round %d", name, server.round)
    state = LiveState(server)

    def on_progress(state: LiveState) -> None:
        checkpoint.save(name, state.server)
        place.on_progress(state)

    transport = FlowerTransport(
        grid, name, place.learner.agreement.config.answer_timeout_s, place.config.max_message_bytes
    )
    return run_live(
        place.learner, state, transport, place.config,
        clock=time.monotonic, wait=time.sleep, on_progress=on_progress, on_join=place.on_join,
    )  # fmt: skip


class FlowerTransport:
    """Parcels as messages of Flower."""

    def __init__(
        self, grid: Any, course: str, answer_timeout_s: float, max_message_bytes: int
    ) -> None:
        """Connect to nothing yet.

        Args:
          grid: Flower's way to the nodes.
          course: its name.
          answer_timeout_s: how long a message is kept for a node that does not fetch it.
          max_message_bytes: larger messages are refused.
        """
        self._grid, self._course = grid, course
        self._ttl_s, self._max_bytes = answer_timeout_s, max_message_bytes
        self._tickets: dict[str, int] = {}

    def nodes(self) -> Collection[int]:
        """The nodes that Flower reaches."""
        return list(self._grid.get_node_ids())

    def send(self, node: int, kind: str, messages: Sequence[Packed]) -> str | None:
        """Hands a parcel to Flower."""
        content = pack_records(self._course, messages)
        sent = _flower("app").Message(content, node, kind, ttl=self._ttl_s)
        tickets = list(self._grid.push_messages([sent]))
        if not tickets or not tickets[0]:
            return None
        self._tickets[tickets[0]] = node
        return tickets[0]

    def receive(self) -> Sequence[Delivery]:
        """What nodes have answered, and what Flower says of those that cannot."""
        if not self._tickets:
            return []
        deliveries = []
        for reply in self._grid.pull_messages(list(self._tickets)):
            ticket = reply.metadata.reply_to_message_id
            if self._tickets.pop(ticket, None) is not None:
                deliveries.append(self._open(ticket, reply))
        return deliveries

    def _open(self, ticket: str, reply: Any) -> Delivery:
        if reply.has_error():
            is_gone = reply.error.code in NODE_IS_GONE
            return Delivery(ticket, failure=str(reply.error.reason), is_lost=is_gone)
        try:
            course, messages = unpack_records(reply.content, self._max_bytes)
            if course != self._course:
                raise ValueError(f"it is of the course {course!r}")
        except ValueError as error:
            return Delivery(ticket, failure=f"the answer cannot be used: {error}")
        return Delivery(ticket, tuple(messages))


def answer_message(place: NodePlace, message: Any) -> Any:
    """What a node answers to a message of Flower.

    Args:
      place: the node.
      message: what has come.

    Raises:
      ValueError: if it cannot be read; Flower tells the server.
    """
    course, answers = answer_records(place, message.content)
    return _flower("app").Message(pack_records(course, answers), reply_to=message)


def answer_records(place: NodePlace, records: Any) -> tuple[str, list[Packed]]:
    """The name of the course, and what a node answers to the records of a message.

    Args:
      place: the node.
      records: what has come, a RecordDict or mappings of the same form.

    Raises:
      ValueError: if it cannot be read.
    """
    course, packed = unpack_records(records, place.max_message_bytes)
    folder = place.folder / course
    memory = Memory(folder, place.node.forms.client)
    asked = [unpack(each, place.max_message_bytes) for each in packed]
    pack = Packer()
    answers = [pack(each) for each in answer(place.node, memory, asked)]
    if memory.client(place.node.number).finished:
        place.on_finish(folder)
    return course, answers


def name_arrays(messages: Sequence[Packed]) -> dict[str, bytes]:
    """The bytes of packed messages by the names that they have in an ArrayRecord."""
    arrays = {}
    for number, packed in enumerate(messages):
        arrays[HEADER.format(number)] = packed.header
        arrays[CONTENT.format(number)] = packed.content
    return arrays


def describe_course(course: str, messages: Sequence[Packed]) -> dict[str, str | int]:
    """What the ConfigRecord beside packed messages says."""
    return {NAME: course, PROTOCOL: VERSION, MESSAGES: len(messages)}


def pack_records(course: str, messages: Sequence[Packed]) -> Any:
    """Packed messages as a RecordDict of Flower.

    Args:
      course: its name.
      messages: in order.
    """
    flower = _flower("app")
    arrays = {
        name: flower.Array("uint8", (len(data),), KIND, data)
        for name, data in name_arrays(messages).items()
    }
    config = flower.ConfigRecord(describe_course(course, messages))
    return flower.RecordDict({COURSE: config, MESSAGES: flower.ArrayRecord(arrays)})


def unpack_records(records: Any, max_bytes: int) -> tuple[str, list[Packed]]:
    """The name of the course and the packed messages in a RecordDict.

    Args:
      records: what has come; it may be anything.
      max_bytes: of all messages together.

    Raises:
      ValueError: saying what is wrong.
    """
    config, arrays = records.get(COURSE), records.get(MESSAGES)
    if config is None or arrays is None or config.get(PROTOCOL) != VERSION:
        raise ValueError(f"it is no message of version {VERSION} of this protocol")
    course, count = config.get(NAME), config.get(MESSAGES)
    if not isinstance(course, str) or not _SAFE_NAME.fullmatch(course):
        raise ValueError(f"{course!r} is no name of a course")
    if not isinstance(count, int) or len(arrays) != 2 * count:
        raise ValueError(f"it holds {len(arrays)} arrays for {count} messages")
    wrong = [name for name, array in arrays.items() if array.stype != KIND]
    if wrong:
        raise ValueError(f"the arrays {wrong[:5]} are not of the kind {KIND!r}")
    if (size := sum(len(array.data) for array in arrays.values())) > max_bytes:
        raise ValueError(f"it has {size} bytes; {max_bytes} are allowed")
    try:
        messages = [
            Packed(
                bytes(arrays[HEADER.format(number)].data),
                bytes(arrays[CONTENT.format(number)].data),
            )
            for number in range(count)
        ]
    except KeyError as error:
        raise ValueError(f"the array {error} is missing") from error
    return course, messages


def _flower(module: str) -> Any:
    """A module of Flower, or an error that says how to install it."""
    return needed_module(f"flwr.{module}", "Flower is not installed")
