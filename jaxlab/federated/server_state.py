"""What the server of a course knows, and what it is told to do.

References:
  Xie et al. 2023, arXiv:2204.05011, sections 3 and 4; `federatedscope/core/workers/server.py` of
  FederatedScope 0.3.0.
"""

import collections
import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxlab.federated.messages import SERVER, Message
from jaxlab.federated.samplers import SamplerState
from jaxlab.federated.strategy import ConfigError, Strategy, check_population

_logger = logging.getLogger(__name__)


class Received(NamedTuple):
    """An update as it waits at the server.

    Attributes:
      round: the server's round that it is based on.
      client: who sent it.
      content: what was sent.
    """

    round: int
    client: int
    content: Any


class Update(NamedTuple):
    """An update that is aggregated.

    Attributes:
      client: who sent it.
      content: what was sent.
      staleness: rounds between the model that it is based on and the server's.
    """

    client: int
    content: Any
    staleness: int


class Request(NamedTuple):
    """What a client works on.

    Attributes:
      number: of the request; the answer repeats it.
      round: the server's round when it asked.
      time_us: when it asked.
    """

    number: int
    round: int
    time_us: int = 0


@dataclasses.dataclass
class Evaluating:
    """An evaluation under way.

    Attributes:
      round: aggregations before it.
      time_us: virtual time of the model.
      request: number of the request; the answers repeat it.
      metrics: what clients have answered.
      silent: clients that have failed to.
    """

    round: int
    time_us: int
    request: int
    metrics: dict[int, Any] = dataclasses.field(default_factory=dict)
    silent: set[int] = dataclasses.field(default_factory=set)


class TooManyFailuresError(RuntimeError):
    """Clients fail, or send updates that are no numbers, beyond what the course allows."""


class ServerProgram(NamedTuple):
    """What a server learns with; `model` is whatever the program wants it to be.

    Attributes:
      broadcast: `(model, round) -> content` of the message that asks clients to train.
      aggregate: `(model, updates, round) -> (model, ids of the clients whose update was refused)`.
      evaluation: `(model, round) -> content` of the message that asks clients to evaluate.
      merge: `(model, client -> metrics, round) -> metrics` of an evaluation.
      final: `model -> content` of the message that ends the course.
      discard: called with the content of an update that will not be aggregated.
      is_converged: `(evaluations so far) -> bool`, asked after every evaluation.
    """

    broadcast: Callable[[Any, int], Any]
    aggregate: Callable[[Any, Sequence[Update], int], tuple[Any, Sequence[int]]]
    evaluation: Callable[[Any, int], Any]
    merge: Callable[[Any, Mapping[int, Any], int], Mapping[str, float]]
    final: Callable[[Any], Any]
    discard: Callable[[Any], None] = lambda content: None
    is_converged: Callable[[Sequence["Evaluation"]], bool] = lambda evaluations: False


