"""Participants as data: which message is answered by which function, which condition by which.

A `Role` maps message types to handlers, and names events: predicates over the participant's state
with the action to take when they turn true. Handlers are functions, the state goes in and comes
out::

    def on_metrics(state, message):
        return state.add(message.sender, message.content), ()

    server = server.on("metrics", on_metrics, may_send=("converged",))

An algorithm that exchanges something else adds message types and replaces handlers.

References:
  Xie et al. 2023, arXiv:2204.05011, section 3.2; `federatedscope/core/workers` of FederatedScope
  0.3.0.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from jaxlab.federated.messages import Message

State = Any
Reaction = tuple[State, Iterable[Message]]
Handler = Callable[[State, Message], Reaction]
Action = Callable[[State], Reaction]

MAX_EVENTS = 1000
"""Events that one message may set off before the course is taken to be going in circles."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is done with one type of message.

    Attributes:
      handler: `(state, message) -> (state, messages to send)`.
      may_send: types of the messages that it can send to the other role, for the check of
        completeness.
      may_send_peers: types that it can send to participants of its own role, such as shares of a
        secret from client to client.
    """

    handler: Handler
    may_send: tuple[str, ...] = ()
    may_send_peers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Event:
    """A condition over the state, and what is done when it is true.

    Attributes:
      name: such as `all_received`, for logs and errors.
      holds: `state -> bool`.
      action: `state -> (state, messages to send)`; it must make the condition false.
      may_send: types of the messages that the action can send to the other role.
      after: types of the messages, and names of the events, that can make it true, for the check
        of completeness; None stands for all.
    """

    name: str
    holds: Callable[[State], bool]
    action: Action
    may_send: tuple[str, ...] = ()
    after: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Role:
    """Server or client: its handlers and its events.

    Attributes:
      name: `server` or `client`.
      rules: message type -> what is done with it.
      events: in the order in which they are looked at after every message.
    """

    name: str
    rules: Mapping[str, Rule] = dataclasses.field(default_factory=lambda: MappingProxyType({}))
    events: tuple[Event, ...] = ()

    def on(
        self,
        message_type: str,
        handler: Handler,
        may_send: Iterable[str] = (),
        may_send_peers: Iterable[str] = (),
    ) -> "Role":
        """The same role with a handler added, or replaced if the type has one.

        Args:
          message_type: what it answers.
          handler: `(state, message) -> (state, messages to send)`.
          may_send: types that it can send to the other role.
          may_send_peers: types that it can send to its own.
        """
        rule = Rule(handler, tuple(may_send), tuple(may_send_peers))
        return dataclasses.replace(self, rules=MappingProxyType({**self.rules, message_type: rule}))

    def without(self, message_type: str) -> "Role":
        """The same role with no handler for a type."""
        rules = {kept: rule for kept, rule in self.rules.items() if kept != message_type}
        return dataclasses.replace(self, rules=MappingProxyType(rules))

    def when(self, event: Event) -> "Role":
        """The same role with an event added, or replaced if one has its name."""
        others = tuple(event if e.name == event.name else e for e in self.events)
        known = any(e.name == event.name for e in self.events)
        return dataclasses.replace(self, events=others if known else (*self.events, event))

    def handler_name(self, message_type: str) -> str:
        """What the handler of a type is called in reports and errors."""
        return f"{self.name}.on({message_type})"

    def event_name(self, event: Event) -> str:
        """What an event is called in reports and errors."""
        return f"{self.name}.when({event.name})"

    def react(self, state: State, message: Message) -> tuple[State, list[Message]]:
        """Handle a message, then every event whose condition it has made true.

        Args:
          state: the participant's.
          message: one that has arrived.

        Returns:
          The new state and the messages to send, in order.

        Raises:
          KeyError: if no handler is registered for the type of the message.
          ValueError: if a handler sends what it does not say that it may send.
        """
        rule = self.rules.get(message.type)
        if rule is None:
            raise KeyError(
                f"a message of type {message.type!r} from {message.sender} to "
                f"{list(message.receivers)} has no handler at the {self.name}; it handles "
                f"{sorted(self.rules)}. Add one with role.on({message.type!r}, handler)"
            )
        state, sent = rule.handler(state, message)
        sent = list(sent)
        for each in sent:
            if each.type not in rule.may_send and each.type not in rule.may_send_peers:
                declared = (*rule.may_send, *rule.may_send_peers)
                raise _undeclared(self.handler_name(message.type), each.type, declared)
        state, more = self.settle(state)
        return state, sent + more

    def settle(self, state: State) -> tuple[State, list[Message]]:
        """Take the action of every event that holds, until none does.

        Args:
          state: the participant's.

        Returns:
          The new state and the messages to send, in order.

        Raises:
          RuntimeError: if the events keep each other true.
          ValueError: if an action sends what it does not say that it may send.
        """
        sent: list[Message] = []
        event = None
        for _ in range(MAX_EVENTS):
            for event in self.events:
                if event.holds(state):
                    break
            else:
                return state, sent
            state, messages = event.action(state)
            messages = list(messages)
            for each in messages:
                if each.type not in event.may_send:
                    raise _undeclared(self.event_name(event), each.type, event.may_send)
            sent.extend(messages)
        assert event is not None, "the loop ends with an event otherwise"
        raise RuntimeError(
            f"after {MAX_EVENTS} events in a row {self.event_name(event)} holds still: the action "
            "of an event must make its own condition false"
        )


def _undeclared(node: str, sent: str, declared: Iterable[str]) -> ValueError:
    return ValueError(
        f"{node} sends {sent!r} and says that it may send {sorted(declared)}: add it to may_send "
        "(may_send_peers, if it is for the same role), by which the check of completeness knows "
        "what may happen"
    )
