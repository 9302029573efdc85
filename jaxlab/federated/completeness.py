"""Is a course complete? The graph of its messages, looked at before it starts.

Every handler is a path from the message that it answers to the messages that it may send, straight
or by an event that it makes true. A course in which no path leads from a client that joins to a
server that finishes would wait for ever.

References:
  Xie et al. 2023, arXiv:2204.05011, section 3.6; `federatedscope/core/auxiliaries/utils.py`
  (`get_message_graph`) of FederatedScope 0.3.0.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from jaxlab.federated.messages import FINISH, JOIN
from jaxlab.federated.roles import Role

Verdict = Literal["pass", "warning", "error"]


class Edge(NamedTuple):
    """One arrow of the graph.

    Attributes:
      source: a message, `client->server:join_in`, a handler, `server.on(join_in)`, or an event,
        `server.when(all_joined)`.
      target: what can follow from it.
    """

    source: str
    target: str


@dataclasses.dataclass(frozen=True)
class CompletenessReport:
    """What the graph of messages shows.

    Attributes:
      verdict: `error` if the course cannot end, `warning` if parts of it can never run, or `pass`.
      problems: one sentence each.
      edges: the graph.
    """

    verdict: Verdict
    problems: tuple[str, ...]
    edges: tuple[Edge, ...]

    def __str__(self) -> str:
        lines = (f"  {problem}" for problem in self.problems)
        return "\n".join((f"completeness of the course: {self.verdict}", *lines))


class IncompleteCourseError(ValueError):
    """A course that cannot end; `report` says why."""

    def __init__(self, report: CompletenessReport) -> None:
        """Keep the report.

        Args:
          report: one with the verdict `error`.
        """
        super().__init__(
            f"{report}\nAdd handlers (role.on) for what is missing, say what handlers may send "
            "(may_send=), or start and run the course with check_complete=False"
        )
        self.report = report


def check_completeness(server: Role, client: Role) -> CompletenessReport:
    """Walks the graph of messages of a course.

    Args:
      server: the server's role.
      client: the clients'.

    Returns:
      `error` if no path leads from a client's `join_in` to the server's `finish`, or a message that
      can be sent has no handler; `warning` if a handler or an event can never run.
    """
    roles = {role.name: role for role in (server, client)}
    other = {server.name: client.name, client.name: server.name}
    edges = [edge for role in roles.values() for edge in _edges(role, other[role.name])]
    reached = _reachable(_message(client.name, server.name, JOIN), edges)
    errors, warnings = [], []
    if _message(server.name, client.name, FINISH) not in reached:
        errors.append(
            f"no path leads from the clients' {JOIN!r} to the server's {FINISH!r}: the course "
            "would never end"
        )
    for role in roles.values():
        for node, receiver, message_type in _sends(role, other[role.name]):
            if message_type not in roles[receiver].rules:
                errors.append(f"{node} may send {message_type!r}, which no {receiver} handles")
        for node in (*map(role.handler_name, role.rules), *map(role.event_name, role.events)):
            if node not in reached:
                warnings.append(f"{node} can never run: nothing that happens leads to it")
    verdict: Verdict = "error" if errors else "warning" if warnings else "pass"
    return CompletenessReport(verdict, (*errors, *warnings), tuple(edges))


def require_complete(server: Role, client: Role) -> CompletenessReport:
    """The report of `check_completeness`, if the course can end.

    Args:
      server: the server's role.
      client: the clients'.

    Raises:
      IncompleteCourseError: (a ValueError) if the verdict is `error`.
    """
    report = check_completeness(server, client)
    if report.verdict == "error":
        raise IncompleteCourseError(report)
    return report


def _message(sender: str, receiver: str, message_type: str) -> str:
    return f"{sender}->{receiver}:{message_type}"


def _sends(role: Role, other: str) -> Iterator[tuple[str, str, str]]:
    """`(handler or event, role of the receiver, type)` of whatever the role may send."""
    for message_type, rule in role.rules.items():
        node = role.handler_name(message_type)
        yield from ((node, other, sent) for sent in rule.may_send)
        yield from ((node, role.name, sent) for sent in rule.may_send_peers)
    for event in role.events:
        yield from ((role.event_name(event), other, sent) for sent in event.may_send)


def _edges(role: Role, other: str) -> Iterator[Edge]:
    for message_type in role.rules:
        handler = role.handler_name(message_type)
        yield Edge(_message(other, role.name, message_type), handler)
        yield Edge(_message(role.name, role.name, message_type), handler)
    causes = {t: role.handler_name(t) for t in role.rules}
    causes |= {event.name: role.event_name(event) for event in role.events}
    for event in role.events:
        names = causes.keys() if event.after is None else causes.keys() & set(event.after)
        yield from (Edge(causes[name], role.event_name(event)) for name in sorted(names))
    for node, receiver, message_type in _sends(role, other):
        yield Edge(node, _message(role.name, receiver, message_type))


def _reachable(start: str, edges: Iterable[Edge]) -> set[str]:
    following: dict[str, list[str]] = {}
    for source, target in edges:
        following.setdefault(source, []).append(target)
    seen, waiting = {start}, [start]
    while waiting:
        for target in following.get(waiting.pop(), ()):
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    return seen