@dataclasses.dataclass(frozen=True)
class CourseConfig:
    """How long a course is and how it is paced.

    Attributes:
      num_clients: clients in all; their ids are 1 to num_clients.
      num_rounds: aggregations after which the course ends.
      strategy: when the server aggregates.
      num_unseen: clients, those with the last ids, that never train and are evaluated only.
      eval_every_rounds: aggregations between two evaluations; 0 evaluates at the end only.
      ask_on_join: what a client is asked when it joins, such as `num_sample`.
      seed: of the draws of clients.
      max_rejected_share: the course is given up when more than this share of the last `cohort_size`
        updates was refused, in [0, 1]; 1 never gives up.
      max_failures_in_a_row: the course is given up when so many clients have failed and none has
        answered; None means five cohorts.
      answer_timeout_s: seconds after which a client that has not answered is no longer waited for;
        0 waits for ever, as simulations do, whose clients always answer.
      max_timeouts_in_a_row: the course is given up when clients were so often waited for in vain
        and none has answered.
    """

    num_clients: int
    num_rounds: int
    strategy: Strategy = Strategy()
    num_unseen: int = 0
    eval_every_rounds: int = 1
    ask_on_join: tuple[str, ...] = ()
    seed: int = 0
    max_rejected_share: float = 0.5
    max_failures_in_a_row: int | None = None
    answer_timeout_s: float = 0.0
    max_timeouts_in_a_row: int = 5

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
          ConfigError: (a ValueError) with the numbers of what is out of range.
        """
        problems = [
            f"{name}={getattr(self, name)} must be at least {least}"
            for name, least in (
                ("num_clients", 1), ("num_rounds", 1), ("num_unseen", 0), ("eval_every_rounds", 0)
            )
            if getattr(self, name) < least
        ]  # fmt: skip
        if not 0 <= self.max_rejected_share <= 1:
            problems.append(f"max_rejected_share={self.max_rejected_share} must be in [0, 1]")
        if not self.answer_timeout_s >= 0:
            problems.append(f"answer_timeout_s={self.answer_timeout_s} must be 0 or more")
        if self.max_timeouts_in_a_row < 1:
            problems.append(
                f"max_timeouts_in_a_row={self.max_timeouts_in_a_row} must be at least 1"
            )
        if self.failure_limit < 1:
            problems.append(f"max_failures_in_a_row={self.failure_limit} must be at least 1")
        if problems:
            raise ConfigError("CourseConfig: " + "; ".join(problems))
        check_population(self.strategy, self.num_clients - self.num_unseen)

    @property
    def answer_timeout_us(self) -> int:
        """`answer_timeout_s` in microseconds."""
        return round(self.answer_timeout_s * 1_000_000)

    @property
    def failure_limit(self) -> int:
        """`max_failures_in_a_row` with its default."""
        if self.max_failures_in_a_row is not None:
            return self.max_failures_in_a_row
        return 5 * self.strategy.cohort_size


class Evaluation(NamedTuple):
    """What an evaluation found.

    Attributes:
      round: aggregations before it.
      time_us: virtual time of the model.
      metrics: names and numbers.
    """

    round: int
    time_us: int
    metrics: Mapping[str, float]


class Aggregation(NamedTuple):
    """What went into a round.

    Attributes:
      round: the round that ended.
      time_us: virtual time.
      fresh: clients whose update is based on the model of this round, in order of arrival.
      stale: `(round, client)` of the others.
      dropped: updates too old to count, since clients were last sampled.
      rejected: clients whose update was refused, such as one that is not finite.
    """

    round: int
    time_us: int
    fresh: tuple[int, ...]
    stale: tuple[tuple[int, int], ...]
    dropped: int
    rejected: tuple[int, ...] = ()


@dataclasses.dataclass
class ServerState:
    """Everything that a server knows; handlers take it over and give it back.

    Attributes:
      model: the program's.
      sampler: state of the sampler.
      round: aggregations so far.
      clock_us: virtual time of the last message or deadline.
      deadline_us: when the time budget of the round is spent.
      info: what every joined client has told.
      started: whether the first model has been sent.
      excluded: clients that are never asked to train, since they have no examples.
      busy: clients that work, and on what.
      fresh: updates of this round.
      stale: updates of rounds before, young enough to count.
      offers: what clients of this round have told the others, see `exchange`.
      dropped: updates too old to count, since clients were last sampled.
      refills: clients to be sampled one by one, `after_receiving`.
      num_draws: draws of clients so far; each has a generator of its own.
      num_requests: requests so far, to train or to evaluate.
      failures_in_a_row: clients that have failed since the last update.
      timeouts_in_a_row: how often clients were waited for in vain since the last update.
      refused: of the last updates that were aggregated, a cohort at most, whether it was refused.
      evaluating: the evaluations under way, in the order in which they were begun.
      evaluations: those that have ended.
      aggregations: what went into every round.
      counts: of what was seen on the way, such as `rejected_updates`, see `server`.
      finished: whether the course has ended.
    """

    model: Any
    sampler: SamplerState
    round: int = 0
    clock_us: int = 0
    deadline_us: int = 0
    info: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    started: bool = False
    excluded: set[int] = dataclasses.field(default_factory=set)
    busy: dict[int, Request] = dataclasses.field(default_factory=dict)
    fresh: list[Received] = dataclasses.field(default_factory=list)
    stale: list[Received] = dataclasses.field(default_factory=list)
    offers: dict[int, Any] = dataclasses.field(default_factory=dict)
    dropped: int = 0
    refills: int = 0
    num_draws: int = 0
    num_requests: int = 0
    failures_in_a_row: int = 0
    timeouts_in_a_row: int = 0
    refused: list[bool] = dataclasses.field(default_factory=list)
    evaluating: list[Evaluating] = dataclasses.field(default_factory=list)
    evaluations: list[Evaluation] = dataclasses.field(default_factory=list)
    aggregations: list[Aggregation] = dataclasses.field(default_factory=list)
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    finished: bool = False


Reaction = tuple[ServerState, list[Message]]
"""What a handler or an action of the server gives: the state and the messages to send."""


def make_request(state: ServerState, kind: str, receivers: Iterable[int], content: Any) -> Message:
    """A message of the server with a number of its own, which answers repeat.

    Args:
      state: the number is counted in it.
      kind: type of the message.
      receivers: ids.
      content: what is sent.
    """
    state.num_requests += 1
    return Message(
        kind, SERVER, tuple(receivers), content, state.round, state.clock_us,
        request=state.num_requests,
    )  # fmt: skip


def is_known(state: ServerState, message: Message) -> bool:
    """Whether the sender has joined; strangers are counted."""
    if message.sender in state.info:
        return True
    _logger.warning("%s from the unknown client %d is ignored", message.type, message.sender)
    state.counts["unknown_senders"] += 1
    return False
