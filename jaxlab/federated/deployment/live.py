"""A course in real time: the server's role driven by what nodes answer, when they answer it.

The clock is the microseconds since the course began. Nodes only answer, so that the server asks
every node that it sees to join. All that one reaction of the server has for a node goes to it in
one parcel and is handled in order. What the server has asked of a node that is gone is sent again
when the node is back; how long a client is waited for is `CourseConfig.answer_timeout_s`.

Nothing that comes from outside can end the course by being wrong: what cannot be read, has another
form than agreed, or comes from somebody else than it says, is refused and counted:

* `malformed_messages`: what could not be read or understood; for the course the client has failed;
* `forged_senders`: messages in another client's name, `rejected_joins`: nodes that ask for a number
  that is taken or unknown;
* `lost_parcels`: what nodes had not answered when they were gone, `rejoined_clients`: nodes that
  are back;
* `bytes_down`, `bytes_up`: of all messages.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence

from jaxlab.federated.deployment.codec import Packed, Packer, unpack
from jaxlab.federated.deployment.learner import Learner
from jaxlab.federated.deployment.transport import Delivery, Parcel, Transport
from jaxlab.federated.messages import (
    ASK_INFO,
    ASSIGN_ID,
    EVALUATE,
    FAILURE,
    FINISH,
    JOIN,
    MODEL,
    SERVER,
    UNASSIGNED,
    Message,
    check_content,
)
from jaxlab.federated.roles import Role
from jaxlab.federated.server_state import Request, ServerState

_logger = logging.getLogger(__name__)

NEEDS_ANSWER = (MODEL, EVALUATE)
"""Messages for whose answer a course waits."""


@dataclasses.dataclass(frozen=True)
class LiveConfig:
    """How a course is run in real time.

    Attributes:
      poll_s: seconds between two looks at what has come.
      join_timeout_s: the course is given up when not all clients have joined by then.
      finish_timeout_s: how long nodes are waited for that do not answer that the course has ended.
      max_message_bytes: larger answers are refused.
      fixed_nodes: a client stays with the node that it first joined from. Nodes that are
        authenticated keep their id when they come back; others get a new one, and then whoever
        asks for the number of a client that is gone is believed.
    """

    poll_s: float = 0.5
    join_timeout_s: float = 600.0
    finish_timeout_s: float = 30.0
    max_message_bytes: int = 2**30
    fixed_nodes: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError listing what is not positive."""
        names = ("poll_s", "join_timeout_s", "finish_timeout_s", "max_message_bytes")
        wrong = [f"{n}={getattr(self, n)}" for n in names if not getattr(self, n) > 0]
        if wrong:
            raise ValueError(f"LiveConfig: {', '.join(wrong)} must be positive")


@dataclasses.dataclass
class LiveState:
    """A course in real time, between two messages.

    Attributes:
      server: state of the server.
      nodes: client -> node that it lives on; a server that is started again learns it anew, since
        clients join again.
    """

    server: ServerState
    nodes: dict[int, int] = dataclasses.field(default_factory=dict)


class NotJoinedError(RuntimeError):
    """Clients did not join in time."""


def run_live(
    learner: Learner,
    state: LiveState,
    transport: Transport,
    config: LiveConfig,
    *,
    clock: Callable[[], float],
    wait: Callable[[float], None],
    on_progress: Callable[[LiveState], None] = lambda state: None,
    on_join: Callable[[LiveState], None] = lambda state: None,
) -> LiveState:
    """Runs a course to its end, or on from where a server was stopped.

    Args:
      learner: the server's side.
      state: where the course stands: `LiveState(learner.start())`, or what a checkpoint held. It is
        taken over.
      transport: to the nodes.
      config: times and limits.
      clock: seconds, never going backwards.
      wait: waits for some seconds.
      on_progress: called whenever the server has begun, aggregated, evaluated or finished, before
        the messages that follow from it are sent: what nodes know, a checkpoint knows.
      on_join: called whenever a node has joined or come back; `nodes` of the state holds them.

    Returns:
      The state at the end.

    Raises:
      NotJoinedError: (a RuntimeError) if clients do not join in time.
      TooManyFailuresError: (a RuntimeError) if clients fail, or fall silent, beyond what the course
        allows.
    """
    live = _Live(learner, state, transport, config, clock, on_progress, on_join)
    live.resume()
    while True:
        live.look()
        if state.server.finished and live.is_done():
            return state
        wait(config.poll_s)


