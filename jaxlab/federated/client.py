"""A client of a course: it answers.

What is learned is the affair of a `ClientProgram`. In a simulation its `train` only promises an
answer and says when it comes, so that clients that start from the same model are trained together
later; in a deployment it trains.

References:
  Xie et al. 2023, arXiv:2204.05011, section 3; `federatedscope/core/workers/client.py` of
  FederatedScope 0.3.0.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxlab.federated.messages import (
    ASK_INFO,
    ASSIGN_ID,
    CONVERGED,
    EVALUATE,
    FAILURE,
    FINISH,
    INFO,
    JOIN,
    METRICS,
    MODEL,
    SERVER,
    UNASSIGNED,
    Message,
)
from jaxlab.federated.roles import Role


class Answer(NamedTuple):
    """What a client sends back, and how long it took.

    Attributes:
      content: the update.
      duration_us: virtual microseconds between the request and the answer.
    """

    content: Any
    duration_us: int = 0


class Failure(NamedTuple):
    """That a client cannot do what it was asked for.

    Attributes:
      reason: for the log of the server.
      duration_us: virtual microseconds until the server knows.
    """

    reason: str
    duration_us: int = 0


class ClientProgram(NamedTuple):
    """What a client learns with.

    Attributes:
      train: `(client, content of the broadcast, round) -> Answer or Failure`.
      evaluate: `(client, content of the broadcast, round) -> metrics or Failure`.
      info: what can be asked when a client joins, such as `num_sample`, as functions of its id.
      finish: called with `(client, final content)` at the end of the course.
    """

    train: Callable[[int, Any, int], Answer | Failure]
    evaluate: Callable[[int, Any, int], Any]
    info: Mapping[str, Callable[[int], Any]]
    finish: Callable[[int, Any], None] = lambda client, content: None


@dataclasses.dataclass
class ClientState:
    """What a client knows; handlers take it over and give it back.

    Attributes:
      id: its number, -1 before it has one.
      finished: whether the course has ended for it.
      converged_round: the server's round when it said that the course has converged.
      converged_us: when that was, in virtual microseconds.
    """

    id: int = UNASSIGNED
    finished: bool = False
    converged_round: int | None = None
    converged_us: int | None = None


def make_client(program: ClientProgram) -> Role:
    """The role of all clients.

    Args:
      program: what they learn with.

    Returns:
      A role whose handlers can be replaced, see `Role.on`.
    """

    def on_id(state: ClientState, message: Message) -> tuple[ClientState, list[Message]]:
        state.id = int(message.content)
        return state, []

    def on_ask(state: ClientState, message: Message) -> tuple[ClientState, list[Message]]:
        unknown = [key for key in message.content if key not in program.info]
        if unknown:
            raise ValueError(
                f"client {state.id} is asked for {unknown}; it can tell {sorted(program.info)}"
            )
        answers = {key: program.info[key](state.id) for key in message.content}
        return state, [message.reply(INFO, answers)]

    def on_model(state: ClientState, message: Message) -> tuple[ClientState, list[Message]]:
        answer = program.train(state.id, message.content, message.round)
        if isinstance(answer, Failure):
            return state, [message.reply(FAILURE, answer.reason, answer.duration_us)]
        return state, [message.reply(MODEL, answer.content, answer.duration_us)]

    def on_evaluate(state: ClientState, message: Message) -> tuple[ClientState, list[Message]]:
        metrics = program.evaluate(state.id, message.content, message.round)
        if isinstance(metrics, Failure):
            return state, [message.reply(FAILURE, metrics.reason, metrics.duration_us)]
        return state, [message.reply(METRICS, metrics)]

    def on_converged(state: ClientState, message: Message) -> tuple[ClientState, list[Message]]:
        state.converged_round, state.converged_us = message.round, message.time_us
        return state, []

    def on_finish(state: ClientState, message: Message) -> tuple[ClientState, list[Message]]:
        program.finish(state.id, message.content)
        state.finished = True
        return state, []

    role = Role("client")
    role = role.on(ASSIGN_ID, on_id)
    role = role.on(ASK_INFO, on_ask, (INFO,))
    role = role.on(MODEL, on_model, (MODEL, FAILURE))
    role = role.on(EVALUATE, on_evaluate, (METRICS, FAILURE))
    role = role.on(CONVERGED, on_converged)
    return role.on(FINISH, on_finish)


def join_message(state: ClientState) -> Message:
    """What a client sends first."""
    return Message(JOIN, state.id, (SERVER,))
