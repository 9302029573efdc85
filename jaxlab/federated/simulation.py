"""A course in one process, on virtual time.

Messages to clients are handled at once, first come, first served; messages to the server wait for
their time, then for their round, then for their turn. Which answer comes first is decided by the
devices of the clients, never by how long the simulation takes.

References:
  Xie et al. 2023, arXiv:2204.05011, section 3.5; `federatedscope/core/fed_runner.py`
  (`StandaloneRunner`) of FederatedScope 0.3.0.
"""

import collections
import dataclasses
import heapq
from collections.abc import Callable, Iterable
from typing import NamedTuple

from jaxlab.federated.client import ClientState, join_message
from jaxlab.federated.completeness import require_complete
from jaxlab.federated.messages import SERVER, Message, check_content
from jaxlab.federated.roles import Role
from jaxlab.federated.server_state import ServerState


class Course(NamedTuple):
    """The two roles of a course.

    Attributes:
      server: the server's.
      client: that of every client.
      uses_deadlines: whether the server also acts when nothing arrives (`time_up`).
    """

    server: Role
    client: Role
    uses_deadlines: bool = False


@dataclasses.dataclass
class CourseState:
    """A course between two messages.

    Attributes:
      server: state of the server.
      clients: state of every client by id.
      to_clients: messages that are handled next, in order; each has one receiver.
      to_server: heap of `(delivery order, message)`.
      num_sent: messages so far, for their serials.
    """

    server: ServerState
    clients: dict[int, ClientState]
    to_clients: collections.deque[Message] = dataclasses.field(default_factory=collections.deque)
    to_server: list[tuple[tuple[int, int, int], Message]] = dataclasses.field(default_factory=list)
    num_sent: int = 0


def start_course(
    course: Course, server: ServerState, num_clients: int, *, check_complete: bool = True
) -> CourseState:
    """A course in which every client has asked to join.

    Args:
      course: the roles.
      server: state of the server.
      num_clients: clients 1 to num_clients join.
      check_complete: refuse a course that cannot end.

    Returns:
      The state before the first message is handled.

    Raises:
      IncompleteCourseError: (a ValueError) if the course cannot end.
    """
    if check_complete:
        require_complete(course.server, course.client)
    state = CourseState(server, {i: ClientState(i) for i in range(1, num_clients + 1)})
    post(state, (join_message(client) for client in state.clients.values()))
    return state


def run_course(
    course: Course,
    state: CourseState,
    *,
    on_round: Callable[[CourseState], None] = lambda state: None,
    check_complete: bool = True,
) -> CourseState:
    """Handles messages until the course has ended and its last message is delivered.

    Args:
      course: the roles.
      state: where the course stands; it is taken over.
      on_round: called whenever the server has aggregated or evaluated, between two messages: the
        place for progress bars and checkpoints.
      check_complete: refuse a course that cannot end, or in which a message that its roles may
        send has no handler; roles may have been replaced since it was made.

    Returns:
      The state at the end.

    Raises:
      IncompleteCourseError: (a ValueError) naming what is missing, before the first message.
      RuntimeError: if no message is left and the course has not ended.
      TooManyFailuresError: (a RuntimeError) if clients fail beyond what the course allows.
    """
    if check_complete:
        require_complete(course.server, course.client)
    seen = _progress(state)
    while not (state.server.finished and not state.to_clients):
        if not step(course, state):
            raise RuntimeError(
                f"the course stopped in round {state.server.round}: no message is under way, and "
                "the server waits. Check what its handlers may send"
            )
        if (now := _progress(state)) != seen:
            seen = now
            on_round(state)
    return state


def step(course: Course, state: CourseState) -> bool:
    """Handles one message, or one deadline.

    Args:
      course: the roles.
      state: where the course stands; it is changed.

    Returns:
      Whether there was anything to do.
    """
    if state.to_clients:
        message = state.to_clients.popleft()
        client = message.receivers[0]
        state.clients[client], sent = course.client.react(state.clients[client], message)
        post(state, sent)
        return True
    if course.uses_deadlines and _is_deadline_next(state):
        return _pass_deadline(course, state)
    if not state.to_server:
        return False
    _, message = heapq.heappop(state.to_server)
    state.server, sent = course.server.react(state.server, message)
    post(state, sent)
    return True


def post(state: CourseState, messages: Iterable[Message]) -> None:
    """Puts messages where they are delivered from, each with its serial.

    Args:
      state: where the course stands; it is changed.
      messages: what was sent, in order.

    Raises:
      ValueError: if a receiver is unknown.
      TypeError: if the content could not be written to a wire, see `check_content`.
    """
    for message in messages:
        check_content(message.content, f"the content of {message.type!r} from {message.sender}")
        for receiver in message.receivers:
            single = message.to(receiver, state.num_sent)
            state.num_sent += 1
            if receiver == SERVER:
                heapq.heappush(state.to_server, (single.delivery_order, single))
            elif receiver in state.clients:
                state.to_clients.append(single)
            else:
                raise ValueError(
                    f"a message of type {message.type!r} from {message.sender} is for client "
                    f"{receiver}; there are clients 1 to {len(state.clients)}"
                )


def _progress(state: CourseState) -> tuple[int, int]:
    return state.server.round, len(state.server.evaluations)


def _is_deadline_next(state: CourseState) -> bool:
    """Whether the time budget is spent before the next message arrives."""
    server = state.server
    if not server.started or server.finished or server.evaluating:
        return False
    return not state.to_server or state.to_server[0][1].time_us >= server.deadline_us


def _pass_deadline(course: Course, state: CourseState) -> bool:
    """Moves the clock to the deadline and lets the server act on it."""
    state.server.clock_us = state.server.deadline_us
    state.server, sent = course.server.settle(state.server)
    post(state, sent)
    return bool(state.to_clients or state.to_server)
