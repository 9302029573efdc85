"""The server of a course: how it answers.

The server does not know what is learned. A `ServerProgram` gives it functions (the content of a
broadcast, the aggregation ...), and everything that concerns pace, staleness, who works and who
fails is here; evaluations, and with the last of them the end, are in `server_evaluation`. Its
handlers take the state over, change it and give it back.

What goes wrong on the way is not hidden: `ServerState.counts` holds

* `failed_clients`: clients that said that they cannot train, `failed_evaluations` likewise;
* `empty_cohorts`: cohorts of which nobody sent an update, `short_cohorts`: cohorts that were
  smaller than asked for, since too few clients were idle;
* `duplicate_updates`, `duplicate_metrics`: messages that answer nothing the server waits for;
* `dropped_updates`: updates that were too old, `late_updates`: those after the last round,
  `replaced_updates`: those that a second one took the place of (`compat`);
* `rejected_updates`: updates that the program refused, such as those that are not finite;
* `timed_out_clients`: clients that were no longer waited for (`answer_timeout_s`);
* `late_metrics`, `rejected_joins`, `unknown_senders`.

References:
  Xie et al. 2023, arXiv:2204.05011, sections 3 and 4; `federatedscope/core/workers/server.py` of
  FederatedScope 0.3.0.
"""

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np

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
from jaxlab.federated.roles import Event, Role
from jaxlab.federated.samplers import Sampler
from jaxlab.federated.server_evaluation import Examiner
from jaxlab.federated.server_state import (
    Aggregation,
    CourseConfig,
    Reaction,
    Received,
    Request,
    ServerProgram,
    ServerState,
    TooManyFailuresError,
    Update,
    is_known,
    make_request,
)
from jaxlab.federated.strategy import check_population

_logger = logging.getLogger(__name__)

NUM_SAMPLE = "num_sample"
"""What a client tells of itself: the examples that it goes through in a round."""


def init_server(
    config: CourseConfig, model: Any, sampler: Sampler, excluded: Iterable[int] = ()
) -> ServerState:
    """The state of a server before anybody has joined.

    Args:
      config: the course.
      model: what the program starts from.
      sampler: how clients are drawn.
      excluded: clients that are never asked to train. Those that tell when they join that they have
        no examples (`num_sample` 0) are added to them.

    Raises:
      ConfigError: (a ValueError) if too few clients are left.
    """
    state = ServerState(model, sampler.init(_generator(config.seed, 0)), num_draws=1)
    state.excluded = {int(client) for client in excluded}
    check_population(config.strategy, len(_trainable(config, state)))
    return state


def make_server(config: CourseConfig, program: ServerProgram, sampler: Sampler) -> Role:
    """The role of the server.

    Args:
      config: the course.
      program: what it learns with.
      sampler: how clients are drawn.

    Returns:
      A role whose handlers and events can be replaced, see `Role.on` and `Role.when`. The events
      are `all_joined`; `all_received` and `all_done` (synchronous), `goal_achieved` or `time_up`;
      `timeout`, if there is an `answer_timeout_s`; `refill`; `all_metrics`.
    """
    return _Server(config, program, sampler).role()