def _progress(server: ServerState) -> tuple[object, ...]:
    return server.started, server.round, len(server.evaluations), server.finished


class _Live:
    """The loop's hands; holds what is under way, which a server that is started again asks anew."""

    def __init__(
        self,
        learner: Learner,
        state: LiveState,
        transport: Transport,
        config: LiveConfig,
        clock: Callable[[], float],
        on_progress: Callable[[LiveState], None],
        on_join: Callable[[LiveState], None],
    ) -> None:
        self.on_join, self.joined = on_join, dict(state.nodes)
        self.on_progress, self.seen = on_progress, _progress(state.server)
        self.learner, self.state, self.transport, self.config = learner, state, transport, config
        # While answers are read nobody is late: theirs may be the next one.
        events = tuple(e for e in learner.role.events if e.name != "timeout")
        self.patient = dataclasses.replace(learner.role, events=events)
        self.clock = clock
        # The clock of the course goes on where it stood.
        self.zero_s = clock() - state.server.clock_us / 1e6
        self.began_s = clock()
        self.finished_s: float | None = None
        self.online: set[int] = set()
        self.under_way: dict[str, Parcel] = {}
        self.lost: list[Parcel] = []
        self.greeted: set[int] = set()
        self.turned_away: dict[int, int] = {}
        self.serial = 0

    # Time.

    def now_us(self) -> int:
        return max(self.state.server.clock_us, round((self.clock() - self.zero_s) * 1e6))

    def look(self) -> None:
        """Handles what has come, and the time that has passed."""
        if not self.state.server.started:
            # The course begins when all have joined.
            self.zero_s = self.clock() - self.state.server.clock_us / 1e6
        self.online = set(self.transport.nodes())
        self.greet()
        for delivery in self.transport.receive():
            self.take(delivery)
        if self.state.nodes != self.joined:
            self.joined = dict(self.state.nodes)
            self.on_join(self.state)
        self.send_again()
        self.pass_time(self.learner.role)
        server = self.state.server
        if server.finished and self.finished_s is None:
            self.finished_s = self.clock()
        if not server.started and self.clock() - self.began_s > self.config.join_timeout_s:
            missing = sorted(set(range(1, self.num_clients + 1)) - server.info.keys())
            raise NotJoinedError(
                f"{len(server.info)} of {self.num_clients} clients have joined within "
                f"join_timeout_s={self.config.join_timeout_s}; {missing or 'none'} are missing. "
                "Start their nodes, or raise the time"
            )

    def pass_time(self, role: Role) -> None:
        """Moves the clock, and takes the actions of a role that are due."""
        server = self.state.server
        if server.started and not server.finished:
            server.clock_us = self.now_us()
            self.state.server, sent = role.settle(server)
            self.go_on(sent)

    def is_done(self) -> bool:
        """Whether all nodes know that the course has ended, or were waited for long enough."""
        if self.finished_s is None:
            return False
        waits = any(m.type == FINISH for parcel in self.under_way.values() for m in parcel.messages)
        return not waits or self.clock() - self.finished_s > self.config.finish_timeout_s

    @property
    def num_clients(self) -> int:
        return self.learner.agreement.config.num_clients

    # Sending.

    def post(self, messages: Iterable[Message], guest: int | None = None) -> None:
        """Sends messages, all for a node in one parcel.

        Args:
          messages: of the server, or of a client to others.
          guest: node of a client that has no id yet.
        """
        parcels: dict[int, list[Message]] = {}
        pack = Packer()
        for message in messages:
            check_content(message.content, f"the content of {message.type!r}")
            for receiver in message.receivers:
                if message.type == ASSIGN_ID and guest is not None:
                    self.state.nodes[int(message.content)] = guest
                node = guest if receiver == UNASSIGNED else self.state.nodes.get(receiver)
                single = dataclasses.replace(message, receivers=(receiver,), serial=self.serial)
                self.serial += 1
                if node is None:
                    self.keep_for_later(single)
                    continue
                parcels.setdefault(node, []).append(single)
        for node, parcel in parcels.items():
            self.dispatch(Parcel(node, tuple(parcel)), pack)

    def keep_for_later(self, message: Message) -> None:
        """Keeps what is for a client that has joined, and whose node has not come back yet."""
        if message.receivers[0] in self.state.server.info:
            self.lost.append(Parcel(UNASSIGNED, (message,)))
        else:
            text = f"{message.type!r} is for {message.receivers[0]}, who is no client"
            self.refuse("unknown_receivers", text)

    def dispatch(self, parcel: Parcel, pack: Packer) -> None:
        packed = [pack(message) for message in parcel.messages]
        ticket = self.transport.send(parcel.node, _kind(parcel.messages), packed)
        if ticket is None:
            self.lose(parcel)
            return
        self.state.server.counts["bytes_down"] += sum(p.num_bytes for p in packed)
        self.under_way[ticket] = parcel

    def lose(self, parcel: Parcel) -> None:
        """What a node does not answer is sent again when it is back; evaluations go on without."""
        self.state.server.counts["lost_parcels"] += 1
        if parcel.messages[0].type == JOIN:
            self.greeted.discard(parcel.node)
            return
        # Whoever has no number yet asks for it again.
        dropped = {FINISH, ASSIGN_ID} | (set() if parcel.node in self.online else {EVALUATE})
        kept = tuple(m for m in parcel.messages if m.type not in dropped)
        if kept:
            self.lost.append(parcel._replace(messages=kept))
        for message in parcel.messages:
            if message.type == EVALUATE and EVALUATE in dropped:
                self.react(message.reply(FAILURE, "the node is gone"))

    def send_again(self) -> None:
        """Sends what was lost to nodes that are back, if it is still waited for."""
        waiting, self.lost = self.lost, []
        pack = Packer()
        for parcel in waiting:
            node = self.state.nodes.get(parcel.messages[0].receivers[0])
            wanted = tuple(m for m in parcel.messages if self.is_wanted(m))
            if wanted and node in self.online:
                self.dispatch(Parcel(node, wanted), pack)
            elif wanted:
                self.lost.append(parcel._replace(messages=wanted))

    def is_wanted(self, message: Message) -> bool:
        if message.type != MODEL:
            return not self.state.server.finished
        request = self.state.server.busy.get(message.receivers[0])
        return request is not None and request.number == message.request

    # Receiving.

    def take(self, delivery: Delivery) -> None:
        parcel = self.under_way.pop(delivery.ticket, None)
        if parcel is None:
            return
        if delivery.is_lost:
            self.lose(parcel)
            return
        if delivery.failure:
            self.fail(parcel, delivery.failure)
            return
        self.state.server.counts["bytes_up"] += sum(p.num_bytes for p in delivery.answers)
        answered, is_sound = set(), bool(delivery.answers)
        for packed in delivery.answers:
            message = self.read(packed)
            if message is not None and message.type == JOIN:
                self.join(parcel.node, message)
            elif message is not None and self.is_sender(parcel, message):
                answered.add(message.request)
                self.handle(message)
            else:
                is_sound = False
        if not is_sound:
            silent = tuple(m for m in parcel.messages if m.request not in answered)
            self.fail(parcel._replace(messages=silent), "the answer cannot be used")

    def read(self, packed: Packed) -> Message | None:
        """The message in some bytes, None if there is none."""
        try:
            message = unpack(packed, self.config.max_message_bytes)
            if message.type != JOIN:
                self.check(message)
        except ValueError as error:
            self.refuse("malformed_messages", f"a message is refused: {error}")
            return None
        return message

    def check(self, message: Message) -> None:
        if message.round > self.state.server.round:
            raise ValueError(
                f"{message.type!r} of client {message.sender} is of round {message.round}, and the "
                f"course is in round {self.state.server.round}"
            )
        if SERVER in message.receivers:
            if message.type not in self.learner.role.rules:
                raise ValueError(f"{message.type!r} is nothing that the server handles")
            self.learner.check(message)

    def is_sender(self, parcel: Parcel, message: Message) -> bool:
        """Whether a message comes from whom it says."""
        if message.sender in {m.receivers[0] for m in parcel.messages}:
            return True
        self.refuse(
            "forged_senders",
            f"node {parcel.node} sent {message.type!r} in the name of client {message.sender}",
        )
        return False

    def handle(self, message: Message) -> None:
        """A message of a client: for the server, or for other clients."""
        others = tuple(receiver for receiver in message.receivers if receiver != SERVER)
        if others:
            self.post([dataclasses.replace(message, receivers=others)])
        if SERVER in message.receivers:
            self.react(message)

    def react(self, message: Message, guest: int | None = None) -> None:
        self.pass_time(self.patient)
        stamped = dataclasses.replace(
            message, receivers=(SERVER,), time_us=self.now_us(), serial=self.serial
        )
        self.serial += 1
        self.state.server, sent = self.patient.react(self.state.server, stamped)
        self.go_on(sent, guest)

    def go_on(self, sent: Sequence[Message], guest: int | None = None) -> None:
        """Tells of progress, then sends what the server wants to be sent."""
        if (now := _progress(self.state.server)) != self.seen:
            self.seen = now
            self.on_progress(self.state)
        self.post(sent, guest)

    def fail(self, parcel: Parcel, reason: str) -> None:
        """Tells the server that a client could not do what it was asked for."""
        for message in parcel.messages:
            if message.type in NEEDS_ANSWER:
                _logger.warning("node %d, %s: %s", parcel.node, message.type, reason)
                self.react(message.reply(FAILURE, reason))

    def refuse(self, reason: str, text: str) -> None:
        _logger.warning("%s", text)
        self.state.server.counts[reason] += 1

    # Joining.

    def greet(self) -> None:
        """Asks nodes to join that have come, or come back."""
        for node, holder in list(self.turned_away.items()):
            if holder not in self.online:  # the client that it asked to be is free now
                del self.turned_away[node]
                self.greeted.discard(node)
        self.greeted &= self.online
        if self.state.server.finished:
            return
        for node in sorted(self.online - self.greeted):
            self.greeted.add(node)
            self.dispatch(Parcel(node, (Message(JOIN, SERVER, (UNASSIGNED,)),)), Packer())

    def join(self, node: int, message: Message) -> None:
        """Takes a client in, or back."""
        nodes, server = self.state.nodes, self.state.server
        client = message.sender
        if client == UNASSIGNED:  # and yet it may be known by its node
            client = next((c for c, known in nodes.items() if known == node), UNASSIGNED)
        if client in server.info:
            self.rejoin(node, client, message.sender == UNASSIGNED)
            return
        if 1 <= client <= self.num_clients:
            nodes[client] = node
        self.react(message, node)

    def rejoin(self, node: int, client: int, forgot: bool) -> None:
        """Takes a client back, if it is the one."""
        nodes, server = self.state.nodes, self.state.server
        holder = nodes.get(client, node)
        if holder != node and (self.config.fixed_nodes or holder in self.online):
            self.refuse(
                "rejected_joins",
                f"node {node} asks to be client {client}, which lives on node {holder}",
            )
            if not self.config.fixed_nodes:
                self.turned_away[node] = holder
            return
        server.counts["rejoined_clients"] += 1
        nodes[client] = node
        asked = self.learner.agreement.config.ask_on_join
        sent = [self.ask(ASSIGN_ID, (UNASSIGNED,), client, 0)] if forgot else []
        if not server.started and asked:
            sent.append(self.ask(ASK_INFO, (client,), list(asked), 0))
        self.post(sent, node)

    # A server that is started again.

    def resume(self) -> None:
        """Asks again for what clients worked on when the server was stopped."""
        server = self.state.server
        if server.finished or not server.started:
            return
        now_us, sent = self.now_us(), []
        for client, request in sorted(server.busy.items()):
            if request.round != server.round:
                # The model that it was sent is gone.
                del server.busy[client]
                server.refills += self.learner.agreement.config.strategy.is_asynchronous
                continue
            server.busy[client] = Request(request.number, request.round, now_us)
        evaluations = [e for e in server.evaluating if e.round == server.round]
        server.counts["lost_evaluations"] += len(server.evaluating) - len(evaluations)
        server.evaluating = evaluations
        program = self.learner.program
        for evaluating in evaluations:
            evaluating.time_us = now_us
            content = program.evaluation(server.model, server.round)
            waited = set(range(1, self.num_clients + 1)) - evaluating.metrics.keys()
            sent.append(self.ask(EVALUATE, waited - evaluating.silent, content, evaluating.request))
        content = program.broadcast(server.model, server.round)
        sent += [
            self.ask(MODEL, {client}, content, request.number)
            for client, request in server.busy.items()
        ]
        self.post(sent)

    def ask(self, kind: str, clients: Iterable[int], content: object, request: int) -> Message:
        server = self.state.server
        return Message(
            kind, SERVER, tuple(sorted(clients)), content, server.round, server.clock_us,
            request=request,
        )  # fmt: skip


def _kind(messages: Sequence[Message]) -> str:
    """What Flower calls a parcel."""
    types = {message.type for message in messages}
    if MODEL in types:
        return "train"
    return "evaluate" if EVALUATE in types else "query"