class _Server:
    """Handlers and actions over a `ServerState`; holds nothing that changes."""

    def __init__(self, config: CourseConfig, program: ServerProgram, sampler: Sampler) -> None:
        self.config, self.program, self.sampler = config, program, sampler
        self.strategy = config.strategy
        self.examiner = Examiner(config, program)

    def role(self) -> Role:
        role = Role("server")
        role = role.on(JOIN, self.on_join, (ASSIGN_ID, ASK_INFO))
        role = role.on(INFO, self.on_info)
        role = role.on(MODEL, self.on_update)
        role = role.on(FAILURE, self.on_failure)
        role = role.on(METRICS, self.examiner.on_metrics)
        for event in self.events():
            role = role.when(event)
        return role

    def events(self) -> list[Event]:
        closes = {
            "synchronous": [
                Event("all_received", self.has_enough, self.aggregate, (MODEL, EVALUATE), (MODEL,)),
                Event(
                    "all_done", self.has_no_worker, self.close_cohort, (MODEL, EVALUATE), (FAILURE,)
                ),
            ],
            "goal_achieved": [
                Event("goal_achieved", self.has_enough, self.aggregate, (MODEL, EVALUATE), (MODEL,))
            ],
            "time_up": [
                Event(
                    "time_up", self.is_time_up, self.close_round, (MODEL, EVALUATE),
                    (MODEL, FAILURE, "all_joined"),
                )
            ],
        }  # fmt: skip
        timeout = Event("timeout", self.is_overdue, self.give_up_waiting, (MODEL,), ("all_joined",))
        return [
            Event("all_joined", self.all_joined, self.start, (MODEL,), (JOIN, INFO)),
            # Before the others: what is asked again must not look as if nobody were at work.
            *([timeout] if self.config.answer_timeout_us else []),
            *closes[self.strategy.kind],
            Event("refill", lambda s: s.refills > 0, self.refill, (MODEL,), (MODEL, FAILURE)),
            Event(
                "all_metrics", self.examiner.has_all_metrics, self.examiner.end_evaluation,
                (CONVERGED, FINISH), (METRICS, FAILURE),
            ),
        ]  # fmt: skip

    # Joining.

    def on_join(self, state: ServerState, message: Message) -> Reaction:
        client, sent = message.sender, []
        if client == UNASSIGNED:
            client = max(state.info, default=SERVER) + 1
            sent.append(make_request(state, ASSIGN_ID, (UNASSIGNED,), client))
        if not 1 <= client <= self.config.num_clients or client in state.info:
            reason = "has joined already" if client in state.info else "is unknown"
            _logger.warning("client %d %s: its %s is ignored", client, reason, JOIN)
            state.counts["rejected_joins"] += 1
            return state, []
        state.info[client] = {}
        if self.config.ask_on_join:
            sent.append(make_request(state, ASK_INFO, (client,), list(self.config.ask_on_join)))
        return state, sent

    def on_info(self, state: ServerState, message: Message) -> Reaction:
        if not is_known(state, message):
            return state, []
        state.info[message.sender] = dict(message.content)
        if message.content.get(NUM_SAMPLE) == 0:
            state.excluded.add(message.sender)
        return state, []

    def all_joined(self, state: ServerState) -> bool:
        if state.started or len(state.info) < self.config.num_clients:
            return False
        wanted = set(self.config.ask_on_join)
        return all(wanted <= answers.keys() for answers in state.info.values())

    def start(self, state: ServerState) -> Reaction:
        check_population(self.strategy, len(_trainable(self.config, state)))
        state.started = True
        state.deadline_us = state.clock_us + self.strategy.time_budget_us
        return self._dispatch(state, self.strategy.cohort_size)

    # Updates.

    def on_update(self, state: ServerState, message: Message) -> Reaction:
        if not self._take_answer(state, message):
            return state, []
        state.failures_in_a_row = 0
        if not self._is_open(state):
            return self._discard(state, message.content, "late_updates")
        received = Received(message.round, message.sender, message.content)
        if message.round == state.round:
            if self.strategy.compat:
                state = self._replace_earlier(state, message.sender)
            state.fresh.append(received)
        elif message.round >= state.round - self.strategy.max_staleness:
            state.stale.append(received)
        else:
            state.dropped += 1
            state, _ = self._discard(state, message.content, "dropped_updates")
        if self.strategy.broadcast == "after_receiving":
            state.refills += 1
        return state, []

    def on_failure(self, state: ServerState, message: Message) -> Reaction:
        """A client cannot do what it was asked for; asynchronously another takes its place."""
        if self.examiner.take_failure(state, message):
            return state, []
        if not self._take_answer(state, message):
            return state, []
        _logger.info("client %d has failed: %s", message.sender, message.content)
        state.counts["failed_clients"] += 1
        state.failures_in_a_row += 1
        if self._is_open(state) and state.failures_in_a_row >= self.config.failure_limit:
            raise TooManyFailuresError(
                f"round {state.round}: {state.failures_in_a_row} clients in a row have failed, the "
                f"last one was client {message.sender}: {message.content!r}. Look at why, or raise "
                "max_failures_in_a_row"
            )
        if self.strategy.is_asynchronous:
            state.refills += 1
        return state, []

    def _take_answer(self, state: ServerState, message: Message) -> bool:
        """Whether the message answers what its sender works on; the sender is idle then."""
        if not is_known(state, message):
            return False
        if message.round > state.round:
            raise ValueError(
                f"client {message.sender} sent {message.type!r} of round {message.round}; the "
                f"server is in round {state.round}. An answer repeats the round that it was asked "
                "in, see Message.reply"
            )
        request = state.busy.get(message.sender)
        if request is None or request.number != message.request:
            _logger.info(
                "client %d does not work on request %d: its %s is ignored",
                message.sender, message.request, message.type,
            )  # fmt: skip
            state.counts["duplicate_updates"] += 1
            return False
        del state.busy[message.sender]
        state.timeouts_in_a_row = 0
        state.clock_us = max(state.clock_us, message.time_us)
        return True

    def _replace_earlier(self, state: ServerState, client: int) -> ServerState:
        """Forget what a client has sent in this round before."""
        for received in state.fresh:
            if received.client == client:
                state, _ = self._discard(state, received.content, "replaced_updates")
        state.fresh = [received for received in state.fresh if received.client != client]
        return state

    def _discard(self, state: ServerState, content: Any, reason: str) -> Reaction:
        self.program.discard(content)
        state.counts[reason] += 1
        return state, []

    # Rounds.

    def has_enough(self, state: ServerState) -> bool:
        received = len(state.fresh) + len(state.stale)
        return self._is_open(state) and received >= self.strategy.num_updates

    def has_no_worker(self, state: ServerState) -> bool:
        return self._is_open(state) and not any(
            request.round == state.round for request in state.busy.values()
        )

    def close_cohort(self, state: ServerState) -> Reaction:
        """Aggregate what a cohort has sent before it failed, or sample another one."""
        if state.fresh:
            return self.aggregate(state)
        state.counts["empty_cohorts"] += 1
        return self._dispatch(state, self.strategy.cohort_size)

    def is_time_up(self, state: ServerState) -> bool:
        return self._is_open(state) and state.clock_us >= state.deadline_us

    def close_round(self, state: ServerState) -> Reaction:
        """Aggregate what has come in time, or wait for another time budget if nothing has."""
        if state.fresh or state.stale:
            return self.aggregate(state)
        state.deadline_us = state.clock_us + self.strategy.time_budget_us
        if self.strategy.broadcast == "after_receiving":
            return state, []
        count, state.dropped = state.dropped, 0
        return self._dispatch(state, count)

    def aggregate(self, state: ServerState) -> Reaction:
        updates = [Update(r.client, r.content, 0) for r in state.fresh]
        updates += [Update(r.client, r.content, state.round - r.round) for r in state.stale]
        state.model, refused = self.program.aggregate(state.model, updates, state.round)
        state.aggregations.append(
            Aggregation(
                state.round, state.clock_us, tuple(r.client for r in state.fresh),
                tuple((r.round, r.client) for r in state.stale), state.dropped, tuple(refused),
            )
        )  # fmt: skip
        self._note_refused(state, refused, len(updates))
        state.round += 1
        state.fresh, state.stale = [], []
        state.deadline_us = state.clock_us + self.strategy.time_budget_us
        is_last = state.round >= self.config.num_rounds
        every, sent = self.config.eval_every_rounds, []
        if is_last or (every and state.round % every == 0):
            state, sent = self.examiner.evaluate(state)
        if is_last or self.strategy.broadcast == "after_receiving":
            return state, sent
        count = self.strategy.cohort_size
        if self.strategy.is_asynchronous and not self.strategy.over_select:
            count = len(updates) + state.dropped
        state.dropped = 0
        state, asked = self._dispatch(state, count)
        return state, sent + asked

    def _note_refused(self, state: ServerState, refused: Iterable[int], num_updates: int) -> None:
        """Count refused updates, and give up when there are too many of them."""
        clients = list(refused)
        if clients:
            state.counts["rejected_updates"] += len(clients)
        new = [True] * len(clients) + [False] * (num_updates - len(clients))
        window = self.strategy.cohort_size
        state.refused = [*state.refused, *new][-window:]
        share = sum(state.refused) / window
        if share > self.config.max_rejected_share:
            raise TooManyFailuresError(
                f"round {state.round}: {sum(state.refused)} of the last {len(state.refused)} "
                f"updates were refused, now those of the clients {clients}: more than "
                f"max_rejected_share={self.config.max_rejected_share} of a cohort of {window}. "
                "Updates that are not finite come from a learning rate that is too high, gradients "
                "that are not clipped, or broken examples"
            )

    # Waiting.

    def is_overdue(self, state: ServerState) -> bool:
        latest = state.clock_us - self.config.answer_timeout_us
        return not state.finished and (
            any(request.time_us <= latest for request in state.busy.values())
            or self.examiner.is_overdue(state, latest)
        )

    def give_up_waiting(self, state: ServerState) -> Reaction:
        """Ask others, or those who do not answer once more; what has come of the round counts.

        The original clears what it has received and asks a whole cohort again.
        """
        latest = state.clock_us - self.config.answer_timeout_us
        self.examiner.give_up_waiting(state, latest)
        overdue = {c: request for c, request in state.busy.items() if request.time_us <= latest}
        if not overdue:
            return state, []
        state.busy = {c: request for c, request in state.busy.items() if c not in overdue}
        state.counts["timed_out_clients"] += len(overdue)
        state.timeouts_in_a_row += 1
        _logger.warning("clients %s have not answered in time", sorted(overdue))
        if state.timeouts_in_a_row >= self.config.max_timeouts_in_a_row:
            raise TooManyFailuresError(
                f"round {state.round}: no client has answered {state.timeouts_in_a_row} times "
                f"within answer_timeout_s={self.config.answer_timeout_s}, last those of the "
                f"clients {sorted(overdue)}. Look whether they run, raise the time, or lower "
                "min_updates to go on without them"
            )
        if self.strategy.is_asynchronous:
            state.refills += len(overdue)
            return state, []
        count = sum(request.round == state.round for request in overdue.values())
        answered = frozenset(received.client for received in state.fresh)
        return self._dispatch(state, count, answered) if self._is_open(state) else (state, [])

    def refill(self, state: ServerState) -> Reaction:
        count, state.refills = state.refills, 0
        for_each = []
        for _ in range(count if self._is_open(state) else 0):
            state, sent = self._dispatch(state, 1)
            for_each += sent
        return state, for_each

    def _dispatch(
        self, state: ServerState, count: int, answered: frozenset[int] = frozenset()
    ) -> Reaction:
        """Ask newly sampled idle clients to train; not those who have answered in this round."""
        clients = _trainable(self.config, state)
        others = state.busy.keys() | answered
        idle = clients[~np.isin(clients, list(others))] if others else clients
        # Stragglers of earlier rounds may leave fewer idle: enough is as good.
        enough = 0 if self.strategy.is_asynchronous else self.strategy.num_updates - len(answered)
        if enough <= len(idle) < count:
            state.counts["short_cohorts"] += 1
            count = len(idle)
        if not count:
            return state, []
        rng = _generator(self.config.seed, state.num_draws)
        state.sampler, chosen = self.sampler.sample(state.sampler, rng, idle, count)
        state.num_draws += 1
        receivers = tuple(int(client) for client in chosen)
        content = self.program.broadcast(state.model, state.round)
        message = make_request(state, MODEL, receivers, content)
        request = Request(message.request, state.round, state.clock_us)
        state.busy |= dict.fromkeys(receivers, request)
        return state, [message]

    def _is_open(self, state: ServerState) -> bool:
        return state.started and not state.finished and state.round < self.config.num_rounds


def _trainable(config: CourseConfig, state: ServerState) -> np.ndarray:
    """Ids of the clients that may be asked to train."""
    seen = np.arange(1, config.num_clients - config.num_unseen + 1)
    return seen[~np.isin(seen, list(state.excluded))] if state.excluded else seen


def _generator(seed: int, draw: int) -> np.random.Generator:
    """The generator of one draw: it depends on its number and on nothing drawn before."""
    return np.random.default_rng((seed, draw))
